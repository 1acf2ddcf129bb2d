"""Switching acceleration on and off for any supported configuration or model."""

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .configs import AcceleratedConfig, family_of
from .configuration import TokenClusteringConfig, as_accel
from .graft import pair_configs, transplant
from .modeling import AcceleratedModel
from .registry import FAMILIES, accelerated_class, native_class, unsupported
from .semantic.configuration import SemanticTokenConfig
from .semantic.modeling import SemanticConfig, SemanticModel, initialize, semantic_config

Accel = TokenClusteringConfig | SemanticTokenConfig | dict[str, Any] | None


def accelerate_config(
    config: PreTrainedConfig, accel: Accel, image_size: int | tuple[int, int] | None = None
) -> PreTrainedConfig:
    """The accelerated counterpart of a configuration, which is left as it was.

    Args:
        config: of a supported model type, native or accelerated, or of a head whose `backbone_config` is one.
        accel: the setting; None switches acceleration off.
        image_size: side or (height, width) in pixels that the model will run at, checked against the setting. By
            default the configuration's own, where the model accepts no other.

    Raises:
        ValueError: when the type is not supported or the setting does not fit.
    """
    setting = as_accel(accel)
    if isinstance(setting, SemanticTokenConfig):
        return semantic_config(config, setting)
    native = to_native_config(config)
    # The class's type: an object has that of the file which it was read from, such as SAM 2's video checkpoints.
    family = FAMILIES.get(type(native).model_type)
    if family is not None:
        new = _convert(native, family.config, accel=setting)
        if setting is not None:
            _check_image_size(new, setting, image_size)
        return new
    backbone = getattr(native, "backbone_config", None)
    if isinstance(backbone, PreTrainedConfig) and backbone.model_type in FAMILIES:
        native.backbone_config = accelerate_config(backbone, setting, image_size)
        return native
    raise unsupported(f"model type {native.model_type!r}")


def to_native_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a configuration as plain Transformers knows it.

    Raises:
        ValueError: for one with semantic tokens, whose models are no plain ones.
    """
    if isinstance(config, SemanticConfig):
        raise _no_counterpart(f"model type {config.model_type!r}")
    if isinstance(config, AcceleratedConfig):
        return _convert(config, native_class(type(config)))
    config = copy.deepcopy(config)
    if isinstance(getattr(config, "backbone_config", None), AcceleratedConfig):
        config.backbone_config = to_native_config(config.backbone_config)
    return config


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
    _check_model(model)
    setting = as_accel(accel)
    if isinstance(setting, SemanticTokenConfig):
        return initialize(model, setting)[0]
    if isinstance(model, SemanticModel):
        raise ValueError(
            f"{type(model).__name__} cannot be given another method, or none: its weights are trained with semantic "
            "tokens. Accelerate a plain model instead."
        )
    config = accelerate_config(model.config, setting, image_size)
    native_type = _native_type(model)
    cls = accelerated_class(native_type)
    if cls is None:
        if isinstance(config, AcceleratedConfig):
            family = FAMILIES[native_class(type(config)).model_type]
            if native_type in family.refused:
                raise ValueError(f"{native_type.__name__} cannot be accelerated: {family.refused[native_type]}.")
            names = sorted(c.__name__ for c in family.models)
            raise unsupported(f"{native_type.__name__} (of this family: {', '.join(names)})")
        # A native head reaches its accelerated backbone through AutoBackbone.
        cls = native_type
    return _rebuild(model, cls, config)


def to_native(model: PreTrainedModel) -> PreTrainedModel:
    """The plain Transformers model with the same parameters as `model` (shared, not copied).

    Raises:
        ValueError: when Transformers has no such class.
    """
    _check_model(model)
    if isinstance(model, SemanticModel):
        raise _no_counterpart(type(model).__name__)
    cls = _native_type(model)
    if cls is None:
        raise ValueError(
            f"{type(model).__name__} has no counterpart in Transformers, so it cannot be made native: keep it and "
            "switch acceleration off with accelerate(model, None), or save the weights with save_pretrained."
        )
    return _rebuild(model, cls, to_native_config(model.config))


def _no_counterpart(what: str) -> ValueError:
    return ValueError(
        f"{what} has no counterpart in Transformers, since its layers run on semantic tokens: load a plain model, for "
        "example with AutoModelForImageClassification.from_pretrained('facebook/deit-small-patch16-224')."
    )


def _native_type(model: PreTrainedModel) -> type | None:
    return native_class(type(model)) if isinstance(model, AcceleratedModel) else type(model)


def _check_model(model: Any) -> None:
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{type(model).__name__} is not valid: give a PreTrainedModel, for example what "
            "AutoModelForDepthEstimation.from_pretrained returns, before torch.compile or any other wrapper."
        )


def _rebuild(model: PreTrainedModel, cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        template = cls(config)
    _copy_attention(model.config, config)
    return transplant(template, model, {id(old): new for old, new in pair_configs(model.config, config)})


def _convert(config: PreTrainedConfig, cls: type[PreTrainedConfig], **changes: Any) -> PreTrainedConfig:
    values = config.to_dict()
    for name in ("model_type", "accel", "auto_map", "transformers_version"):
        values.pop(name, None)
    new = cls(**values, **changes)
    new._name_or_path = config._name_or_path
    _copy_attention(config, new)
    return new


def _copy_attention(old: PreTrainedConfig, new: PreTrainedConfig) -> None:
    # Not part of the dict, since it depends on the machine; the public property would spread a head's to its backbone.
    for source, target in pair_configs(old, new):
        target._attn_implementation_internal = source._attn_implementation_internal


def _check_image_size(
    config: AcceleratedConfig, setting: TokenClusteringConfig, image_size: int | tuple[int, int] | None
) -> None:
    host = config.accel_host()
    if image_size is None:
        if not config.accel_fixed_image_size:
            return
        image_size = host.image_size
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    family = family_of(host)
    setting.check_grid(family.accel_grid(host, sides), family.accel_unit)
