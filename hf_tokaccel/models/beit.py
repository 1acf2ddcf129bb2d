"""BEiT: model, classification, masked image modelling, semantic segmentation, and the Backbone under ZoeDepth."""

from typing import Any

from transformers import (
    BeitBackbone,
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitForSemanticSegmentation,
    BeitModel,
)

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, read, record
from ..hosts.track import TokenTrack
from ..registry import register_family


class TokAccelBeitConfig(AcceleratedConfig, BeitConfig):
    """`BeitConfig` with `accel`.

    Nothing was released for BEiT. Some of its heads read features without a LayerNorm, so reconstruction weights sum
    to one by default.
    """

    model_type = "tokaccel_beit"
    accel_normalization = "l1"


class TokAccelBeitModel(AcceleratedModel, BeitModel):
    """Clusters keep the order of their grid, so they get the relative position bias that BEiT gives such an image."""

    config: TokAccelBeitConfig
    accel_layers = "layers"
    forward = enter(record(BeitModel.forward))

    def accel_block_inputs(
        self, track: TokenTrack, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        if not track.clustered:
            return args, kwargs
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
    note="relative position bias resized to the cluster grid",
)
