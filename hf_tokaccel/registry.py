"""The table of supported families, from which Auto classes, conversions, `accelerate` and the docs follow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.utils import logging

from .checks import UserError
from .discovery import PREFIX, FoundByName, import_family_of
from .upstream import auto_classes, auto_models, image_processors, register_conversions, tell_pipelines


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

    @property
    def adaptive(self) -> bool | None:
        """Whether a model of the family takes adaptive clusters, as its configuration is by default.

        None where that depends on the backbone, and the default one cannot be accelerated.
        """
        with _quiet():
            config = self.config()
        try:
            host = config.accel_host()
        except UserError:
            return None
        return (accelerated_class(type(host)) or type(host)).accel_adaptive(host)


@contextmanager
def _quiet() -> Iterator[None]:
    """What Transformers has to say of default configurations, which are not the user's, is left out."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


# By the host's model type.
FAMILIES: FoundByName[Family] = FoundByName()
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
    if native not in _accelerated:
        import_family_of(native)
    return _accelerated.get(native)


def register_family(
    config: type[PreTrainedConfig],
    models: tuple[type[PreTrainedModel], ...],
    parts: tuple[type[nn.Module], ...] = (),
    note: str = "",
    refused: dict[type[PreTrainedModel], str] | None = None,
    also: dict[type, type[PreTrainedModel]] | None = None,
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
    register_conversions(config.model_type, family.name)
    for cls in (*models, *parts):
        if issubclass(cls, PreTrainedModel):
            register_conversions(cls.__name__, (native_class(cls) or _transformers_base(cls)).__name__)
    register_types(config, family.native_config, {native_class(cls) or cls: cls for cls in models})
    for auto_class, cls in (also or {}).items():
        auto_class.register(config, cls, exist_ok=True)


def register_types(
    config: type[PreTrainedConfig],
    native_config: type[PreTrainedConfig],
    models: Mapping[type[PreTrainedModel], type[PreTrainedModel]],
) -> None:
    """Tells the Auto classes, pipelines and image processors of a configuration class and the models that it makes.

    Args:
        config: the class.
        native_config: the class whose place it takes in them.
        models: its model classes, each by the one whose place it takes, or by itself.
    """
    AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto_class, natives in auto_models_of(native_config).items():
        # Of several, Auto classes pick the one that `architectures` in config.json names.
        ours = tuple(dict.fromkeys(models[native] for native in natives if native in models))
        if ours:
            auto_class.register(config, ours if len(ours) > 1 else ours[0], exist_ok=True)
            tell_pipelines(auto_class, config.model_type, ours)
    for cls in models.values():
        if issubclass(cls, BackboneMixin):
            AutoBackbone.register(config, cls, exist_ok=True)
    # So that a folder whose preprocessor_config.json lacks the processor's type still loads.
    processors = image_processors(native_config)
    if processors:
        AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)


def auto_models_of(config: type[PreTrainedConfig]) -> dict[type, tuple[type[PreTrainedModel], ...]]:
    """The model classes that each Auto class loads for a native configuration."""
    found = {auto_class: auto_models(auto_class, config) for auto_class in auto_classes()}
    return {auto_class: models for auto_class, models in found.items() if models}


def accelerated_models_of(config: type[PreTrainedConfig]) -> tuple[type[PreTrainedModel], ...]:
    """The accelerated model classes of a configuration class, native or accelerated; none where there is no family."""
    family = FAMILIES.get(config.model_type.removeprefix(PREFIX))
    return () if family is None else family.models


def unsupported(what: str) -> UserError:
    """The error for a host that cannot be accelerated: it lists those that can, and what to do."""
    return UserError(
        f"{what} cannot be accelerated. Supported model types: {', '.join(sorted(FAMILIES))}, and every model whose "
        "backbone_config is one of these with a Backbone class. For example load a 'dpt' or 'depth_anything' "
        "checkpoint, or describe the new family in one file: see 'Adding a family' in README.md."
    )


def support_table() -> str:
    """The supported families as a Markdown table; README and docs show it as printed here."""
    said = {True: "yes", False: "no", None: "as its backbone"}
    lines = ["| model type | classes | adaptive clusters | notes |", "| --- | --- | --- | --- |"]
    for name, family in sorted(FAMILIES.items()):
        classes = ", ".join(f"`{cls.__name__}`" for cls in family.models)
        lines.append(f"| `{name}` | {classes} | {said[family.adaptive]} | {family.note} |")
    return "\n".join(lines)
