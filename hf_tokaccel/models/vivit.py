"""ViViT: model and video classification; the tokens of each tubelet slice are clustered on their own."""

from transformers import PreTrainedConfig, VivitConfig, VivitForVideoClassification, VivitModel

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, read, record
from ..registry import register_family


class TokAccelVivitConfig(AcceleratedConfig, VivitConfig):
    """`VivitConfig` with `accel`; `cluster_grid` is that of one tubelet slice. Nothing was released for ViViT."""

    model_type = "tokaccel_vivit"
    accel_fixed_image_size = True

    @staticmethod
    def accel_slices(host: PreTrainedConfig) -> int:
        return host.num_frames // host.tubelet_size[0]

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a tubelet, as `accelerate_config` and `accel_patch_size` look for it."""
        return tuple(self.tubelet_size[1:])


class TokAccelVivitModel(AcceleratedModel, VivitModel):
    config: TokAccelVivitConfig
    accel_layers = "layers"
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
