"""Data2Vec for images: model, classification, semantic segmentation. BEiT's blocks in an older generation of code."""

from typing import Any

from torch import Tensor, nn
from transformers import (
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Data2VecVisionForSemanticSegmentation,
    Data2VecVisionModel,
)
from transformers.models.data2vec.modeling_data2vec_vision import Data2VecVisionRelativePositionBias

from ..hosts.change import become
from ..hosts.config import AcceleratedConfig
from ..hosts.graft import transplant
from ..hosts.layout import TokenLayout
from ..hosts.modeling import AcceleratedModel, enter, read, record
from ..hosts.places import GatheredBias, cluster_places, gather_bias, grid_positions
from ..hosts.track import TokenTrack, ambient_track
from ..registry import register_family
from ..settings.clustering import TokenClusteringConfig


class TokAccelData2VecVisionConfig(AcceleratedConfig, Data2VecVisionConfig):
    """`Data2VecVisionConfig` with `accel`; defaults as for BEiT."""

    model_type = "tokaccel_data2vec-vision"
    accel_normalization = "l1"


class TokAccelData2VecVisionSharedBias(Data2VecVisionRelativePositionBias):
    """The bias shared by all blocks, which the native loop computes for every block anew, and for the tokens only."""

    def forward(self, window_size: tuple[int, int], *args: Any, **kwargs: Any) -> Any:
        if ambient_track.get() is not None:
            return None
        return super().forward(window_size, *args, **kwargs)

    def once(self, track: TokenTrack) -> Any:
        """(1, heads, 1 + N, 1 + N) bias of the tokens or clusters on which the next block runs; (B, ...) of places."""
        adaptive = track.accel.adaptive
        grid = track.accel.cluster_grid if track.clustered and not adaptive else track.layout.grid
        name = f"bias of {grid}, {track.clustered}"
        if name not in track.memo:
            bias = super().forward(grid)
            track.memo[name] = gather_bias(bias, cluster_places(track)) if track.clustered and adaptive else bias
        return track.memo[name]


class _GatheredData2VecVisionBias(GatheredBias, Data2VecVisionRelativePositionBias):
    accel_adds_sizes = True


class TokAccelData2VecVisionModel(AcceleratedModel, Data2VecVisionModel):
    config: TokAccelData2VecVisionConfig
    accel_layers = "encoder.layer"
    accel_ambient = True
    forward = enter(record(Data2VecVisionModel.forward))

    def install_accel(self, accel: TokenClusteringConfig | None) -> None:
        super().install_accel(accel)
        if accel is not None and self.encoder.has_relative_position_bias:
            native = self.encoder.relative_position_bias
            template = TokAccelData2VecVisionSharedBias(self.config, native.window_size)
            self.encoder.relative_position_bias = transplant(template, native, {})
        for layer in self.encoder.layer if accel is not None and (accel.adaptive or accel.size_attention) else ():
            if layer.attention.attention.has_relative_position_bias:
                become(layer.attention.attention.relative_position_bias, _GatheredData2VecVisionBias)

    def accel_positions(self, arguments: dict[str, Any], layout: TokenLayout) -> Tensor | None:
        return grid_positions(layout.grid, arguments["pixel_values"].device) if self.accel.adaptive else None

    def accel_weigh_sizes(self, layer: nn.Module) -> bool:
        """Attention here takes sizes with its position biases, or as if they were one."""
        return True

    def accel_block_inputs(
        self, track: TokenTrack, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        changes = {}
        if self.encoder.has_relative_position_bias:
            changes["relative_position_bias"] = self.encoder.relative_position_bias.once(track)
        if track.clustered and track.bias is not None and not self.config.use_relative_position_bias:
            shared = changes.get("relative_position_bias")
            changes["relative_position_bias"] = track.bias if shared is None else shared + track.bias
        if track.clustered and self.accel.adaptive:
            changes["accel_places"] = cluster_places(track)
        elif track.clustered:
            (height, width), patch = track.accel.cluster_grid, self.accel_patch_size()
            changes["resolution"] = (height * patch[0], width * patch[1])
        return args, {**kwargs, **changes}


class TokAccelData2VecVisionForImageClassification(AcceleratedModel, Data2VecVisionForImageClassification):
    """The head reads the mean over all patch tokens, so those are reconstructed; or the class token alone."""

    config: TokAccelData2VecVisionConfig
    accel_parts = ("data2vec_vision",)
    accel_ambient = True
    forward = read(
        Data2VecVisionForImageClassification.forward,
        lambda model: (),
        patches=lambda model: model.config.use_mean_pooling,
    )


class TokAccelData2VecVisionForSemanticSegmentation(AcceleratedModel, Data2VecVisionForSemanticSegmentation):
    """`out_indices` counts from 1 here: 1 is the embeddings. It takes images of the configuration's size only."""

    config: TokAccelData2VecVisionConfig
    accel_parts = ("data2vec_vision",)
    accel_ambient = True
    forward = read(
        Data2VecVisionForSemanticSegmentation.forward,
        lambda model: [index - 1 for index in model.config.out_indices],
        patches=False,
    )


register_family(
    TokAccelData2VecVisionConfig,
    (
        TokAccelData2VecVisionModel,
        TokAccelData2VecVisionForImageClassification,
        TokAccelData2VecVisionForSemanticSegmentation,
    ),
    note="relative position bias resized to the cluster grid, or gathered at the places of adaptive clusters",
)
