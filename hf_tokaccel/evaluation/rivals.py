"""What a table compares: cluster settings that suit a model, and plain ways to save as much arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

import hf_tokaccel as ta
from hf_tokaccel.configs import family_of
from hf_tokaccel.presets import SPEEDUP, Recommended

from .flops import count_gflops
from .models import input_step, stored_accel
from .task import Task, Variant

_PLAIN = ta.TokenClusteringConfig(cluster_after=0, cluster_grid=(1, 1))
# What an open field resolves to is not news in a name.
_RESOLVED = {"mask_shift": "corrected"}


@dataclass(frozen=True)
class Entry:
    """A row to be: a variant with what the table says about it.

    Attributes:
        variant: How to run it.
        kind: `"dense"`, `"clusters"`, `"grid pooling"` or `"lower resolution"`.
        accel: Setting of an accelerated row as a plain dict.
        group: Rows of one group have similar GFLOPs.
    """

    variant: Variant
    kind: str
    accel: dict | None = None
    group: int = 0


def parse_accel(
    text: str, config: type = ta.TokenClusteringConfig, example: str = "cluster_after=4,cluster_grid=12x12"
) -> Any:
    """Setting from JSON or from `key=value,key=value`, where `12x16` is a grid and `none` is None.

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
    if kind in ("released", "recommended") and "=" not in preset and config is ta.TokenClusteringConfig:
        return _parse_preset(kind, name if colon else None, _parse_values(rest, example) if comma else {})
    return config.from_dict(_parse_values(text, example))


def _parse_preset(kind: str, name: str | None, overrides: dict[str, Any]) -> ta.TokenClusteringConfig | Recommended:
    if kind == "released":
        return ta.TokenClusteringConfig.released(name or "", **overrides)
    try:
        speedup = SPEEDUP if name is None else float(name)
    except ValueError:
        raise ValueError(
            f"accel recommended:{name} does not name a speed: it must be a number above 1, for example recommended:1.5"
        ) from None
    return Recommended(speedup, overrides)


def _parse_values(text: str, example: str) -> dict[str, Any]:
    example = f"for example {example}"
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"accel {text!r} is not JSON ({error}); {example}") from error
    else:
        values = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, equals, value = (p.strip() for p in part.partition("="))
            if not equals or not key or not value or key in values:
                raise ValueError(f"accel {text!r} has {part!r} where one key=value each is expected; {example}")
            values[key] = _parse_value(value)
        if not values:
            raise ValueError(f"accel {text!r} is empty; {example}")
    return values


def resolve_accels(
    settings: Sequence[ta.TokenClusteringConfig | Recommended], config: PreTrainedConfig, image_size: tuple[int, int]
) -> list[ta.TokenClusteringConfig]:
    """What `parse_accels` read, as settings for a model that runs at (height, width) pixels.

    Raises:
        ValueError: A recommended setting that the model does not allow.
    """
    return [s.resolve(config, image_size) if isinstance(s, Recommended) else s for s in settings]


def parse_accels(texts: Sequence[str]) -> list[ta.TokenClusteringConfig | Recommended]:
    """Settings from several texts as `parse_accel` reads them; `none` alone means the dense model alone."""
    if "none" in texts and len(texts) > 1:
        raise ValueError(
            "accel none stands alone: the dense model is always a row; leave it out beside other settings"
        )
    return [parse_accel(text) for text in texts if text != "none"]


def _parse_value(text: str):
    height, x, width = text.partition("x")
    if x and height.isdigit() and width.isdigit():
        return int(height), int(width)
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"none": None, "true": True, "false": False}.get(text.lower(), text)


def default_settings(
    model: nn.Module, image_size: tuple[int, int], task: Task | type[Task]
) -> list[ta.TokenClusteringConfig]:
    """The settings that a task compares by default, for a model with a vision transformer, plain or with windows.

    Args:
        model: Dense model.
        image_size: Size of its input in pixels, (height, width).
        task: Says which shares of layers and grid, from careful to bold, and which variations of each.

    Raises:
        ValueError: The model cannot be accelerated.
    """
    try:
        accelerated = ta.accelerate_config(model.config, None)
        host = accelerated.accel_host()
    except ValueError as error:
        raise ValueError(
            f"no default settings are known for this {model.config.model_type!r} model; name one, for example --accel "
            f"cluster_after=4,cluster_grid=12x12, or --accel none for the dense model alone ({error})"
        ) from error
    first, layers, tokens, largest = _clustered_part(host, image_size)
    # Only some decoders run on clusters, so that they could also not do so.
    decodes = accelerated.accel_decodes_clusters
    variations = [variation for variation in task.variations if decodes or "decode_clusters" not in variation]
    settings = []
    for layer_share, grid_share in task.shares:
        grid = tuple(min(max(round(n * grid_share), 1), most) for n, most in zip(tokens, largest, strict=True))
        after = first + min(max(round(layers * layer_share), 1), layers - 1)
        settings += [
            ta.TokenClusteringConfig(cluster_after=after, cluster_grid=grid, **variation) for variation in variations
        ]
    return settings


Grid = tuple[int, int]


