"""RF-DETR: object detection and instance segmentation on a DINOv2 whose image windows lie in the batch dimension."""

from collections.abc import Collection

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
from ..hosts.modeling import AcceleratedModel, enter, loop, record
from ..registry import register_family
from .dinov2 import Dinov2BlocksConfig


class TokAccelRfDetrDinov2Config(Dinov2BlocksConfig, RfDetrDinov2Config):
    """`RfDetrDinov2Config` with `accel`; `cluster_grid` counts the clusters of one of num_windows x num_windows parts.

    Each part is clustered on its own and has a class token of its own, in global blocks too. Give square images, as
    the processor does: the host itself mixes up the tokens of others on their way into windows and out again.
    """

    model_type = "tokaccel_rf_detr_dinov2"
    accel_unit = "a window"

    @staticmethod
    def accel_parts(host: PreTrainedConfig) -> int:
        return host.num_windows

    @classmethod
    def accel_windowed(cls, host: PreTrainedConfig) -> Collection[int]:
        return host.window_block_indexes


class TokAccelRfDetrDinov2Encoder(AcceleratedModel, RfDetrDinov2Encoder):
    accel_layers = "layer"
    accel_norm = "norm1"
    forward = record(loop(RfDetrDinov2Encoder.forward, captures=True))


class TokAccelRfDetrDinov2Backbone(AcceleratedModel, RfDetrDinov2Backbone):
    config: TokAccelRfDetrDinov2Config
    accel_parts = ("encoder",)
    forward = enter(RfDetrDinov2Backbone.forward, reads=lambda model: tuple(model.out_indices))


class TokAccelRfDetrConfig(AcceleratedConfig, RfDetrConfig):
    """`RfDetrConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_rf_detr"
    accel_host_path = "backbone_config"
    accel_normalization = "l1"


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
