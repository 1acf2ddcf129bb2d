"""Settings of token clustering and reconstruction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..checks import (
    EXPANSIONS,
    NORMALIZATIONS,
    UserError,
    check_choice,
    check_inverse_temperature,
    check_iterations,
    check_neighbors,
    check_window,
    is_count,
    is_int,
    require,
)
from .adaptive import check_clusters, falling
from .base import Setting

SIMILARITIES = ("tokens", "normalized")
MASK_SHIFTS = ("corrected", "released")


@dataclass(frozen=True, kw_only=True)
class TokenClusteringConfig(Setting):
    """Token clustering and reconstruction (Expedit, NeurIPS 2022): sections 3.1 and 3.2 of the paper.

    After `cluster_after` blocks the H x W patch tokens become fewer clusters, the next blocks run on those, and full
    resolution is rebuilt after `reconstruct_after` blocks and wherever a head reads features. Clusters are a grid
    (`cluster_grid`, as in the paper) or adaptive (`clusters`, ours): regions of free shape whose size attention knows.
    One of the two is given.

    Args:
        cluster_after: full-resolution blocks before clustering, counted over the whole backbone. 0 clusters the
            embeddings. Of adaptive clusters it may be several numbers, one for each step: later steps go on from the
            clusters that there are.
        cluster_grid: clusters as (h, w); a single number is a square. One side may exceed the token grid's, but there
            cannot be more clusters than tokens.
        clusters: adaptive clusters, as a share of the tokens of the image (a float, up to 1.0) or as a count (a whole
            number); one for each step.
        size_attention: whether attention weighs each cluster by the tokens that it stands for. None is True for
            adaptive clusters, False for a grid, as released.
        round_share: of adaptive clusters: the share of them that a round of matching joins at most, up to 0.5.
        tile: of adaptive clusters: side in tokens, even, of the tiles inside of which tokens are matched, so that cost
            grows linearly with the image; None matches all with all.
        reconstruct_after: blocks after which full resolution returns, counted like `cluster_after`; the blocks that
            follow run on all tokens. None: after the last block.
        iterations: clustering iterations; 0 is plain grid pooling.
        inverse_temperature: multiplies the squared distance between token and centroid, in clustering and in
            reconstruction; `"auto"` first divides the distances by their own scale in each image.
        window: side of the square of clusters, in cluster-grid units, that a token may join; odd.
        neighbors: clusters that a token is rebuilt from; -1 is all. `expansion="nearest"` always uses one.
        neighbor_window: limits the search for these neighbors to a window like `window`, which makes planning linear
            in the number of tokens; None searches all clusters, as released.
        normalization: of the reconstruction weights: `"l2"` as released, `"l1"` for a convex combination. None takes
            the model family's own: `"l2"` where a LayerNorm follows, else `"l1"`; `"delta"` needs `"l1"`. Adaptive
            clusters have no such weights.
        expansion: `"soft"` is the weighted sum of the paper, `"nearest"` copies the nearest cluster (released DPT),
            `"delta"` adds the weighted change of the clusters to the token as it was at clustering (ours). None takes
            what was released for the model family, and `"delta"` for adaptive clusters, which cannot be `"soft"`.
        similarity_on: `"tokens"` compares the residual stream (released), `"normalized"` compares it after the first
            LayerNorm of the block that follows. None is `"tokens"` for a grid, `"normalized"` for adaptive clusters.
        decode_clusters: of Segmenter only, None elsewhere: whether its decoder runs on the clusters and class logits
            are reconstructed (released), or features are, before the decoder. With `expansion="delta"` only the
            decoder's blocks run on the clusters, and their change is added to the tokens. None is True, except with
            `expansion="delta"`, and with `reconstruct_after`, which gives the decoder all tokens.
        mask_shift: of shifted windows only (Swin and its relatives), None elsewhere: `"corrected"` masks attention by
            the shift of the clusters, `"released"` by that of the tokens, as Expedit's code does. None is
            `"corrected"`.
        shared_frames: consecutive images of a batch, frames of one clip, that are clustered by the mean of what is
            compared and rebuilt by one plan (Expedit clusters every frame for itself); of a video model, its slices.
            Each frame keeps its own centroids. 1 shares nothing.

    Raises:
        ValueError: on any value outside of what is written above; the message names a value that works.
    """

    cluster_after: int | tuple[int, ...]
    cluster_grid: tuple[int, int] | None = None
    clusters: float | int | tuple[float | int, ...] | None = None
    size_attention: bool | None = None
    round_share: float = 0.2
    tile: int | None = None
    reconstruct_after: int | None = None
    iterations: int = 5
    inverse_temperature: float | str = "auto"
    window: int = 5
    neighbors: int = 20
    neighbor_window: int | None = None
    normalization: str | None = None
    expansion: str | None = None
    similarity_on: str | None = None
    decode_clusters: bool | None = None
    mask_shift: str | None = None
    shared_frames: int = 1
    method: str = "token_clustering"

    grid_name = "cluster_grid"
    grid_example = (16, 16)
    example = {"cluster_after": 6, "cluster_grid": [16, 16]}

    def __post_init__(self) -> None:
        for name in ("cluster_after", "clusters"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, tuple(value))
        super().__post_init__()
        check_clusters(self)
        if self.similarity_on is None:
            object.__setattr__(self, "similarity_on", "normalized" if self.adaptive else "tokens")
        if self.size_attention is None:
            object.__setattr__(self, "size_attention", self.adaptive)
        if self.adaptive and self.expansion is None:
            object.__setattr__(self, "expansion", "delta")
        self._check_schedule()
        self._check_clustering()
        self._check_reconstruction()
        self._check_decoder()

    @property
    def adaptive(self) -> bool:
        """Whether clusters are regions of free shape."""
        return self.clusters is not None

    @property
    def starts(self) -> tuple[int, ...]:
        """Blocks before each step of clustering."""
        return self.cluster_after if isinstance(self.cluster_after, tuple) else (self.cluster_after,)

    def counts(self, tokens: int) -> tuple[int, ...]:
        """Clusters after each step, of so many tokens that are clustered together.

        Raises:
            ValueError: when there are more clusters than tokens, or than a step before left.
        """
        if not self.adaptive:
            return (self.cluster_grid[0] * self.cluster_grid[1],)
        given = self.clusters if isinstance(self.clusters, tuple) else (self.clusters,)
        counts = tuple(c if is_int(c) else max(1, round(c * tokens)) for c in given)
        fewer = all(b <= a for a, b in zip((tokens, *counts), counts, strict=False))
        allowed = f"at most as many clusters as tokens ({tokens}), and no more than the step before left"
        require(fewer, "clusters", self.clusters, allowed, 0.5 if len(given) == 1 else falling(len(given)))
        return counts

    def _check_schedule(self) -> None:
        last = self.starts[-1]
        until = self.reconstruct_after
        allowed = f"None or a number of blocks above cluster_after ({last})"
        require(until is None or (is_int(until) and until > last), "reconstruct_after", until, allowed, last + 1)

    def _check_clustering(self) -> None:
        check_iterations(self.iterations)
        check_inverse_temperature(self.inverse_temperature)
        check_window("window", self.window)
        frames = self.shared_frames
        require(is_count(frames), "shared_frames", frames, "a number of frames, 1 or more", 4)
        check_choice("similarity_on", self.similarity_on, SIMILARITIES, "tokens")

    def _check_reconstruction(self) -> None:
        check_neighbors(self.neighbors)
        if self.neighbor_window is not None:
            check_window("neighbor_window", self.neighbor_window)
        check_choice("expansion", self.expansion, EXPANSIONS, "soft", optional=True)
        check_choice("normalization", self.normalization, NORMALIZATIONS, "l1", optional=True)
        # A change scaled by the L2 norm's factor (up to sqrt(neighbors)) would be added to an unscaled token.
        contradiction = self.expansion == "delta" and self.normalization == "l2"
        require(not contradiction, "normalization", "l2", "'l1' when expansion='delta'", "l1")

    def _check_decoder(self) -> None:
        choice = self.decode_clusters
        require(choice is None or isinstance(choice, bool), "decode_clusters", choice, "None, True or False", None)
        allowed = "None or False with reconstruct_after, which gives the decoder all tokens"
        contradiction = choice and self.reconstruct_after is not None
        require(not contradiction, "decode_clusters", choice, allowed, False)
        check_choice("mask_shift", self.mask_shift, MASK_SHIFTS, "corrected", optional=True)

    @property
    def usually_decodes_clusters(self) -> bool:
        """What `decode_clusters=None` means for a decoder that can run on clusters."""
        return self.expansion != "delta" and self.reconstruct_after is None

    def resolve(self, expansion: str, normalization: str, decodes_clusters: bool = False) -> "TokenClusteringConfig":
        """Fills what was left to the model family, so that what is saved says what is run.

        Raises:
            ValueError: when `decode_clusters` is set for a family whose decoder cannot run on clusters.
        """
        allowed = "None for this model: only Segmenter has a decoder that can run on clusters"
        require(
            decodes_clusters or self.decode_clusters is None, "decode_clusters", self.decode_clusters, allowed, None
        )
        expansion = self.expansion or expansion
        if self.adaptive:
            normalization = None
        elif self.normalization is None:
            normalization = "l1" if expansion == "delta" else normalization
        else:
            normalization = self.normalization
        decode = self.decode_clusters
        if decodes_clusters and decode is None:
            decode = self.usually_decodes_clusters
        return replace(self, expansion=expansion, normalization=normalization, decode_clusters=decode)

    def steps_within(self, depth: int) -> int | tuple[int, ...]:
        """A `cluster_after` of as many steps for `depth` blocks, as an example: they part the blocks evenly."""
        steps = len(self.starts)
        return depth // 2 if steps == 1 else tuple(depth * (i + 1) // (steps + 1) for i in range(steps))

    def check_depth(self, depth: int) -> None:
        """Raises ValueError where the schedule does not fit `depth` blocks."""
        allowed = f"between 0 and {depth - 1} for {depth} blocks"
        require(self.starts[-1] < depth, "cluster_after", self.cluster_after, allowed, self.steps_within(depth))
        until = self.reconstruct_after
        allowed = f"None or between {self.starts[-1] + 1} and {depth} for {depth} blocks"
        require(until is None or until <= depth, "reconstruct_after", until, allowed, depth)

    def check_no_mask_shift(self) -> None:
        """Raises ValueError where `mask_shift` is set, for a host without shifted windows."""
        allowed = "None for this model: only Swin and its relatives shift their windows"
        require(self.mask_shift is None, "mask_shift", self.mask_shift, allowed, None)

    def fit_stages(self, depths: Sequence[int], windows: Sequence[int]) -> "TokenClusteringConfig":
        """The setting for a host with stages, of so many blocks and windows of so many tokens a side.

        The span ends with the stage that it begins in, at the latest, since patch merging follows there.

        Raises:
            ValueError: when the schedule or the cluster grid does not fit that stage.
        """
        self.check_depth(sum(depths))
        ends = list(accumulate(depths))
        stage = next(index for index, end in enumerate(ends) if self.cluster_after < end)
        end, until = ends[stage], self.reconstruct_after
        where = f"stage {stage + 1} of depths {list(depths)}"
        allowed = f"None or between {self.cluster_after + 1} and {end}, where {where} ends, which cluster_after is in"
        require(until is None or until <= end, "reconstruct_after", until, allowed, end)
        starts = (end - depth for end, depth in zip(ends, depths, strict=True))
        elsewhere = next((start for start, side in zip(starts, windows, strict=True) if side > 1), None)
        self.check_window_grid(windows[stage], where, elsewhere)
        return replace(self, reconstruct_after=until or end, mask_shift=self.mask_shift or MASK_SHIFTS[0])

    def check_window_grid(self, side: int, where: str = "this model", elsewhere: int | None = None) -> None:
        """Raises ValueError where windows of side x side tokens cannot become smaller windows of clusters.

        Args:
            side: of the windows, in tokens.
            where: what has these windows, in words.
            elsewhere: a `cluster_after` where the windows have more than one token, if there is one.
        """
        if side <= 1:
            example = "accel=None" if elsewhere is None else f"cluster_after={elsewhere}"
            raise UserError(
                f"cluster_after={self.cluster_after!r} is not valid: the windows of {where} have one token each, "
                f"which leaves nothing to cluster, for example {example}."
            )
        height, width = self.cluster_grid
        allowed = (
            f"a square smaller than the {side} x {side} tokens of a window of {where}, which becomes one of clusters"
        )
        example = (max(1, side * 7 // 10),) * 2
        require(height == width and height < side, "cluster_grid", self.cluster_grid, allowed, example)

    def check_frames(self, count: int) -> None:
        """Raises ValueError where `count` consecutive frames cannot be divided into clips."""
        allowed = f"1 or a divisor of the {count} frames of this batch"
        require(count % self.shared_frames == 0, "shared_frames", self.shared_frames, allowed, count)

    def check_grid(self, grid: tuple[int, int], unit: str = "the image") -> None:
        """Raises ValueError where the clusters outnumber the (H, W) tokens of what is clustered together, `unit`."""
        height, width = grid
        if self.adaptive:
            self.counts(height * width)
            return
        clusters = self.cluster_grid[0] * self.cluster_grid[1]
        example = (max(1, height * 7 // 10), max(1, width * 7 // 10))
        allowed = (
            f"at most as many clusters as tokens: {unit} has {height} x {width} = {height * width}, not {clusters}"
        )
        require(clusters <= height * width, "cluster_grid", self.cluster_grid, allowed, example)

    def check_no_clusters(self, model_type: str) -> None:
        """Raises ValueError for adaptive clusters or their attention, for a host that takes a grid only."""
        if self.adaptive:
            raise UserError(
                f"clusters={self.clusters!r} is not valid: it must be None for {model_type!r}, whose windows or "
                "relative positions need a grid of clusters, for example clusters=None, cluster_grid=(7, 7)."
            )
        allowed = f"None or False for {model_type!r}, whose attention takes no sizes"
        require(not self.size_attention, "size_attention", self.size_attention, allowed, False)
