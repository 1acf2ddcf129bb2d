"""FLOPs of a host's blocks in closed form, dense and on clusters, from its configuration alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from ..auto import accelerate_config
from ..checks import as_pair
from ..hosts.config import AcceleratedConfig, family_of
from ..settings.clustering import TokenClusteringConfig

Grid = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """One block of a transformer.

    Attributes:
        width: channels.
        mlp: multiplications of the MLP for a token.
        grid: (H, W) tokens of a unit, which is what is clustered on its own: the image, a window, a slice of a video.
        units: how many there are; windows that padding completes are whole ones.
        tokens: patch tokens of all units, without padding.
        prefix: tokens that bypass clustering.
        windowed: whether each unit attends to itself only.
        relative: whether attention adds products with relative positions, as SAM's does.
        extra: FLOPs that do not depend on clusters.
    """

    width: int
    mlp: int
    grid: Grid
    units: int
    tokens: int
    prefix: int = 0
    windowed: bool = False
    relative: Grid | None = None
    extra: int = 0

    def flops(self, clusters: Grid | None = None) -> float:
        """FLOPs for an image; `clusters` replace the tokens of each unit."""
        height, width = clusters or self.grid
        padded = self.units * height * width
        attended = (padded if self.windowed or clusters else self.tokens) + self.prefix
        outside = (padded if clusters else self.tokens) + self.prefix
        pairs = attended**2 / (self.units if self.windowed else 1)
        products = attended * 4 * self.width**2 + outside * self.mlp + 2 * pairs * self.width
        if self.relative is not None:
            rows, columns = (height, width) if self.windowed else self._map(clusters)
            products += attended * (rows + columns) * self.width
        return 2 * products + self.extra

    def _map(self, clusters: Grid | None) -> Grid:
        """(H, W) of the whole map."""
        if clusters is None:
            return self.relative
        return tuple(-(-side // unit) * c for side, unit, c in zip(self.relative, self.grid, clusters, strict=True))


@dataclass(frozen=True)
class Encoder:
    """The blocks of a host at an image size.

    Attributes:
        blocks: in order.
        spans: (first, end) of blocks within which a clustered span must lie.
        square: whether clusters of a unit must be a square smaller than it.
    """

    blocks: tuple[Block, ...]
    spans: tuple[tuple[int, int], ...]
    square: bool

    @property
    def flops(self) -> float:
        return sum(block.flops() for block in self.blocks)

    def clustered(self, after: int, grid: Grid, until: int | None = None) -> float:
        """FLOPs with blocks from `after` to `until`, or to the end of their span, on clusters."""
        until = until or self.span_of(after)[1]
        return sum(b.flops(grid if after <= i < until else None) for i, b in enumerate(self.blocks))

    def span_of(self, after: int) -> tuple[int, int]:
        return next(span for span in self.spans if span[0] <= after < span[1])

    def longest(self) -> tuple[int, int]:
        """The span with most of the FLOPs."""
        return max(self.spans, key=lambda span: sum(block.flops() for block in self.blocks[slice(*span)]))

    def grids(self, after: int) -> list[Grid]:
        """Cluster grids in the proportions of the tokens, from few to many, fewer than the tokens."""
        height, width = self.blocks[after].grid
        if self.square:
            return [(side, side) for side in range(1, min(height, width))]
        longer = max(height, width)
        sides = {tuple(max(1, round(side * n / longer)) for side in (height, width)) for n in range(1, longer)}
        return sorted(sides, key=lambda grid: grid[0] * grid[1])


def describe_encoder(config: PreTrainedConfig, image_size: int | Grid) -> Encoder:
    """The encoder that a setting for this configuration accelerates.

    Args:
        config: of a supported model, native or accelerated, or of a head on such a backbone.
        image_size: side or (height, width) in pixels.

    Raises:
        ValueError: when the model type is not supported.
    """
    size = as_pair(image_size)
    head = find_head(config)
    host = head.accel_host()
    if hasattr(host, "embed_dim_per_stage"):
        return _hiera(host, size)
    if hasattr(family_of(host), "accel_stage_windows"):
        return _stages(host, size)
    return _plain(host, head, size)


def find_head(config: PreTrainedConfig) -> AcceleratedConfig:
    """The configuration that holds the setting: of the model, or of its backbone where only that is accelerated.

    Raises:
        ValueError: when the model type is not supported.
    """
    head = accelerate_config(config, None)
    while not isinstance(head, AcceleratedConfig):
        head = head.backbone_config
    return head


def _plain(host: PreTrainedConfig, head: AcceleratedConfig, size: Grid) -> Encoder:
    """One width throughout; some blocks may attend within windows."""
    family, depth, width = family_of(host), host.num_hidden_layers, host.hidden_size
    grid, window = family.accel_grid(host, size), family.accel_window(host)
    whole = AcceleratedConfig.accel_grid.__func__(_NoWindow, host, size)
    parts = (whole[0] // grid[0]) * (whole[1] // grid[1])
    units = -(-whole[0] // grid[0]) * -(-whole[1] // grid[1])
    own = units if window is None and parts > 1 else 1  # Parts of an image have class tokens of their own.
    slices = _slices(host)
    block = Block(
        width=width,
        mlp=_mlp(host, width),
        grid=grid,
        units=units * slices,
        tokens=whole[0] * whole[1] * slices,
        prefix=_prefix(host) * own,
        relative=whole if _relative(host) else None,
    )
    within = _windowed_blocks(host, window is not None or parts > 1)
    blocks = [replace(block, windowed=index in within) for index in range(depth)]
    for index in getattr(host, "residual_block_indices", ()):
        # VitDet's bottleneck: 1 x 1 to half the channels, 3 x 3, and 1 x 1 back.
        blocks[index] = replace(blocks[index], mlp=block.mlp + 13 * width**2 // 4)
    # EoMT's queries join its last blocks, which see all tokens.
    queries = getattr(head, "num_blocks", 0) if hasattr(head, "num_queries") and host is head else 0
    for index in range(depth - queries, depth):
        blocks[index] = replace(blocks[index], prefix=block.prefix + head.num_queries)
    return Encoder(tuple(blocks), ((0, depth - queries),), square=window is not None)


class _NoWindow:
    """What `AcceleratedConfig.accel_grid` sees for the grid of the whole image."""

    @staticmethod
    def accel_window(host: PreTrainedConfig) -> None:
        return None


def _windowed_blocks(host: PreTrainedConfig, windows: bool) -> Sequence[int]:
    if not windows:
        return ()
    every = range(host.num_hidden_layers)
    if hasattr(host, "global_attn_indexes"):
        return [index for index in every if host.window_size and index not in host.global_attn_indexes]
    return list(getattr(host, "window_block_indexes", None) or getattr(host, "window_block_indices", None) or ())


def _relative(host: PreTrainedConfig) -> bool:
    return bool(getattr(host, "use_rel_pos", False) or getattr(host, "use_relative_position_embeddings", False))


def _slices(host: PreTrainedConfig) -> int:
    if not hasattr(host, "num_frames"):
        return 1
    tubelet = host.tubelet_size
    return host.num_frames // (tubelet if isinstance(tubelet, int) else tubelet[0])


def _prefix(host: PreTrainedConfig) -> int:
    """Class and register tokens."""
    if (count := getattr(host, "n_cls_tokens", None)) is not None:
        return count
    kind = host.model_type.removeprefix("tokaccel_")
    without = kind.startswith(("sam", "siglip", "videomae", "vitpose", "vitdet", "lw_detr"))
    distilled = kind == "deit" or getattr(host, "distilled", False)
    return (0 if without else 2 if distilled else 1) + (getattr(host, "num_register_tokens", 0) or 0)


def _mlp(host: PreTrainedConfig, width: int) -> int:
    hidden = getattr(host, "mlp_dim", None) or getattr(host, "intermediate_size", None)
    if hidden is None:
        hidden = int(width * host.mlp_ratio)
    if getattr(host, "use_swiglu_ffn", False):
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        return 3 * width * hidden
    return (3 if getattr(host, "use_gated_mlp", False) else 2) * width * hidden


def _stages(host: PreTrainedConfig, size: Grid) -> Encoder:
    """Swin and its relatives."""
    rows, columns = (-(-side // step) for side, step in zip(size, as_pair(host.patch_size), strict=True))
    blocks, spans = [], []
    for stage, (depth, window) in enumerate(zip(host.depths, family_of(host).accel_stage_windows(host), strict=True)):
        width = host.embed_dim * 2**stage
        hidden = int(width * host.mlp_ratio)
        # Where the map is smaller than a window, hosts make the window as small.
        units = -(-rows // window) * -(-columns // window)
        block = Block(width, 2 * width * hidden, (window, window), units, rows * columns, windowed=True)
        if window > 1:
            spans.append((len(blocks), len(blocks) + depth))
        blocks += [block] * depth
        rows, columns = -(-rows // 2), -(-columns // 2)
    return Encoder(tuple(blocks), tuple(spans), square=True)


def _hiera(host: PreTrainedConfig, size: Grid) -> Encoder:
    """SAM 2: the first block of a stage pools its queries, so it cannot run on clusters."""
    rows, columns = (side // step for side, step in zip(size, host.patch_stride, strict=True))
    blocks, spans, before = [], [], None
    stages = zip(host.blocks_per_stage, host.embed_dim_per_stage, host.window_size_per_stage, strict=True)
    for stage, (depth, width, window) in enumerate(stages):
        first, mlp = len(blocks), 2 * width * int(width * host.mlp_ratio)
        if before is not None:
            blocks.append(_pooling_block(host, stage, width, mlp, before, (rows, columns), first))
            if stage <= host.num_query_pool_stages:
                rows, columns = (side // step for side, step in zip((rows, columns), host.query_stride, strict=True))
        units = -(-rows // window) * -(-columns // window)
        plain = Block(width, mlp, (window, window), units, rows * columns)
        blocks += [
            replace(plain, windowed=index not in host.global_attention_blocks)
            for index in range(len(blocks), first + depth)
        ]
        inside = (first + (before is not None), first + depth)
        if window > 1 and inside[0] < inside[1]:
            spans.append(inside)
        before = width, window
    return Encoder(tuple(blocks), tuple(spans), square=True)


def _pooling_block(
    host: PreTrainedConfig, stage: int, width: int, mlp: int, before: Grid, size: Grid, index: int
) -> Block:
    (narrow, window), (rows, columns) = before, size
    pooled = 4 if stage <= host.num_query_pool_stages else 1
    tokens = rows * columns
    if index not in host.global_attention_blocks:
        tokens = -(-rows // window) * window * -(-columns // window) * window
    seen = window**2 if index not in host.global_attention_blocks else tokens
    products = rows * columns * narrow * width + tokens * narrow * 3 * width
    products += tokens / pooled * (2 * seen * width + width**2) + rows * columns / pooled * mlp
    return Block(width, 0, (1, 1), 0, 0, extra=int(2 * products))


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
    if isinstance(speedup, bool) or not isinstance(speedup, (int, float)) or not speedup > 1:
        raise ValueError(f"speedup={speedup!r} is not valid: it must be a number above 1, for example speedup=1.5.")
    taken = sorted({"cluster_after", "cluster_grid"} & set(settings))
    if taken:
        raise ValueError(f"{taken} cannot be given to {name}, which chooses them: leave them out.")


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


def unreachable(encoder: Encoder, image_size: int | Grid, speedup: float, until: int | None) -> ValueError:
    """The error for a ratio that no schedule reaches: it says the best that one does."""
    start, end = _clustered_span(encoder, until)
    ratios = [
        (encoder.flops / encoder.clustered(after, grid, end), after, grid)
        for after in range(start, end)
        for grid in encoder.grids(after)
    ]
    best, after, grid = max(ratios, key=lambda entry: entry[0], default=(1.0, None, None))
    at_best = "none" if best <= 1 else f"cluster_after={after}, cluster_grid={grid}"
    best = max(best, 1.0)
    return ValueError(
        f"speedup={speedup} cannot be reached at image size {image_size}: the best that the FLOPs of the encoder "
        f"allow is {int(best * 100) / 100} ({at_best}); for example speedup={max(1.01, round(best**0.5, 2))}."
    )
