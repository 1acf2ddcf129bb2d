"""DeiT: a plain ViT with a distillation token beside the class token."""

from typing import Any

from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
)

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, read, record
from ..registry import register_family


class TokAccelDeiTConfig(AcceleratedConfig, DeiTConfig):
    """`DeiTConfig` with `accel`."""

    model_type = "tokaccel_deit"
    accel_fixed_image_size = True
    accel_prefix = 2

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # One Auto class loads both classifiers and tells them apart by this name, which a native folder gives as its
        # own; the wrong one would load with a random head.
        names = [name.removeprefix("TokAccel") for name in self.architectures or ()]
        self.architectures = [f"TokAccel{name}" for name in names]


class TokAccelDeiTModel(AcceleratedModel, DeiTModel):
    config: TokAccelDeiTConfig
    accel_layers = "layers"
    forward = enter(record(DeiTModel.forward))


class TokAccelDeiTForMaskedImageModeling(AcceleratedModel, DeiTForMaskedImageModeling):
    config: TokAccelDeiTConfig
    accel_parts = ("deit",)
    forward = read(DeiTForMaskedImageModeling.forward, lambda model: ())


class TokAccelDeiTForImageClassification(AcceleratedModel, DeiTForImageClassification):
    """The head reads the class token only, so nothing is reconstructed."""

    config: TokAccelDeiTConfig
    accel_parts = ("deit",)
    forward = read(DeiTForImageClassification.forward, lambda model: (), patches=False)


class TokAccelDeiTForImageClassificationWithTeacher(AcceleratedModel, DeiTForImageClassificationWithTeacher):
    """The heads read the class and the distillation token only, so nothing is reconstructed."""

    config: TokAccelDeiTConfig
    accel_parts = ("deit",)
    forward = read(DeiTForImageClassificationWithTeacher.forward, lambda model: (), patches=False)


register_family(
    TokAccelDeiTConfig,
    (
        TokAccelDeiTModel,
        TokAccelDeiTForMaskedImageModeling,
        TokAccelDeiTForImageClassification,
        TokAccelDeiTForImageClassificationWithTeacher,
    ),
    note="classification reconstructs nothing",
)
