"""Every private or undocumented name of Transformers that this package uses.

A new version of Transformers may change these without notice, so this is the first place to look at then. What only
one family uses, of the modeling module of its own host, stays with that family. `discovery` needs this module while
Transformers is being imported, so all imports here are late.
"""

import importlib
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .lazy import lazy_names

if TYPE_CHECKING:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.utils.output_capturing import CompileableContextVar, capture_outputs

__all__ = ["ALL_ATTENTION_FUNCTIONS", "CompileableContextVar", "capture_outputs"]

_CAPTURING = "transformers.utils.output_capturing"
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ALL_ATTENTION_FUNCTIONS": "transformers.modeling_utils",
        "CompileableContextVar": _CAPTURING,
        "capture_outputs": _CAPTURING,
    },
)

# The attribute by which a model remembers that it has put hooks on its parts, to record what they output.
HOOKS_INSTALLED = "_output_capturing_hooks_installed"


def registered_types(config_mapping: Any) -> MutableMapping[str, type]:
    """What `AutoConfig.register` fills: configuration classes by model type."""
    return config_mapping._extra_content


def set_registered_types(config_mapping: Any, registered: MutableMapping[str, type]) -> None:
    """Puts another mapping in the place of `registered_types`."""
    config_mapping._extra_content = registered


def is_auto_class(cls: Any) -> bool:
    """Whether something is one of the Auto classes of models."""
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    return isinstance(cls, type) and issubclass(cls, _BaseAutoModelClass)


def auto_classes() -> list[type]:
    """The Auto classes of models, AutoModel and AutoBackbone among them."""
    from transformers.models.auto import modeling_auto

    found = (cls for cls in vars(modeling_auto).values() if is_auto_class(cls) and cls._model_mapping is not None)
    return list(dict.fromkeys(found))


def auto_models(auto_class: type, config: type) -> tuple[type, ...]:
    """The model classes that an Auto class knows for a configuration class."""
    models = auto_class._model_mapping.get(config, None) or ()
    return tuple(models) if isinstance(models, (tuple, list)) else (models,)


def tell_pipelines(auto_class: type, model_type: str, models: tuple[type, ...]) -> None:
    """Pipelines know models by name: of others they log that these are not supported, and run them all the same."""
    auto_class._model_mapping._model_mapping.setdefault(model_type, tuple(cls.__name__ for cls in models))


def image_processors(config: type) -> dict[str, type] | None:
    """The image processor classes for a configuration class, by backend."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    return IMAGE_PROCESSOR_MAPPING.get(config, None)


def register_conversions(name: str, native_name: str) -> None:
    """Lets a model type or class convert checkpoints as another does.

    Without this a checkpoint with key names of Transformers 4 loads as random weights; only a log line tells.
    """
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    conversions = get_checkpoint_conversion_mapping(native_name)
    if conversions is not None:
        register_checkpoint_conversion_mapping(name, conversions, overwrite=True)


def copy_attention(source: Any, target: Any) -> None:
    """Copies the attention implementation of a configuration, its sub-configurations left alone.

    The public property would spread that of a head to its backbone.
    """
    target._attn_implementation_internal = source._attn_implementation_internal


def attention_of(config: Any) -> str:
    """Name of the attention implementation that a model of this configuration runs."""
    return config._attn_implementation


def can_set_attention(model: Any, implementation: str) -> bool:
    """Whether a model, or a model inside of another, can be told to run "eager" or "sdpa" attention."""
    return model._can_set_attn_implementation() and (implementation == "eager" or model._supports_sdpa)


def is_initialized(config: Any) -> bool:
    """Whether the `__post_init__` of Transformers has run on a configuration, after that of the host's class."""
    return "_name_or_path" in vars(config)


_uncached = threading.RLock()


@contextmanager
def uncached() -> Iterator[None]:
    """Inside, functions of Transformers that keep the tensors of their last calls neither use nor keep any.

    Fake ones, or those of an inference mode, would be met by models that run later.
    """
    module = importlib.import_module("transformers.pytorch_utils")
    with _uncached:
        before = module.is_torchdynamo_compiling
        module.is_torchdynamo_compiling = lambda: True
        try:
            yield
        finally:
            module.is_torchdynamo_compiling = before
