"""BEiT: model, classification, masked image modelling, semantic segmentation, and the Backbone under ZoeDepth."""

from typing import Any

from torch import Tensor
from transformers import (
    BeitBackbone,
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitForSemanticSegmentation,
    BeitModel,
)
from transformers.models.beit.modeling_beit import BeitRelativePositionBias

from ..hosts.change import become
from ..hosts.config import AcceleratedConfig
from ..hosts.layout import TokenLayout
from ..hosts.modeling import AcceleratedModel, enter, read, record
from ..hosts.places import GatheredBias, cluster_places, gather_bias, grid_positions
from ..hosts.track import TokenTrack
from ..registry import register_family
from ..settings.clustering import TokenClusteringConfig


class TokAccelBeitConfig(AcceleratedConfig, BeitConfig):
    """`BeitConfig` with `accel`.

    Nothing was released for BEiT. Some of its heads read features without a LayerNorm, so reconstruction weights sum
    to one by default.
    """

    model_type = "tokaccel_beit"
    accel_normalization = "l1"


class _GatheredBeitBias(GatheredBias, BeitRelativePositionBias):
    pass


class TokAccelBeitModel(AcceleratedModel, BeitModel):
    """Clusters on a grid get the relative position bias that BEiT gives such an image; others that of their places."""

    config: TokAccelBeitConfig
    accel_layers = "layers"
    forward = enter(record(BeitModel.forward))

    def install_accel(self, accel: TokenClusteringConfig | None) -> None:
        super().install_accel(accel)
        for layer in self.layers if accel is not None and accel.adaptive else ():
            if layer.relative_position_bias is not None:
                become(layer.relative_position_bias, _GatheredBeitBias)

    def accel_positions(self, arguments: dict[str, Any], layout: TokenLayout) -> Tensor | None:
        return grid_positions(layout.grid, arguments["pixel_values"].device) if self.accel.adaptive else None

    def accel_block_inputs(
        self, track: TokenTrack, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        if not track.clustered:
            return args, kwargs
        if self.accel.adaptive:
            places, shared = cluster_places(track), kwargs["attention_mask"]
            if shared is not None and "bias" not in track.memo:
                track.memo["bias"] = gather_bias(shared, places)
            return args, {**kwargs, "attention_mask": track.memo.get("bias"), "accel_places": places}
        grid = track.accel.cluster_grid
        if "bias" not in track.memo:
            shared = self.shared_position_bias
            track.memo["bias"] = None if shared is None else shared(grid)
        height, width = self.accel_patch_size()
        # What arrives as the mask is the bias shared by all blocks, of the tokens.
        return args, {
            **kwargs,
            "attention_mask": track.memo["bias"],
            "resolution": (grid[0] * height, grid[1] * width),
        }


class TokAccelBeitForImageClassification(AcceleratedModel, BeitForImageClassification):
    """The head reads the mean over all patch tokens, so those are reconstructed; or the class token alone."""

    config: TokAccelBeitConfig
    accel_parts = ("beit",)
    forward = read(
        BeitForImageClassification.forward, lambda model: (), patches=lambda model: model.config.use_mean_pooling
    )


class TokAccelBeitForMaskedImageModeling(AcceleratedModel, BeitForMaskedImageModeling):
    config: TokAccelBeitConfig
    accel_parts = ("beit",)
    forward = read(BeitForMaskedImageModeling.forward, lambda model: ())


class TokAccelBeitForSemanticSegmentation(AcceleratedModel, BeitForSemanticSegmentation):
    """`out_indices` counts from 1 here: 1 is the embeddings."""

    config: TokAccelBeitConfig
    accel_parts = ("beit",)
    forward = read(
        BeitForSemanticSegmentation.forward,
        lambda model: [index - 1 for index in model.config.out_indices],
        patches=False,
    )


class TokAccelBeitBackbone(AcceleratedModel, BeitBackbone):
    config: TokAccelBeitConfig
    accel_parts = ("beit",)
    forward = read(BeitBackbone.forward, lambda model: model.out_indices, patches=False)


register_family(
    TokAccelBeitConfig,
    (
        TokAccelBeitModel,
        TokAccelBeitForImageClassification,
        TokAccelBeitForMaskedImageModeling,
        TokAccelBeitForSemanticSegmentation,
        TokAccelBeitBackbone,
    ),
    note="relative position bias resized to the cluster grid, or gathered at the places of adaptive clusters",
)
