"""What models with semantic tokens share: their configurations, loading from plain checkpoints, registration."""

import copy
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneMixin

from ..checks import UserError
from ..discovery import FoundByName, family_modules
from ..hosts.config import AcceleratedConfig, SettingConfig, SettingModel
from ..hosts.convert import convert_config
from ..hub.shim import ShimMixin
from ..registry import register_types
from ..settings.methods import as_accel
from ..settings.semantic import SemanticTokenConfig
from .layers import initialize_layer_scale
from .pooling import initialize_centers

_LISTED = 8  # parameters that a warning names


class SemanticConfig(SettingConfig):
    """First base of every configuration with semantic tokens; the second is the host's own class.

    `accel` is never None: without semantic tokens the model is the host's.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        if self.accel is None:
            self.accel = SemanticTokenConfig()
        super().__post_init__(**kwargs)

    def stored_accel(self, value: Any) -> dict | None:
        if value is None and self.accel_knows_host:
            raise UserError(
                f"accel=None is not valid for model type {self.model_type!r}, whose weights are trained with their "
                "semantic tokens: give its setting, for example accel={'method': 'semantic_tokens'}, or load a plain "
                "model of the same size."
            )
        return super().stored_accel(value)

    def resolve_accel(self, accel: Any) -> SemanticTokenConfig:
        """Checks a setting against this model and fills what was left open.

        Raises:
            ValueError: when it is not valid, or does not fit the layers of this model.
        """
        setting = as_accel(accel)
        if not isinstance(setting, SemanticTokenConfig):
            raise UserError(
                f"method={setting.method!r} is not valid for model type {self.model_type!r}, which runs on semantic "
                "tokens: give for example accel={'method': 'semantic_tokens', 'generation_layers': 2}."
            )
        return self.fit_accel(setting) if self.accel_knows_host else setting

    def fit_accel(self, setting: SemanticTokenConfig) -> SemanticTokenConfig:
        """Fills what the family decides, and checks the result against the layers of this model.

        Raises:
            ValueError: when it does not fit.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SemanticFamily:
    """One host that can run on semantic tokens.

    Attributes:
        config: the configuration class with semantic tokens.
        models: by the host's own class, the class with semantic tokens that takes its weights.
        adapt: takes parameters of the host by name, and the new model, to parameters of the latter; drops what it has
            no use for.
    """

    config: type[PreTrainedConfig]
    models: Mapping[type[PreTrainedModel], type[PreTrainedModel]]
    adapt: Callable[[dict[str, Tensor], PreTrainedModel], dict[str, Tensor]]


def _modules(host: str = "") -> list[str]:
    return [name for name in family_modules() if name.startswith("stvit")]


# By the host's model type, which the names of these modules do not say.
SEMANTIC: FoundByName[SemanticFamily] = FoundByName(_modules, _modules)


@dataclass(frozen=True)
class Initialization:
    """Where the parameters of a new model with semantic tokens come from.

    Attributes:
        initialized: names of parameters that a plain model gave.
        untrained: names of those that are random, or at their initial value.
        unused: the plain model's names that nothing here corresponds to.
    """

    initialized: list[str]
    untrained: list[str]
    unused: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.initialized)} parameters come from the plain model"]
        parts.append(f"{len(self.untrained)} are untrained ({_some(self.untrained)})")
        parts.append(f"{len(self.unused)} of the plain model are not used ({_some(self.unused)})")
        return "; ".join(parts)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) + more) or "none"


