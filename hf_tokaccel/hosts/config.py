"""What accelerated configuration classes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from transformers import PreTrainedConfig

from ..checks import as_pair, require
from ..registry import FAMILIES, accelerated_class, native_class, unsupported
from ..settings.clustering import SIMILARITIES, TokenClusteringConfig
from ..settings.methods import as_accel

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
        if name == "accel" and _in_use.get(id(self)) is self and value != self.accel:
            raise ValueError(
                f"accel={value!r} cannot be assigned to the configuration of a built model, which would ignore it: "
                "use model = hf_tokaccel.accelerate(model, accel), or accelerate_config(config, accel) for a new one."
            )
        super().__setattr__(name, value)

    def __post_init__(self, **kwargs: Any) -> None:
        # A native folder's model_type arrives here and would shadow this class's own.
        kwargs.pop("model_type", None)
        super().__post_init__(**kwargs)
        # The number of blocks is known only now.
        self.accel = self.accel

    @property
    def accel_knows_host(self) -> bool:
        """Whether the host's own fields are there to check a setting against."""
        # Set by the host's __post_init__: from there on its sub-configs and depth are known.
        return "_name_or_path" in self.__dict__

    def stored_accel(self, value: Any) -> dict | None:
        """What is stored of a setting that a user gives."""
        return None if value is None else self.resolve_accel(value).to_dict()

    def mark_in_use(self) -> None:
        """Called by a model that is built with this configuration: from then on `accel` stands."""
        _in_use[id(self)] = self

    def accel_view(self) -> Any:
        """The setting as a dataclass."""
        return as_accel(self.accel)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing; see `hub.ShimMixin.register_for_auto_class`."""


@dataclass(kw_only=True, init=False, repr=False, eq=False)
class AcceleratedConfig(SettingConfig):
    """First base of every configuration of a host with clusters; the second is the host's own class.

    Attributes:
        accel_expansion: the expansion that was released for this family, or fits it best where none was.
        accel_normalization: likewise.
        accel_similarities: what tokens of this family can be compared on, see `similarity_on`.
        accel_decodes_clusters: whether this family has a decoder that can run on clusters, see `decode_clusters`.
        accel_decodes_change: whether that decoder has blocks, whose change `expansion="delta"` can add to the tokens.
        accel_fixed_image_size: whether forward accepts only `image_size` unless told otherwise.
        accel_unit: what is clustered together, in words for error messages.
    """

    accel_expansion = "soft"
    accel_normalization = "l2"
    accel_similarities = SIMILARITIES
    accel_decodes_clusters = False
    accel_decodes_change = False
    accel_fixed_image_size = False
    accel_unit = "the image"

    def accel_host(self) -> PreTrainedConfig:
        """The configuration of the transformer that is accelerated: this one, or that of its backbone."""
        return self

    @staticmethod
    def accel_window(host: PreTrainedConfig) -> int | None:
        """Side, in tokens, of the attention windows of a host of this family that are clustered on their own."""
        return None

    @classmethod
    def accel_grid(cls, host: PreTrainedConfig, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) tokens that a host of this family clusters together, for images (height, width) in pixels."""
        window = cls.accel_window(host)
        if window is not None:
            return window, window
        patch = as_pair(host.patch_size)
        return image_size[0] // patch[0], image_size[1] // patch[1]

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
            raise ValueError(
                f"method={setting.method!r} is not valid for model type {self.model_type!r}, which clusters tokens: "
                "use accelerate_config(config, accel) on the plain configuration, which finds the type that fits."
            )
        if self.accel_knows_host:
            host = self.accel_host()
            setting = family_of(host).fit_accel(setting, host)
        setting = setting.resolve(self.accel_expansion, self.accel_normalization, self.accel_decodes_clusters)
        without_effect = setting.decode_clusters and setting.expansion == "delta" and not self.accel_decodes_change
        allowed = "None or False with expansion='delta' for this model, whose decoder has no blocks"
        require(not without_effect, "decode_clusters", setting.decode_clusters, allowed, False)
        return setting


class BackboneHeadConfig(AcceleratedConfig):
    """First base where the transformer is that of a `backbone_config`; the setting is kept at the head."""

    def accel_host(self) -> PreTrainedConfig:
        if getattr(self.backbone_config, "model_type", None) not in FAMILIES:
            backbone = getattr(self.backbone_config, "model_type", None)
            raise unsupported(f"{native_class(type(self)).model_type!r} on a {backbone!r} backbone")
        return self.backbone_config


def family_of(host: PreTrainedConfig) -> type[AcceleratedConfig]:
    """The accelerated configuration class of a host, native or accelerated."""
    return type(host) if isinstance(host, AcceleratedConfig) else accelerated_class(type(host)) or AcceleratedConfig


def stored_accel(config: PreTrainedConfig) -> dict | None:
    """Accelerated setting in a configuration or in that of its backbone."""
    return getattr(config, "accel", None) or getattr(getattr(config, "backbone_config", None), "accel", None)
