"""What accelerated configuration classes share."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any
from weakref import WeakValueDictionary

from transformers import PreTrainedConfig

from ..checks import UserError, as_pair, require
from ..registry import FAMILIES, accelerated_class, native_class, unsupported
from ..settings.clustering import SIMILARITIES, TokenClusteringConfig
from ..settings.methods import as_accel
from ..settings.stored import StoredSetting
from ..upstream import is_initialized
from .blocks import Block, Encoder, Grid

# Configurations of built models by identity; an attribute would be copied and saved along.
_in_use: WeakValueDictionary[int, AcceleratedConfig] = WeakValueDictionary()


@dataclass(kw_only=True, init=False, repr=False, eq=False)
class SettingConfig:
    """A configuration with a setting; the second base is the host's own class.

    Attributes:
        accel: the setting as a plain dict, or None; a dataclass is accepted and stored as a dict, nothing left open.
    """

    accel: dict | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Also reached by from_pretrained(..., accel=...), which assigns after construction, and ahead of the strict
        # checks of Transformers, whose errors are no ValueError.
        if name == "accel":
            value = self.stored_accel(value)
            value = value if value is None else StoredSetting(value)
        if name == "accel" and self._is_in_use() and value != self.accel:
            raise _cannot_change(f"accel={value!r} cannot be assigned to")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name == "accel" and self._is_in_use():
            raise _cannot_change("accel cannot be taken from")
        super().__delattr__(name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(state.get("accel"), dict):  # which a copy has as a plain dict
            self.__dict__["accel"] = StoredSetting(state["accel"])

    def __post_init__(self, **kwargs: Any) -> None:
        # A native folder's model_type arrives here and would shadow this class's own.
        kwargs.pop("model_type", None)
        super().__post_init__(**kwargs)
        # The number of blocks is known only now.
        self.accel = self.accel

    @property
    def accel_knows_host(self) -> bool:
        """Whether the host's own fields are there to check a setting against."""
        # From there on its sub-configs and depth are known.
        return is_initialized(self)

    def stored_accel(self, value: Any) -> dict | None:
        """What is stored of a setting that a user gives."""
        return None if value is None else self.resolve_accel(value).to_dict()

    def _is_in_use(self) -> bool:
        return _in_use.get(id(self)) is self

    def mark_in_use(self) -> None:
        """Called by a model that is built with this configuration: from then on `accel` stands."""
        _in_use[id(self)] = self

    def accel_view(self) -> Any:
        """The setting as a dataclass."""
        return as_accel(self.accel)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing; see `hub.ShimMixin.register_for_auto_class`."""


def _cannot_change(what: str) -> UserError:
    return UserError(
        f"{what} the configuration of a built model, which would ignore it: use model = "
        "hf_tokaccel.accelerate(model, accel), or accelerate_config(config, accel) for a new one."
    )


class SettingModel:
    """Base of every model whose configuration has a setting: from then on that stands, in copies of the model too."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self.config, SettingConfig):
            self.config.mark_in_use()


