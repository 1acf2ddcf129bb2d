"""`accelerate` as users call it: with a setting in any form, or with the speed that they want."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..auto import accelerate as accelerate_with
from ..auto import accelerate_config as accelerate_config_with
from ..checks import UserError
from .recommended import Recommended, own_image_size
from .text import parse_accel

_MISSING: Any = object()


def accelerate(
    model: PreTrainedModel,
    accel: Any = _MISSING,
    image_size: int | tuple[int, int] | None = None,
    *,
    speedup: float | None = None,
) -> PreTrainedModel:
    """An accelerated model with the same parameters as `model` (shared, not copied); `model` stays as it was.

    `fast = accelerate(model, speedup=1.5)` is the shortest way: the recommended setting for 1.5 times fewer FLOPs of
    the whole model.

    Args:
        model: a loaded model, native or accelerated already.
        accel: the setting, as a dataclass, a dict, or text such as `"recommended:1.5"` or `"released:NAME"`; None
            gives a model that computes what the native one does. A `SemanticTokenConfig` gives a model with copies
            of the parameters, and some of its own, that has to be trained.
        image_size: side or (height, width) in pixels that the model will run at, which a setting is checked against
            and a recommended one is made for. By default the configuration's own.
        speedup: in place of a setting: dense over accelerated FLOPs, see `recommended`.

    Warns:
        UserWarning: with semantic tokens, naming the parameters that are untrained.

    Raises:
        ValueError: when the model is not supported, the setting does not fit, or neither or both of setting and speed
            are given.
    """
    return accelerate_with(model, _find(model, accel, image_size, speedup), image_size)


def accelerate_config(
    config: PreTrainedConfig,
    accel: Any = _MISSING,
    image_size: int | tuple[int, int] | None = None,
    *,
    speedup: float | None = None,
) -> PreTrainedConfig:
    """The accelerated counterpart of a configuration, which is left as it was; arguments as of `accelerate`.

    Raises:
        ValueError: when the type is not supported or the setting does not fit.
    """
    return accelerate_config_with(config, _find(config, accel, image_size, speedup), image_size)


def _find(model: Any, accel: Any, image_size: int | tuple[int, int] | None, speedup: float | None) -> Any:
    """The setting that is meant."""
    if (accel is _MISSING) == (speedup is None):
        given = "neither a setting nor a speedup" if speedup is None else f"speedup={speedup!r} and a setting"
        raise UserError(
            f"{given} is given: give one of them, for example accelerate(model, speedup=1.5), "
            "accelerate(model, TokenClusteringConfig(cluster_after=2, clusters=0.5)), or accelerate(model, None) for "
            "no acceleration."
        )
    if speedup is not None:
        accel = Recommended(speedup)
    if isinstance(accel, str):
        accel = parse_accel(accel)
    if isinstance(accel, Recommended):
        config = getattr(model, "config", model)
        return accel.resolve(model, own_image_size(config) if image_size is None else image_size)
    return accel
