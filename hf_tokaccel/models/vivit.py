"""ViViT: model and video classification; the tokens of each tubelet slice are clustered on their own."""

from typing import Any

from transformers import VivitConfig, VivitForVideoClassification, VivitModel

from ..hosts.config import AcceleratedConfig
from ..hosts.layout import SliceLayout
from ..hosts.modeling import AcceleratedModel, enter, image_grid, read, record
from ..registry import register_family


class TokAccelVivitConfig(AcceleratedConfig, VivitConfig):
    """`VivitConfig` with `accel`; `cluster_grid` is that of one tubelet slice. Nothing was released for ViViT."""

    model_type = "tokaccel_vivit"
    accel_fixed_image_size = True

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a tubelet, as `accelerate_config` and `accel_patch_size` look for it."""
        return tuple(self.tubelet_size[1:])


class TokAccelVivitModel(AcceleratedModel, VivitModel):
    config: TokAccelVivitConfig
    accel_layers = "layers"

    def accel_layout(self, arguments: dict[str, Any]) -> SliceLayout:
        slices = self.config.num_frames // self.config.tubelet_size[0]
        return SliceLayout(image_grid(self, arguments["pixel_values"]), prefix=1, slices=slices)

    forward = enter(record(VivitModel.forward))


class TokAccelVivitForVideoClassification(AcceleratedModel, VivitForVideoClassification):
    """The head reads the class token only, so nothing is reconstructed."""

    config: TokAccelVivitConfig
    accel_parts = ("vivit",)
    forward = read(VivitForVideoClassification.forward, lambda model: (), patches=False)


register_family(
    TokAccelVivitConfig,
    (TokAccelVivitModel, TokAccelVivitForVideoClassification),
    note="clusters inside each tubelet slice; classification reconstructs nothing",
)