def _clustered_part(host, image_size: tuple[int, int]) -> tuple[int, int, Grid, Grid]:
    """Part of a transformer that is clustered: layers before it, its layers, tokens clustered together, most clusters.

    It is the longest stage, or the whole transformer where there are no stages.
    """
    family = family_of(host)
    if hasattr(family, "accel_stage_windows"):
        depths, windows = list(host.depths), family.accel_stage_windows(host)
        longest = depths.index(max(depths))
        side = windows[longest]
        return sum(depths[:longest]), depths[longest], (side, side), (side - 1, side - 1)
    tokens = family.accel_grid(host, image_size)
    return 0, host.num_hidden_layers, tokens, tokens


def settings_to_show(settings: Sequence[ta.TokenClusteringConfig]) -> list[ta.TokenClusteringConfig]:
    """One of the default settings for a picture: the last variation of the middle group."""
    groups = list(dict.fromkeys(group_name(setting) for setting in settings))
    middle = groups[len(groups) // 2]
    return [setting for setting in settings if group_name(setting) == middle][-1:]


def group_name(setting: ta.TokenClusteringConfig) -> str:
    """What decides the cost of a setting: its grid and its layers."""
    until = "" if setting.reconstruct_after is None else f" to {setting.reconstruct_after}"
    return f"{'x'.join(map(str, setting.cluster_grid))} after {setting.cluster_after}{until}"


def setting_name(setting: ta.TokenClusteringConfig) -> str:
    """Short name that tells a setting from the others of its group: expansion and whatever is not the default."""
    said = {"cluster_after", "cluster_grid", "reconstruct_after", "expansion", "normalization", "version", "method"}
    if setting.decode_clusters in (None, setting.usually_decodes_clusters):
        said.add("decode_clusters")  # It is what follows from the rest of the setting.
    names = [f.name for f in fields(setting) if f.name not in said]
    values = {name: getattr(setting, name) for name in names}
    plain = {name: (getattr(_PLAIN, name), _RESOLVED.get(name)) for name in names}
    changed = [f"{name}={value}" for name, value in values.items() if value not in plain[name]]
    return ", ".join([group_name(setting), setting.expansion, *changed])


def entries_for(
    model: nn.Module,
    settings: Sequence[ta.TokenClusteringConfig],
    pixel_values: Tensor,
    *,
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model,
    rivals: bool = True,
) -> tuple[list[Entry], list[str]]:
    """Rows of a table: dense, then per grid its expansions, grid pooling and a lower resolution of similar cost.

    Args:
        model: Dense model.
        settings: Accelerated settings.
        pixel_values: One image as the model reads it (1, 3, h, w), to count FLOPs on.
        prepare: Applied to every model, such as `torch.compile`.
        rivals: Add grid pooling and lower resolution.

    Returns:
        The entries, and a sentence for each rival that the model cannot run.
    """
    entries, notes = [Entry(Variant("dense", prepare(model)), "dense")], []
    image_size = tuple(pixel_values.shape[-2:])
    groups: dict[str, list[ta.TokenClusteringConfig]] = {}
    for setting in settings:
        groups.setdefault(group_name(setting), []).append(setting)
    for number, (name, members) in enumerate(groups.items(), start=1):
        # With the plainest and the best expansion: what the clusters add must show beside what the expansion adds.
        pooled = [replace(setting, iterations=0) for setting in dict.fromkeys((members[0], members[-1]))]
        clustered = len(entries) + len(members) - 1
        for kind, setting in [("clusters", s) for s in members] + [("grid pooling", s) for s in pooled] * rivals:
            accelerated = ta.accelerate(model, setting, image_size)
            accel = stored_accel(accelerated.config)  # The model's family has filled in what the setting leaves open.
            resolved = ta.TokenClusteringConfig.from_dict(accel)
            label = setting_name(resolved if kind == "clusters" else replace(resolved, iterations=_PLAIN.iterations))
            entries.append(Entry(Variant(f"{kind} {label}", prepare(accelerated)), kind, accel, number))
        if rivals:
            try:
                variant = lower_resolution(model, pixel_values, entries[clustered].variant.with_eager())
            except (ValueError, RuntimeError) as error:  # Models with a fixed input size raise either.
                notes.append(f"No lower resolution beside {name}: {error}")
            else:
                entries.append(Entry(replace(variant, model=prepare(model)), "lower resolution", None, number))
    return entries, notes


def lower_resolution(model: nn.Module, pixel_values: Tensor, accelerated: Variant) -> Variant:
    """The dense model at the input size whose cost is closest to that of an accelerated variant.

    Raises:
        ValueError: There is none below the full size, or the model accepts no other size (some raise RuntimeError).
    """
    target = count_gflops(accelerated, pixel_values)
    variant = Variant("", model, matching_scale(model, pixel_values, target), input_step(model.config))
    if variant.scale == 1:
        raise ValueError(f"its {target:.2f} GFLOPs are nearest to those of the full resolution")
    height, width = variant.size(*pixel_values.shape[-2:])
    return replace(variant, name=f"lower resolution {height}x{width}")


def matching_scale(model: nn.Module, pixel_values: Tensor, gflops: float) -> float:
    """Scale of the input, a whole number of patches, at which a dense model costs closest to `gflops` per image."""
    multiple = input_step(model.config)
    steps = min(pixel_values.shape[-2:]) // multiple
    cost = {steps: count_gflops(Variant("", model), pixel_values)}

    def cost_at(step: int) -> float:
        if step not in cost:
            cost[step] = count_gflops(Variant("", model, step / steps, multiple), pixel_values)
        return cost[step]

    low, high = 1, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost_at(middle) < gflops else (low, middle)
    return min((low, high), key=lambda step: abs(cost_at(step) - gflops)) / steps
