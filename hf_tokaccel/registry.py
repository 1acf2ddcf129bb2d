"""The table of supported families, from which Auto classes, conversions, `accelerate` and the docs follow."""

from dataclasses import dataclass, field

from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.backbone_utils import BackboneMixin
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING


@dataclass(frozen=True)
class Family:
    """One supported host.

    Attributes:
        config: the accelerated configuration class.
        models: its accelerated model classes that a user may load.
        note: what a reader of the support table should know.
        refused: native classes of the family that cannot be accelerated, each with the reason and what to use instead.
    """

    config: type[PreTrainedConfig]
    models: tuple[type[PreTrainedModel], ...]
    note: str = ""
    refused: dict[type[PreTrainedModel], str] = field(default_factory=dict)

    @property
    def native_config(self) -> type[PreTrainedConfig]:
        return native_class(self.config)

    @property
    def name(self) -> str:
        return self.native_config.model_type


FAMILIES: dict[str, Family] = {}
_accelerated: dict[type, type] = {}


def native_class(cls: type) -> type | None:
    """The class that an accelerated class stands for, of Transformers or else our own; None where there is none."""
    return cls.__dict__["native_class"] if "native_class" in cls.__dict__ else _transformers_base(cls)


def _transformers_base(cls: type) -> type:
    return next(base for base in cls.__mro__ if base.__module__.startswith("transformers.models."))


def holds_setting(config: object) -> bool:
    """Whether a configuration is of a class of ours, whose `accel` means something."""
    return hasattr(type(config), "resolve_accel")


def is_accelerated(cls: type) -> bool:
    """Whether a class is, or derives from, the accelerated counterpart of another."""
    return not _accelerated_classes().isdisjoint(cls.__mro__)


def _accelerated_classes() -> set[type]:
    return set(_accelerated.values())


def accelerated_class(native: type) -> type | None:
    """The accelerated counterpart of a native class; None if there is none."""
    return _accelerated.get(native)


def register_family(
    config: type[PreTrainedConfig],
    models: tuple[type[PreTrainedModel], ...],
    parts: tuple[type[nn.Module], ...] = (),
    note: str = "",
    refused: dict[type[PreTrainedModel], str] | None = None,
    also: dict[type[_BaseAutoModelClass], type[PreTrainedModel]] | None = None,
) -> None:
    """Makes a family known: here, to the Auto classes, to checkpoint conversion and to image processors.

    Args:
        config: accelerated configuration class, derived from the native one, with its own `model_type`.
        models: accelerated model classes that a user may load.
        parts: accelerated classes of inner modules.
        note: for the support table.
        refused: see `Family`.
        also: what further Auto classes load, for pipelines that look there for a class which is not of Transformers.
    """
    family = Family(config, models, note, refused or {})
    FAMILIES[family.name] = family
    for cls in (config, *models, *parts):
        if native_class(cls) is not None:
            _accelerated[native_class(cls)] = cls
    AutoConfig.register(config.model_type, config, exist_ok=True)
    register_conversions(config.model_type, family.name)
    for cls in (*models, *parts):
        if issubclass(cls, PreTrainedModel):
            register_conversions(cls.__name__, (native_class(cls) or _transformers_base(cls)).__name__)
    _register_auto_models(family)
    _register_image_processor(family)
    for auto_class, cls in (also or {}).items():
        auto_class.register(config, cls, exist_ok=True)


def register_conversions(name: str, native_name: str) -> None:
    """Without this a checkpoint with key names of Transformers 4 loads as random weights; only a log line tells."""
    conversions = get_checkpoint_conversion_mapping(native_name)
    if conversions is not None:
        register_checkpoint_conversion_mapping(name, conversions, overwrite=True)


def auto_models_of(config: type[PreTrainedConfig]) -> dict[type, tuple[type[PreTrainedModel], ...]]:
    """The model classes that each Auto class loads for a native configuration."""
    auto_classes = {
        cls
        for cls in vars(modeling_auto).values()
        if isinstance(cls, type) and issubclass(cls, _BaseAutoModelClass) and cls._model_mapping is not None
    }
    found = {cls: cls._model_mapping.get(config, None) for cls in {AutoModel, *auto_classes}}
    return {cls: tuple(m) if isinstance(m, (tuple, list)) else (m,) for cls, m in found.items() if m is not None}


def _register_auto_models(family: Family) -> None:
    for auto_class, candidates in auto_models_of(family.native_config).items():
        ours = tuple(accelerated_class(c) for c in candidates if accelerated_class(c) in family.models)
        if ours:
            # Of several, Auto classes pick the one that `architectures` in config.json names.
            auto_class.register(family.config, ours if len(ours) > 1 else ours[0], exist_ok=True)
            tell_pipelines(auto_class, family.config.model_type, ours)
    for cls in family.models:
        if issubclass(cls, BackboneMixin):
            AutoBackbone.register(family.config, cls, exist_ok=True)


def tell_pipelines(auto_class: type, model_type: str, models: tuple[type[PreTrainedModel], ...]) -> None:
    """Pipelines know models by name: of others they log that these are not supported, and run them all the same."""
    auto_class._model_mapping._model_mapping.setdefault(model_type, tuple(cls.__name__ for cls in models))


def _register_image_processor(family: Family) -> None:
    """So that a folder whose preprocessor_config.json lacks the processor's type still loads."""
    processors = IMAGE_PROCESSOR_MAPPING.get(family.native_config, None)
    if processors:
        AutoImageProcessor.register(family.config, image_processor_classes=processors, exist_ok=True)


def unsupported(what: str) -> ValueError:
    """The error for a host that cannot be accelerated: it lists those that can, and what to do."""
    return ValueError(
        f"{what} cannot be accelerated. Supported model types: {', '.join(sorted(FAMILIES))}, and every model whose "
        "backbone_config is one of these with a Backbone class. For example load a 'dpt' or 'depth_anything' "
        "checkpoint, or describe the new family in one file: see 'Adding a family' in README.md."
    )


def support_table() -> str:
    """The supported families as a Markdown table; README and docs show it as printed here."""
    lines = ["| model type | classes | notes |", "| --- | --- | --- |"]
    for name, family in sorted(FAMILIES.items()):
        classes = ", ".join(f"`{cls.__name__}`" for cls in family.models)
        lines.append(f"| `{name}` | {classes} | {family.note} |")
    return "\n".join(lines)