class SemanticModel(SettingModel, ShimMixin):
    """First base of every model class with semantic tokens."""

    native_class: type[PreTrainedModel] | None = None

    def post_init(self) -> None:
        self.config.mark_in_use()
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize_layer_scale(module)
        initialize_centers(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As in Transformers; of a plain checkpoint of the host every parameter that fits is taken.

        Warns:
            UserWarning: for a plain checkpoint, with the parameters that are untrained.

        Raises:
            ValueError: when this class can neither load the checkpoint nor start from it.
        """
        source = _source_config(pretrained_model_name_or_path, kwargs)
        model_type = source.get("model_type")
        family = SEMANTIC.get(model_type)
        if family is None:
            if model_type not in (None, cls.config_class.model_type):
                raise UserError(
                    f"{pretrained_model_name_or_path!r} is of model type {model_type!r}, which {cls.__name__} cannot "
                    f"load. Supported: {cls.config_class.model_type}, and to start from {', '.join(sorted(SEMANTIC))}."
                )
            return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        natives = [native for native, ours in family.models.items() if ours is cls]
        if not natives:
            raise UserError(
                f"{cls.__name__} cannot be initialised from {pretrained_model_name_or_path!r}, of model type "
                f"{source['model_type']!r}: use one of {', '.join(c.__name__ for c in family.models.values())}."
            )
        named = [native for native in natives if native.__name__ in (source.get("architectures") or ())]
        return _from_plain(cls, (named or natives)[0], pretrained_model_name_or_path, args, config, kwargs)


def _source_config(name: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of what is to be loaded, where there is one."""
    hub = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
    try:
        return PreTrainedConfig.get_config_dict(name, **{key: kwargs[key] for key in hub if key in kwargs})[0]
    except OSError:
        # Transformers says better what is missing.
        return {}


def _from_plain(cls: type, native_class: type, name: Any, args: tuple, config: Any, kwargs: dict[str, Any]) -> Any:
    accel = kwargs.pop("accel", None)
    wants_info = kwargs.pop("output_loading_info", False)
    if isinstance(config, SemanticConfig):
        accel = config.accel if accel is None else accel
        config = plain_config(config, native_class.config_class)
    # What only our configuration knows, such as drop_path_rate: kept by the host's as it keeps any other name.
    fields = {
        name for name in cls.config_class.__dataclass_fields__ if name not in native_class.config_class().to_dict()
    }
    extra = {name: kwargs.pop(name) for name in fields & kwargs.keys()}
    native, info = native_class.from_pretrained(name, *args, config=config, output_loading_info=True, **kwargs)
    native.config.update(extra)
    setting = SemanticTokenConfig() if accel is None else accel
    model, report = _initialize(native, setting, missing=info["missing_keys"])
    _warn(model, report)
    return (model, info) if wants_info else model


def plain_config(config: PreTrainedConfig, cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The host's own configuration with the values of one with semantic tokens."""
    return convert_config(config, cls, without=("architectures",))


def semantic_config(config: PreTrainedConfig, accel: SemanticTokenConfig) -> PreTrainedConfig:
    """The configuration with semantic tokens for that of a host, or of a head on one, which is left as it was.

    Raises:
        ValueError: when the host is not supported or the setting does not fit.
    """
    family = SEMANTIC.get(type(config).model_type)
    backbone = getattr(config, "backbone_config", None)
    if isinstance(backbone, PreTrainedConfig) and not isinstance(config, AcceleratedConfig):
        head = copy.deepcopy(config)
        head.backbone_config = semantic_config(backbone, accel)
        return head
    if isinstance(config, SemanticConfig):
        cls = type(config)
    elif isinstance(config, AcceleratedConfig):
        raise UserError(
            f"model type {config.model_type!r} clusters tokens and cannot run on semantic tokens too: give the plain "
            "configuration or model, see hf_tokaccel.to_native and to_native_config."
        )
    elif family is None:
        raise UserError(
            f"model type {config.model_type!r} cannot run on semantic tokens. Supported: "
            f"{', '.join(sorted(SEMANTIC))}, and heads with such a backbone_config; for example a 'vit' or 'swin' "
            "configuration."
        )
    else:
        cls = family.config
    return convert_config(config, cls, without=("architectures",), accel=accel)


def initialize(model: PreTrainedModel, accel: SemanticTokenConfig | dict) -> tuple[PreTrainedModel, Initialization]:
    """A new model with semantic tokens and every parameter that a plain model can give it (copied), to be trained.

    Args:
        model: a plain model of a supported host.
        accel: the setting.

    Warns:
        UserWarning: always, with the parameters that are untrained.

    Raises:
        ValueError: when the model is not supported or the setting does not fit.
    """
    new, report = _initialize(model, accel)
    _warn(new, report)
    return new, report


def _warn(model: PreTrainedModel, report: Initialization) -> None:
    warnings.warn(
        f"{type(model).__name__} is not trained yet: {report}. Layers that come from the plain model were trained on "
        "all tokens, so train it, for example with examples/train_semantic_tokens.py.",
        stacklevel=4,
    )


def _initialize(
    model: PreTrainedModel, accel: SemanticTokenConfig | dict, missing: Collection[str] = ()
) -> tuple[PreTrainedModel, Initialization]:
    """See `initialize`; `missing` names parameters that are random in the plain model too."""
    if isinstance(model, SemanticModel):
        raise UserError(
            f"{type(model).__name__} runs on the semantic tokens that it was built for: give a plain model to use "
            "another setting."
        )
    config = semantic_config(model.config, as_accel(accel))
    new = _counterpart(model)(config).to(device=model.device, dtype=model.dtype)
    given = {name: value for name, value in model.state_dict().items() if name not in missing}
    adapted = _adapted(given, model, new)
    own = new.state_dict()
    fits = {name: value for name, value in adapted.items() if name in own and own[name].shape == value.shape}
    new.load_state_dict(fits, strict=False)
    new.train(model.training)
    parameters = dict(new.named_parameters())
    used = [name for name, value in given.items() if any(_part_of(part, value) for part in fits.values())]
    report = Initialization(
        initialized=sorted(name for name in fits if name in parameters),
        untrained=sorted(name for name in parameters if name not in fits),
        unused=sorted(given.keys() - used),
    )
    return new, report


def _counterpart(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class that takes a plain model's place; a head reaches its backbone through AutoBackbone."""
    family = SEMANTIC.get(type(model.config).model_type)
    if family is None:
        return type(model)
    cls = family.models.get(type(model))
    if cls is None:
        names = ", ".join(sorted(native.__name__ for native in family.models))
        raise UserError(f"{type(model).__name__} cannot run on semantic tokens: use one of {names}.")
    return cls


def _adapted(given: dict[str, Tensor], model: PreTrainedModel, new: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters of a plain model under the names of the new one, whose backbone may be what has semantic tokens."""
    if isinstance(new, SemanticModel):
        return SEMANTIC[type(model.config).model_type].adapt(dict(given), new)
    adapt = SEMANTIC[type(model.config.backbone_config).model_type].adapt
    backbones = [(name, part) for name, part in new.named_modules() if type(part) in _backbone_classes()]
    adapted = dict(given)
    for path, part in backbones:
        own = {name: adapted.pop(name) for name in given if name.startswith(f"{path}.")}
        inner = adapt({name.removeprefix(f"{path}."): value for name, value in own.items()}, part)
        adapted |= {f"{path}.{name}": value for name, value in inner.items()}
    return adapted


def _backbone_classes() -> set[type]:
    return {cls for family in SEMANTIC.values() for cls in family.models.values() if issubclass(cls, BackboneMixin)}


def _part_of(part: Tensor, whole: Tensor) -> bool:
    """Whether a tensor is a view of another one, which `adapt` may have renamed."""
    start = whole.data_ptr()
    return start <= part.data_ptr() < start + whole.numel() * whole.element_size()


def register_semantic_family(host: str, family: SemanticFamily) -> None:
    """Makes a host known: here, to the Auto classes and to image processors.

    Checkpoint conversion has no part in it: key names of Transformers 4 are the host's, whose class loads them.
    """
    SEMANTIC[host] = family
    register_types(family.config, next(iter(family.models)).config_class, family.models)
