"""Switching acceleration on and off for any supported configuration or model."""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from .hosts.convert import check_model, clustering_config, clustering_model
from .semantic.modeling import initialize, semantic_config
from .settings.clustering import TokenClusteringConfig
from .settings.methods import as_accel
from .settings.semantic import SemanticTokenConfig

Accel = TokenClusteringConfig | SemanticTokenConfig | dict[str, Any] | None


def accelerate_config(
    config: PreTrainedConfig, accel: Accel, image_size: int | tuple[int, int] | None = None
) -> PreTrainedConfig:
    """The accelerated counterpart of a configuration, which is left as it was.

    Args:
        config: of a supported model type, native or accelerated, or of a head whose `backbone_config` is one.
        accel: the setting; None switches acceleration off.
        image_size: side or (height, width) in pixels that the model will run at, checked against the setting; by
            default the configuration's own.

    Raises:
        ValueError: when the type is not supported or the setting does not fit.
    """
    setting = as_accel(accel)
    if isinstance(setting, SemanticTokenConfig):
        return semantic_config(config, setting)
    return clustering_config(config, setting, image_size)


def accelerate(
    model: PreTrainedModel, accel: Accel, image_size: int | tuple[int, int] | None = None
) -> PreTrainedModel:
    """An accelerated model with the same parameters as `model` (shared, not copied); `model` stays as it was.

    Args:
        model: a loaded model, native or accelerated already.
        accel: the setting; None gives a model that computes what the native one does. A `SemanticTokenConfig` gives
            a model with copies of the parameters, and some of its own, that has to be trained.
        image_size: see `accelerate_config`.

    Warns:
        UserWarning: with semantic tokens, naming the parameters that are untrained.

    Raises:
        ValueError: when the model is not supported or the setting does not fit.
    """
    check_model(model)
    setting = as_accel(accel)
    if isinstance(setting, SemanticTokenConfig):
        return initialize(model, setting)[0]
    return clustering_model(model, setting, image_size)
