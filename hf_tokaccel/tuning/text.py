"""Settings as text on a command line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from ..checks import UserError, brief, did_you_mean, first_line
from ..settings.clustering import TokenClusteringConfig
from .recommended import SPEEDUP, Recommended
from .released import released

_PRESETS = ("released", "recommended")


def parse_accel(
    text: str, config: type = TokenClusteringConfig, example: str = "cluster_after=4,cluster_grid=12x12"
) -> Any:
    """Setting from JSON or from `key=value,key=value`, where `12x16` is a grid, `1/3/5` several, and `none` is None.

    Settings of clusters have presets too, `released:NAME`, `recommended` and `recommended:1.5`, after which
    `,key=value` changes fields. A recommended one is a `Recommended` that `resolve_accels` turns into a setting.

    Args:
        text: To be read.
        config: Class of the setting.
        example: A text that works, for error messages.

    Raises:
        ValueError: Text that is neither, or a setting that `config` refuses.
    """
    preset, comma, rest = text.strip().partition(",")
    kind, colon, name = preset.partition(":")
    if kind in _PRESETS and "=" not in preset and config is TokenClusteringConfig:
        return _parse_preset(kind, name if colon else None, _parse_values(rest, example) if comma else {})
    near = did_you_mean(kind, _PRESETS) if colon and kind not in _PRESETS and "=" not in preset else ""
    return config.from_dict(_parse_values(text, f"{example}{near}"))


def _parse_preset(kind: str, name: str | None, overrides: dict[str, Any]) -> TokenClusteringConfig | Recommended:
    if kind == "released":
        return released(name or "", **overrides)
    try:
        speedup = SPEEDUP if name is None else float(name)
    except ValueError:
        raise UserError(
            f"accel recommended:{name} does not name a speed: it must be a number above 1, for example recommended:1.5"
        ) from None
    return Recommended(speedup, overrides)


def _parse_values(text: str, example: str) -> dict[str, Any]:
    example = f"for example {example}"
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"accel {brief(text)} is not JSON ({first_line(error)}); {example}") from error
    else:
        values = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, equals, value = (p.strip() for p in part.partition("="))
            if not equals or not key or not value or key in values:
                raise UserError(
                    f"accel {brief(text)} has {brief(part)} where one key=value each is expected; {example}"
                )
            values[key] = _parse_value(value)
        if not values:
            raise UserError(f"accel {brief(text)} is empty; {example}")
    return values


def resolve_accels(
    settings: Sequence[TokenClusteringConfig | Recommended], config: PreTrainedConfig, image_size: tuple[int, int]
) -> list[TokenClusteringConfig]:
    """What `parse_accels` read, as settings for a model that runs at (height, width) pixels.

    Raises:
        ValueError: A recommended setting that the model does not allow.
    """
    return [s.resolve(config, image_size) if isinstance(s, Recommended) else s for s in settings]


def parse_accels(texts: Sequence[str]) -> list[TokenClusteringConfig | Recommended]:
    """Settings from several texts as `parse_accel` reads them; `none` alone means the dense model alone."""
    if "none" in texts and len(texts) > 1:
        raise UserError("accel none stands alone: the dense model is always a row; leave it out beside other settings")
    return [parse_accel(text) for text in texts if text != "none"]


def _parse_value(text: str):
    if "/" in text:
        return tuple(_parse_value(part) for part in text.split("/"))
    if pair := re.fullmatch(r"(\d{1,9})x(\d{1,9})", text):
        return int(pair[1]), int(pair[2])
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"none": None, "true": True, "false": False}.get(text.lower(), text)
