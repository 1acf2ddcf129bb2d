"""RF-DETR: object detection and instance segmentation on a DINOv2 whose image windows lie in the batch dimension."""

from typing import Any

from transformers import (
    PreTrainedConfig,
    RfDetrConfig,
    RfDetrDinov2Backbone,
    RfDetrForInstanceSegmentation,
    RfDetrForObjectDetection,
    RfDetrModel,
)
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config
from transformers.models.rf_detr.modeling_rf_detr import RfDetrDinov2Encoder

from ..hosts.config import AcceleratedConfig
from ..hosts.layout import TokenLayout
from ..hosts.modeling import AcceleratedModel, enter, image_grid, loop, record
from ..registry import register_family


class TokAccelRfDetrDinov2Config(AcceleratedConfig, RfDetrDinov2Config):
    """`RfDetrDinov2Config` with `accel`; `cluster_grid` counts the clusters of one of num_windows x num_windows parts.

    Each part is clustered on its own and has a class token of its own, in global blocks too. Give square images, as
    the processor does: the host itself mixes up the tokens of others on their way into windows and out again.
    """

    model_type = "tokaccel_rf_detr_dinov2"
    accel_normalization = "l1"
    accel_unit = "a window"

    @classmethod
    def accel_grid(cls, host: PreTrainedConfig, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = super().accel_grid(host, image_size)
        return height // host.num_windows, width // host.num_windows


class TokAccelRfDetrDinov2Encoder(AcceleratedModel, RfDetrDinov2Encoder):
    accel_layers = "layer"
    accel_norm = "norm1"
    forward = record(loop(RfDetrDinov2Encoder.forward, captures=True))


class TokAccelRfDetrDinov2Backbone(AcceleratedModel, RfDetrDinov2Backbone):
    config: TokAccelRfDetrDinov2Config
    accel_parts = ("encoder",)
    forward = enter(RfDetrDinov2Backbone.forward, reads=lambda model: tuple(model.out_indices))

    def accel_layout(self, arguments: dict[str, Any]) -> TokenLayout:
        grid = image_grid(self, arguments["pixel_values"], self.config.num_windows)
        return TokenLayout(grid, unit=TokAccelRfDetrDinov2Config.accel_unit, parts=self.config.num_windows**2)


class TokAccelRfDetrConfig(AcceleratedConfig, RfDetrConfig):
    """`RfDetrConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_rf_detr"
    accel_normalization = "l1"

    def accel_host(self) -> PreTrainedConfig:
        return self.backbone_config


class TokAccelRfDetrModel(AcceleratedModel, RfDetrModel):
    config: TokAccelRfDetrConfig
    accel_parts = ("backbone.backbone",)


class TokAccelRfDetrForObjectDetection(AcceleratedModel, RfDetrForObjectDetection):
    config: TokAccelRfDetrConfig
    accel_parts = ("model.backbone.backbone",)


class TokAccelRfDetrForInstanceSegmentation(AcceleratedModel, RfDetrForInstanceSegmentation):
    config: TokAccelRfDetrConfig
    accel_parts = ("model.model.backbone.backbone",)


register_family(
    TokAccelRfDetrDinov2Config,
    (TokAccelRfDetrDinov2Backbone,),
    parts=(TokAccelRfDetrDinov2Encoder,),
    note="`cluster_grid` counts the clusters of one window",
)
register_family(
    TokAccelRfDetrConfig,
    (TokAccelRfDetrModel, TokAccelRfDetrForObjectDetection, TokAccelRfDetrForInstanceSegmentation),
    note="on its own backbone",
)
