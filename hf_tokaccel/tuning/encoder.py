"""Settings for a ratio of FLOPs, from arithmetic on a configuration alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedConfig

from ..auto import accelerate_config
from ..checks import UserError, as_pair, is_number
from ..hosts.blocks import Encoder, Grid
from ..hosts.config import AcceleratedConfig, family_of
from ..settings.clustering import TokenClusteringConfig


def describe_encoder(config: PreTrainedConfig, image_size: int | Grid) -> Encoder:
    """The encoder that a setting for this configuration accelerates.

    Args:
        config: of a supported model, native or accelerated, or of a head on such a backbone.
        image_size: side or (height, width) in pixels.

    Raises:
        ValueError: when the model type is not supported.
    """
    host = find_head(config).accel_host()
    return family_of(host).accel_encoder(host, as_pair(image_size))


def find_head(config: PreTrainedConfig) -> AcceleratedConfig:
    """The configuration that holds the setting: of the model, or of its backbone where only that is accelerated.

    Raises:
        ValueError: when the model type is not supported.
    """
    head = accelerate_config(config, None)
    while not isinstance(head, AcceleratedConfig):
        head = head.backbone_config
    return head


# The settings of the paper and ours for the reference models lie about here: the share of the side of the token grid
# where all blocks run on clusters, and what is added to it, times the share of the blocks before clustering.
USUAL_SHARE = (0.3, 0.8)


def for_speedup(
    config: PreTrainedConfig, image_size: int | Grid, speedup: float, **settings: Any
) -> TokenClusteringConfig:
    """A starting point from arithmetic alone: `cluster_after` and `cluster_grid` for a ratio of FLOPs.

    Counted are the encoder's blocks in closed form, without clustering and reconstruction themselves, heads and
    decoders. Of the settings that reach the ratio it takes one whose share of clusters goes with its share of
    blocks about as in the paper; `hf_tokaccel.tune` looks at images and finds better ones.

    Args:
        config: of the model, native or accelerated.
        image_size: side or (height, width) in pixels.
        speedup: dense over clustered FLOPs of the encoder, above 1.
        settings: other fields.

    Raises:
        ValueError: when the model is not supported or the ratio cannot be reached; it says the best that can.
    """
    check_speedup("for_speedup", speedup, settings)
    encoder = describe_encoder(config, image_size)
    until = settings.get("reconstruct_after")
    found = choose_schedule(encoder, speedup, until)
    if found is None:
        raise unreachable(encoder, image_size, speedup, until)
    return TokenClusteringConfig(cluster_after=found[0], cluster_grid=found[1], **settings)


def check_speedup(name: str, speedup: Any, settings: Collection[str]) -> None:
    """Raises ValueError where `name` cannot choose a schedule for this ratio beside these fields."""
    if not is_number(speedup) or speedup <= 1:
        raise UserError(f"speedup={speedup!r} is not valid: it must be a number above 1, for example speedup=1.5.")
    taken = sorted({"cluster_after", "cluster_grid"} & set(settings))
    if taken:
        raise UserError(f"{taken} cannot be given to {name}, which chooses them: leave them out.")


def choose_schedule(
    encoder: Encoder, speedup: float, until: int | None = None, share: tuple[float, float] = USUAL_SHARE
) -> tuple[int, Grid] | None:
    """`cluster_after` and `cluster_grid` for a ratio of FLOPs, None where it cannot be reached.

    Args:
        encoder: whose longest span is clustered.
        speedup: dense over clustered FLOPs.
        until: `reconstruct_after`; the blocks that follow count at full resolution.
        share: see `USUAL_SHARE`; of the settings that reach the ratio the one nearest to it is taken.
    """
    start, end = _clustered_span(encoder, until)
    found = []
    for after in range(start, end):
        tokens = encoder.blocks[after].grid
        fast = [g for g in encoder.grids(after) if encoder.flops >= speedup * encoder.clustered(after, g, end)]
        if fast:
            kept = (fast[-1][0] * fast[-1][1] / (tokens[0] * tokens[1])) ** 0.5
            usual = share[0] + share[1] * (after - start) / (end - start)
            found.append((abs(kept - usual), after, fast[-1]))
    return min(found)[1:] if found else None


def _clustered_span(encoder: Encoder, until: Any) -> tuple[int, int]:
    start, end = encoder.longest()
    return start, min(end, until) if isinstance(until, int) and until > start else end


def unreachable(
    encoder: Encoder, image_size: int | Grid, speedup: float, until: int | None, rest: float = 0
) -> UserError:
    """The error for a ratio that no schedule reaches: it says the best that one does.

    Args:
        encoder: of the model.
        image_size: in pixels.
        speedup: that was asked for.
        until: `reconstruct_after`.
        rest: FLOPs of the model outside of the encoder's blocks.
    """
    start, end = _clustered_span(encoder, until)
    ratios = [
        ((rest + encoder.flops) / (rest + encoder.clustered(after, grid, end)), after, grid)
        for after in range(start, end)
        for grid in encoder.grids(after)
    ]
    best, after, grid = max(ratios, key=lambda entry: entry[0], default=(1.0, None, None))
    at_best = "none" if best <= 1 else f"cluster_after={after}, cluster_grid={grid}"
    best = max(best, 1.0)
    return UserError(
        f"speedup={speedup} cannot be reached at image size {image_size}: the best that the FLOPs of the "
        f"{'model' if rest else 'encoder'} allow is {int(best * 100) / 100} ({at_best}); for example "
        f"speedup={max(1.01, round(best**0.5, 2))}."
    )