@dataclass(kw_only=True, init=False, repr=False, eq=False)
class AcceleratedConfig(SettingConfig):
    """First base of every configuration of a host with clusters; the second is the host's own class.

    Attributes:
        accel_host_path: dotted path of the configuration that is accelerated, such as `"backbone_config"`; None for
            this one.
        accel_host_types: model types that may lie there; empty for every supported one.
        accel_expansion: the expansion that was released for this family, or fits it best where none was.
        accel_normalization: likewise.
        accel_similarities: what tokens of this family can be compared on, see `similarity_on`.
        accel_decodes_clusters: whether this family has a decoder that can run on clusters, see `decode_clusters`.
        accel_decodes_change: whether that decoder has blocks, whose change `expansion="delta"` can add to the tokens.
        accel_fixed_image_size: whether forward accepts only `image_size` unless told otherwise.
        accel_unit: what is clustered together, in words for error messages.
        accel_prefix: tokens before the patches, which bypass clustering.
        accel_prefix_field: name of the host's field that says how many there are besides, such as registers.
    """

    accel_host_path = None
    accel_host_types = ()
    accel_expansion = "soft"
    accel_normalization = "l2"
    accel_similarities = SIMILARITIES
    accel_decodes_clusters = False
    accel_decodes_change = False
    accel_fixed_image_size = False
    accel_unit = "the image"
    accel_prefix = 1
    accel_prefix_field = None

    def accel_host(self) -> PreTrainedConfig:
        """The configuration of the transformer that is accelerated: this one, or that of its backbone.

        Raises:
            ValueError: when that backbone is not supported.
        """
        if self.accel_host_path is None:
            return self
        host = attrgetter(self.accel_host_path)(self)
        kind, types = getattr(host, "model_type", None), self.accel_host_types
        if kind not in types if types else kind not in FAMILIES:
            instead = f" instead of {' or '.join(map(repr, types))}" if types else ""
            raise unsupported(f"{native_class(type(self)).model_type!r} on a {kind!r} backbone{instead}")
        return host

    # What follows describes a host of this family, which may be native. The defaults are those of a plain ViT.

    @classmethod
    def accel_prefix_of(cls, host: PreTrainedConfig) -> int:
        """Tokens before the patches."""
        return cls.accel_prefix + (getattr(host, cls.accel_prefix_field) if cls.accel_prefix_field else 0)

    @staticmethod
    def accel_window(host: PreTrainedConfig) -> int | None:
        """Side, in tokens, of the attention windows that are clustered on their own."""
        return None

    @staticmethod
    def accel_parts(host: PreTrainedConfig) -> int:
        """Parts, a side, that images lie in the batch dimension as; each is clustered on its own."""
        return 1

    @staticmethod
    def accel_slices(host: PreTrainedConfig) -> int | None:
        """Slices of a video, each of which is clustered on its own; None for images."""
        return None

    @classmethod
    def accel_map(cls, host: PreTrainedConfig, image_size: Grid) -> Grid:
        """(H, W) patch tokens of images (height, width) in pixels."""
        patch = as_pair(host.patch_size)
        return image_size[0] // patch[0], image_size[1] // patch[1]

    @classmethod
    def accel_grid(cls, host: PreTrainedConfig, image_size: Grid) -> Grid:
        """(H, W) tokens that are clustered together, for images (height, width) in pixels."""
        window, parts = cls.accel_window(host), cls.accel_parts(host)
        if window is not None:
            return window, window
        height, width = cls.accel_map(host, image_size)
        return height // parts, width // parts

    @classmethod
    def accel_steps(cls, host: PreTrainedConfig) -> Grid | None:
        """(height, width) in pixels that images must be multiples of; None where any size is padded."""
        parts = cls.accel_parts(host)
        return tuple(parts * side for side in as_pair(host.patch_size))

    @classmethod
    def accel_windowed(cls, host: PreTrainedConfig) -> Collection[int]:
        """Blocks whose attention stays within windows or parts."""
        return ()

    @staticmethod
    def accel_relative(host: PreTrainedConfig) -> bool:
        """Whether attention adds products with relative positions."""
        return False

    @classmethod
    def accel_adaptive(cls, host: PreTrainedConfig) -> bool:
        """Whether blocks can run on clusters of free shape: where nothing needs the clusters to be a grid."""
        return cls.accel_window(host) is None and cls.accel_parts(host) == 1 and not cls.accel_relative(host)

    @classmethod
    def accel_mlp(cls, host: PreTrainedConfig) -> int:
        """Multiplications of a block's MLP for a token."""
        hidden = getattr(host, "intermediate_size", None) or int(host.hidden_size * host.mlp_ratio)
        return 2 * host.hidden_size * hidden

    @classmethod
    def accel_encoder(cls, host: PreTrainedConfig, image_size: Grid) -> Encoder:
        """The blocks of a host for images (height, width) in pixels, from which FLOPs are counted."""
        window, parts, slices = cls.accel_window(host), cls.accel_parts(host), cls.accel_slices(host) or 1
        size, grid = cls.accel_map(host, image_size), cls.accel_grid(host, image_size)
        block = Block(
            width=host.hidden_size,
            mlp=cls.accel_mlp(host),
            grid=grid,
            units=-(-size[0] // grid[0]) * -(-size[1] // grid[1]) * slices,
            tokens=size[0] * size[1] * slices,
            prefix=cls.accel_prefix_of(host) * parts**2,
            relative=size if cls.accel_relative(host) else None,
        )
        windowed, depth = cls.accel_windowed(host), host.num_hidden_layers
        blocks = tuple(replace(block, windowed=index in windowed) for index in range(depth))
        return Encoder(blocks, spans=((0, depth),), square=window is not None)

    @classmethod
    def fit_accel(cls, setting: TokenClusteringConfig, host: PreTrainedConfig) -> TokenClusteringConfig:
        """Checks a setting against a host of this family, and fills what depends on its blocks.

        Raises:
            ValueError: when it does not fit the number of blocks or the attention windows.
        """
        setting.check_depth(host.num_hidden_layers)
        setting.check_no_mask_shift()
        window = cls.accel_window(host)
        if window is not None:
            setting.check_window_grid(window)
        return setting

    def resolve_accel(self, accel: Any) -> TokenClusteringConfig:
        """Checks a setting against this model and fills what was left open.

        Raises:
            ValueError: when it is not valid, or does not fit the number of blocks or the attention windows.
        """
        setting = as_accel(accel)
        if not isinstance(setting, TokenClusteringConfig):
            raise UserError(
                f"method={setting.method!r} is not valid for model type {self.model_type!r}, which clusters tokens: "
                "use accelerate_config(config, accel) on the plain configuration, which finds the type that fits."
            )
        if self.accel_knows_host:
            host = self.accel_host()
            if not family_of(host).accel_adaptive(host):
                setting.check_no_clusters(host.model_type)
            setting = family_of(host).fit_accel(setting, host)
        setting = setting.resolve(self.accel_expansion, self.accel_normalization, self.accel_decodes_clusters)
        without_effect = setting.decode_clusters and setting.expansion == "delta" and not self.accel_decodes_change
        allowed = "None or False with expansion='delta' for this model, whose decoder has no blocks"
        require(not without_effect, "decode_clusters", setting.decode_clusters, allowed, False)
        return setting


def check_multiple(sides: Grid, steps: Grid, windows: int = 1) -> None:
    """Raises ValueError where images (height, width) are no multiples of these steps.

    Args:
        sides: of the images.
        steps: what they must be multiples of.
        windows: how many of them a side has, which are in the steps, for the message.
    """
    if any(side < step or side % step for side, step in zip(sides, steps, strict=True)):
        nearest = tuple(max(1, round(side / step)) * step for side, step in zip(sides, steps, strict=True))
        parts = "" if windows == 1 else f"times {windows} windows, "
        raise UserError(
            f"image size {tuple(sides)} is not valid: while accelerated, height and width must be multiples of the "
            f"patch size {parts}{steps}, for example {nearest}; or switch acceleration off with "
            "accelerate(model, None)."
        )


def family_of(host: PreTrainedConfig) -> type[AcceleratedConfig]:
    """The accelerated configuration class of a host, native or accelerated."""
    return type(host) if isinstance(host, AcceleratedConfig) else accelerated_class(type(host)) or AcceleratedConfig


def stored_accel(config: PreTrainedConfig) -> dict | None:
    """A copy of the accelerated setting in a configuration or in that of its backbone.

    A plain configuration has none, though one that was read from a folder of ours may carry it along.
    """
    owners = (config, getattr(config, "backbone_config", None))
    settings = (owner.accel for owner in owners if isinstance(owner, SettingConfig) and owner.accel)
    return copy.deepcopy(next(settings, None))
