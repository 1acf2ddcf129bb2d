"""DINOv3 ViT: model and Backbone; the rotary embedding of a cluster is that of its centre."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTBackbone, DINOv3ViTConfig, DINOv3ViTModel, PreTrainedConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTEncoder,
    DINOv3ViTRopePositionEmbedding,
    augment_patches_center_coordinates,
    get_patches_center_coordinates,
)

from ..checks import as_pair
from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, record
from ..hosts.track import TokenTrack
from ..registry import register_family


class Dinov3BlocksConfig(AcceleratedConfig):
    """What the configurations of families on DINOv3's blocks share; weights sum to one by default, as for DINOv2."""

    accel_normalization = "l1"
    accel_prefix_field = "num_register_tokens"

    @classmethod
    def accel_mlp(cls, host: PreTrainedConfig) -> int:
        return (3 if host.use_gated_mlp else 2) * host.hidden_size * host.intermediate_size


class TokAccelDINOv3ViTConfig(Dinov3BlocksConfig, DINOv3ViTConfig):
    """`DINOv3ViTConfig` with `accel`."""

    model_type = "tokaccel_dinov3_vit"


def rotary(coordinates: Tensor, inv_freq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (..., N, D) of the angles that coordinates (..., N, 2) in [-1, 1] rotate by.

    The D / 4 frequencies serve y, then x, and the same again: both halves of a head turn together.
    """
    angles = (2 * math.pi * coordinates[..., None] * inv_freq).flatten(-2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotary_of_patches(module: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos and sin (N, D) as this native rotary embedding has them, and the (N, 2) patch centres that they are of."""
    config, patch = module.config, as_pair(module.config.patch_size)
    height, width = (side // step for side, step in zip(pixel_values.shape[-2:], patch, strict=True))
    centres = get_patches_center_coordinates(height, width, dtype=torch.float32, device=pixel_values.device)
    if module.training:
        centres = augment_patches_center_coordinates(
            centres,
            shift=config.pos_embed_shift,
            jitter=config.pos_embed_jitter,
            rescale=config.pos_embed_rescale,
        )
    return *rotary(centres, module.inv_freq, pixel_values.dtype), centres


def rotate_clusters(module: nn.Module, track: TokenTrack, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A block's keywords, with the `position_embeddings` of the clusters where it runs on clusters."""
    if not track.clustered:
        return kwargs
    if "rotary" not in track.memo:
        # Constants, as the centres of patches are: re-entrant checkpointing passes no gradients through keywords.
        centres = track.cluster_positions.detach()[:, None]
        dtype = kwargs["position_embeddings"][0].dtype
        track.memo["rotary"] = rotary(centres, module.inv_freq, dtype)
    return {**kwargs, "position_embeddings": track.memo["rotary"]}


class TokAccelDINOv3ViTRopePositionEmbedding(DINOv3ViTRopePositionEmbedding):
    """Gives, after cos and sin, the patch centres, since training moves those at random."""

    forward = rotary_of_patches


def encode(native_forward: Callable) -> Callable:
    """Wraps the encoder's forward: the centres go to the track, cos and sin to the blocks."""
    recorded = record(native_forward)

    @functools.wraps(native_forward)
    def forward(self, hidden_states, position_embeddings, *, accel_track, **kwargs):
        *position_embeddings, accel_track.positions = position_embeddings
        # The Backbone asks for all states and normalizes even those that it drops; what nobody reads is empty then.
        unread = hidden_states[:0] if kwargs.get("output_hidden_states") is True else None
        output = recorded(
            self, hidden_states, position_embeddings=position_embeddings, accel_track=accel_track, **kwargs
        )
        if unread is not None:
            output.hidden_states = tuple(unread if state is None else state for state in output.hidden_states)
        return output

    return forward


class TokAccelDINOv3ViTEncoder(AcceleratedModel, DINOv3ViTEncoder):
    accel_layers = "layer"
    accel_norm = "norm1"
    forward = encode(DINOv3ViTEncoder.forward)


class _Entered(AcceleratedModel):
    accel_parts = ("rope_embeddings", "model")

    def accel_block_inputs(
        self, track: TokenTrack, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        return args, rotate_clusters(self.rope_embeddings, track, kwargs)


class TokAccelDINOv3ViTModel(_Entered, DINOv3ViTModel):
    config: TokAccelDINOv3ViTConfig
    forward = enter(DINOv3ViTModel.forward)


class TokAccelDINOv3ViTBackbone(_Entered, DINOv3ViTBackbone):
    config: TokAccelDINOv3ViTConfig
    forward = enter(DINOv3ViTBackbone.forward, reads=lambda model: (*model.out_indices, -1))

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: else, inside of a host with a native `backbone_config`, the renamed keys of checkpoints were not found.

        Transformers knows those keys by the model type only, and withholds them from custom code.
        """
        return False


register_family(
    TokAccelDINOv3ViTConfig,
    (TokAccelDINOv3ViTModel, TokAccelDINOv3ViTBackbone),
    parts=(TokAccelDINOv3ViTEncoder, TokAccelDINOv3ViTRopePositionEmbedding),
    note="rotary embedding of the cluster centres; and every AutoBackbone head on it",
)
