"""Between a native configuration or model and its accelerated counterpart, which shares the parameters."""

import copy
from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..checks import UserError, as_pair
from ..registry import FAMILIES, accelerated_class, is_accelerated, native_class, unsupported
from ..settings.clustering import TokenClusteringConfig
from ..upstream import copy_attention
from .config import AcceleratedConfig, SettingConfig, check_multiple, family_of
from .graft import pair_configs, transplant


def to_native_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a configuration as plain Transformers knows it.

    Raises:
        ValueError: for one with semantic tokens, whose models are no plain ones.
    """
    if _is_semantic(config):
        raise _no_counterpart(f"model type {config.model_type!r}")
    if isinstance(config, AcceleratedConfig):
        return convert_config(config, native_class(type(config)))
    config = copy.deepcopy(config)
    # Of a folder of ours that was loaded with the class of Transformers, which keeps what it does not know.
    for name in ("accel", "auto_map") if "accel" in vars(config) else ():
        vars(config).pop(name, None)
    if isinstance(getattr(config, "backbone_config", None), AcceleratedConfig):
        config.backbone_config = to_native_config(config.backbone_config)
    return config


def to_native(model: PreTrainedModel) -> PreTrainedModel:
    """The plain Transformers model with the same parameters as `model` (shared, not copied).

    Raises:
        ValueError: when Transformers has no such class.
    """
    check_model(model)
    if _is_semantic(model.config):
        raise _no_counterpart(type(model).__name__)
    cls = native_type(model)
    if cls is None:
        raise UserError(
            f"{type(model).__name__} has no counterpart in Transformers, so it cannot be made native: keep it and "
            "switch acceleration off with accelerate(model, None), or save the weights with save_pretrained."
        )
    return rebuild(model, cls, to_native_config(model.config))


def _is_semantic(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of a method whose weights are trained for it."""
    return isinstance(config, SettingConfig) and not isinstance(config, AcceleratedConfig)


def _no_counterpart(what: str) -> UserError:
    return UserError(
        f"{what} has no counterpart in Transformers, since its layers run on semantic tokens: load a plain model, for "
        "example with AutoModelForImageClassification.from_pretrained('facebook/deit-small-patch16-224')."
    )


def native_type(model: PreTrainedModel) -> type | None:
    """The class of Transformers that a model is of or stands for; None where there is none."""
    return native_class(type(model)) if is_accelerated(type(model)) else type(model)


def check_model(model: Any) -> None:
    """Raises ValueError for what is no model of Transformers."""
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"{type(model).__name__} is not valid: give a PreTrainedModel, for example what "
            "AutoModelForDepthEstimation.from_pretrained returns, before torch.compile or any other wrapper."
        )


def rebuild(model: PreTrainedModel, cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model of a class and a configuration with the parameters of another."""
    with torch.device("meta"):
        template = cls(config)
    _copy_attention(model.config, config)
    return transplant(template, model, {id(old): new for old, new in pair_configs(model.config, config)})


def convert_config(
    config: PreTrainedConfig, cls: type[PreTrainedConfig], without: Collection[str] = (), **changes: Any
) -> PreTrainedConfig:
    """A configuration of another class with the same values, except `changes` and those named by `without`."""
    values = config.to_dict()
    for name in ("model_type", "accel", "auto_map", "transformers_version", *without):
        values.pop(name, None)
    new = cls(**values, **changes)
    new.name_or_path = config.name_or_path
    _copy_attention(config, new)
    return new


def _copy_attention(old: PreTrainedConfig, new: PreTrainedConfig) -> None:
    # Not part of the dict, since it depends on the machine.
    for source, target in pair_configs(old, new):
        copy_attention(source, target)


def clustering_config(
    config: PreTrainedConfig, setting: TokenClusteringConfig | None, image_size: int | tuple[int, int] | None = None
) -> PreTrainedConfig:
    """See `auto.accelerate_config`."""
    native = to_native_config(config)
    # The class's type: an object has that of the file which it was read from, such as SAM 2's video checkpoints.
    family = FAMILIES.get(type(native).model_type)
    if family is not None:
        new = convert_config(native, family.config, accel=setting)
        if setting is not None:
            _check_image_size(new, setting, image_size)
        return new
    backbone = getattr(native, "backbone_config", None)
    if isinstance(backbone, PreTrainedConfig) and backbone.model_type in FAMILIES:
        native.backbone_config = clustering_config(backbone, setting, image_size)
        return native
    raise unsupported(f"model type {native.model_type!r}")


def clustering_model(
    model: PreTrainedModel, setting: TokenClusteringConfig | None, image_size: int | tuple[int, int] | None = None
) -> PreTrainedModel:
    """See `auto.accelerate`."""
    if _is_semantic(model.config):
        raise UserError(
            f"{type(model).__name__} cannot be given another method, or none: its weights are trained with semantic "
            "tokens. Accelerate a plain model instead."
        )
    config = clustering_config(model.config, setting, image_size)
    native = native_type(model)
    cls = accelerated_class(native)
    if cls is None:
        if isinstance(config, AcceleratedConfig):
            family = FAMILIES[native_class(type(config)).model_type]
            if native in family.refused:
                raise UserError(f"{native.__name__} cannot be accelerated: {family.refused[native]}.")
            names = sorted(c.__name__ for c in family.models)
            raise unsupported(f"{native.__name__} (of this family: {', '.join(names)})")
        # A native head reaches its accelerated backbone through AutoBackbone.
        cls = native
    return rebuild(model, cls, config)


def _check_image_size(
    config: AcceleratedConfig, setting: TokenClusteringConfig, image_size: int | tuple[int, int] | None
) -> None:
    """At the size that the configuration says, where none is given."""
    host = config.accel_host()
    family, given = family_of(host), image_size is not None
    image_size = image_size if given else getattr(host, "image_size", None)
    if image_size is None:
        return
    size, steps = as_pair(image_size), family.accel_steps(host)
    if given and steps is not None:
        check_multiple(size, steps, family.accel_parts(host))
    try:
        setting.check_grid(family.accel_grid(host, size), family.accel_unit)
    except UserError as error:
        if given or config.accel_fixed_image_size:
            raise
        raise UserError(
            f"{error} That is at the image size of the configuration, {image_size}: give the one that the model runs "
            "at, for example accelerate(model, accel, image_size=768)."
        ) from None
