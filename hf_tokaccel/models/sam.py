"""SAM: the vision encoder, alone and under prompt encoder and mask decoder, which stay native."""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, SamConfig, SamModel, SamVisionConfig, SamVisionModel
from transformers.models.sam.modeling_sam import SamVisionEncoder

from ..checks import UserError
from ..hosts.config import AcceleratedConfig
from ..hosts.layout import TokenLayout, WindowLayout
from ..hosts.modeling import AcceleratedModel, enter, image_grid, record
from ..registry import register_family

SLACK = 1  # pixels that a point may lie beyond the border: half precision rounds coordinates


class WindowedVisionConfig(AcceleratedConfig):
    """What the configurations of SAM's and SAM-HQ's vision encoders share."""

    accel_fixed_image_size = True
    accel_prefix = 0

    @staticmethod
    def accel_window(host: PreTrainedConfig) -> int:
        # Without windows the whole map is one: images are square.
        return host.window_size or host.image_size // host.patch_size

    @classmethod
    def accel_windowed(cls, host: PreTrainedConfig) -> Collection[int]:
        return set(range(host.num_hidden_layers if host.window_size else 0)) - set(host.global_attn_indexes)

    @staticmethod
    def accel_relative(host: PreTrainedConfig) -> bool:
        return host.use_rel_pos

    @classmethod
    def accel_mlp(cls, host: PreTrainedConfig) -> int:
        return 2 * host.hidden_size * host.mlp_dim


class WindowedVisionEncoder(AcceleratedModel):
    """What the vision encoders share: states (B, H, W, C), window blocks, and global blocks on the map of clusters."""

    accel_layers = "layers"
    accel_norm = "layer_norm1"
    accel_ambient = True
    accel_shrinks_windows = True

    def accel_layout(self, arguments: dict[str, Any]) -> TokenLayout:
        size, window = image_grid(self, arguments["pixel_values"]), WindowedVisionConfig.accel_window(self.config)
        return WindowLayout(size, window, channels_last=True)


class TokAccelSamVisionConfig(WindowedVisionConfig, SamVisionConfig):
    """`SamVisionConfig` with `accel`; `cluster_grid` is the side of the clusters of one attention window.

    As released, clusters of the zero padding take part. The neck is a convolution without bias before a LayerNorm, in
    which the scale of the weights cancels.
    """

    model_type = "tokaccel_sam_vision_model"


class TokAccelSamVisionEncoder(WindowedVisionEncoder, SamVisionEncoder):
    forward = enter(record(SamVisionEncoder.forward))


class TokAccelSamVisionModel(AcceleratedModel, SamVisionModel):
    config: TokAccelSamVisionConfig
    accel_parts = ("vision_encoder",)


class TokAccelSamConfig(AcceleratedConfig, SamConfig):
    """`SamConfig` with `accel`, which applies to its vision encoder."""

    model_type = "tokaccel_sam"
    accel_host_path = "vision_config"
    accel_fixed_image_size = True


def prompted(native_forward: Callable) -> Callable:
    """Wraps the forward that takes prompts: those outside the image, which native answers with noise, are errors.

    Prompts on a GPU are not checked: the check would wait for it.
    """
    names = list(inspect.signature(native_forward).parameters)[1:]

    @functools.wraps(native_forward)
    def forward(self, *args, **kwargs):
        # Values are unknown while compiling, and those on a GPU until all that came before is computed.
        if self.accel is not None and not torch.compiler.is_compiling():
            arguments = {**dict(zip(names[: len(args)], args, strict=True)), **kwargs}
            points, boxes, sizes = map(arguments.get, ("input_points", "input_boxes", "reshaped_input_sizes"))
            size = self.config.prompt_encoder_config.image_size
            check_points(points, arguments.get("input_labels"), sizes, size)
            check_boxes(boxes, sizes, size)
        return native_forward(self, *args, **kwargs)

    return forward


def check_points(points: Tensor | None, labels: Tensor | None, sizes: Tensor | None, size: int) -> None:
    """Raises ValueError where a point prompt is not on its image.

    Args:
        points: (B, prompts, points, 2) x and y in pixels of the model's input.
        labels: (B, prompts, points); those below 0 mark places to ignore.
        sizes: (B, 2) height and width of the images in the model's input.
        size: side of all where no sizes are given.
    """
    if points is None or points.ndim != 4 or points.device.type != "cpu":
        return  # the host says what is wrong with the shape
    limits = _limits(sizes, size)[:, None, None]
    outside = ((points < -SLACK) | (points > limits + SLACK)).any(-1)
    if labels is not None:
        outside &= labels >= 0
    _refuse("input_points", "point (x, y)", "lie on its image", points, outside, limits)


def _limits(sizes: Tensor | None, size: int) -> Tensor:
    """(B or 1, 2) width and height."""
    return torch.tensor([(size, size)]) if sizes is None else sizes.cpu().flip(-1)


def check_boxes(boxes: Tensor | None, sizes: Tensor | None, size: int) -> None:
    """Raises ValueError where a box prompt (B, boxes, 4) does not touch its image; boxes may reach beyond it."""
    if boxes is None or boxes.ndim != 3 or boxes.device.type != "cpu":
        return
    limits = _limits(sizes, size)[:, None]
    outside = ((boxes[..., 2:] < 0) | (boxes[..., :2] > limits)).any(-1)
    _refuse("input_boxes", "box (x1, y1, x2, y2)", "touch its image", boxes, outside, limits)


def _refuse(name: str, what: str, must: str, prompts: Tensor, outside: Tensor, limits: Tensor) -> None:
    if not outside.any():
        return
    place = tuple(outside.nonzero()[0].tolist())
    width, height = limits[place[0] if len(limits) > 1 else 0].flatten().tolist()
    middle = (width / 2, height / 2) if prompts.shape[-1] == 2 else (0, 0, width, height)
    raise UserError(
        f"{name}[{', '.join(map(str, place))}] is not valid: the {what} = {tuple(prompts[place].tolist())} must "
        f"{must}, which has {height} x {width} (height x width) pixels as the model sees it, for example {middle}. "
        "The processor scales prompts from the original image, so give it those in pixels of the original."
    )


class TokAccelSamModel(AcceleratedModel, SamModel):
    """Prompt encoder and mask decoder read the embeddings of all tokens."""

    config: TokAccelSamConfig
    accel_parts = ("vision_encoder",)
    forward = prompted(SamModel.forward)


register_family(
    TokAccelSamVisionConfig,
    (TokAccelSamVisionModel,),
    parts=(TokAccelSamVisionEncoder,),
    note="the vision encoder alone; `cluster_grid` counts the clusters of one attention window",
)
register_family(
    TokAccelSamConfig,
    (TokAccelSamModel,),
    note="its vision encoder; `cluster_grid` counts the clusters of one attention window",
)
