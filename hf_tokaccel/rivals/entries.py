"""The rows of an evaluation: cluster settings, and plain ways to save as much arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..auto import accelerate
from ..hosts.config import stored_accel
from ..images import input_step
from ..measure.flops import count_gflops
from ..measure.variant import Variant
from ..settings.clustering import TokenClusteringConfig
from ..settings.naming import group_name, setting_name


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


def entries_for(
    model: nn.Module,
    settings: Sequence[TokenClusteringConfig],
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
    groups: dict[str, list[TokenClusteringConfig]] = {}
    for setting in settings:
        groups.setdefault(group_name(setting), []).append(setting)
    for number, (name, members) in enumerate(groups.items(), start=1):
        # With the plainest and the best expansion: what the clusters add must show beside what the expansion adds.
        pooled = [replace(setting, iterations=0) for setting in dict.fromkeys((members[0], members[-1]))]
        clustered = len(entries) + len(members) - 1
        for kind, setting in [("clusters", s) for s in members] + [("grid pooling", s) for s in pooled] * rivals:
            accelerated = accelerate(model, setting, image_size)
            accel = stored_accel(accelerated.config)  # The model's family has filled in what the setting leaves open.
            resolved = TokenClusteringConfig.from_dict(accel)
            plain = replace(resolved, iterations=TokenClusteringConfig.iterations)
            label = setting_name(resolved if kind == "clusters" else plain)
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
