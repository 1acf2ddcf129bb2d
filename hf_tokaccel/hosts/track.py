"""What one forward pass of an accelerated model carries along: clusters, plan and the features that somebody reads."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..clustering.adaptive import size_bias
from ..settings.clustering import TokenClusteringConfig
from ..upstream import CompileableContextVar
from .clusters import AdaptiveClusters, GridClusters
from .layout import TokenLayout


@dataclass
class ClusterObservation:
    """What a clustering did, for pictures and measurements; see `observe_clusters`.

    Attributes:
        grid: (H, W) of the tokens that are clustered together.
        keys: (B, N, K) what was compared.
        clusters: of each image, slice of a video, or window: `centroids` (B, M, C), `labels()` (B, N); with a grid
            `key_centroids` too, of adaptive clusters `regions`.
        layout: where tokens are in the states.
    """

    grid: tuple[int, int]
    keys: Tensor
    clusters: GridClusters | AdaptiveClusters
    layout: TokenLayout

    @property
    def cluster_grid(self) -> tuple[int, int]:
        """(h, w) of the clusters; (1, M) of adaptive ones."""
        return self.clusters.shape

    def labels(self) -> Tensor:
        """(B, H, W) index of the nearest cluster of each token, row-major over the cluster grid if there is one.

        B counts what is clustered on its own: images, slices of videos, or windows.
        """
        return self.clusters.labels().reshape(-1, *self.grid)

    def image_labels(self) -> Tensor:
        """(B, H, W) like `labels`, but over all windows of an image, whose clusters are numbered on."""
        return self.layout.assemble(self.labels())


def last_steps(seen: Sequence[ClusterObservation]) -> list[ClusterObservation]:
    """Of the observations of whole forward passes those of the last step of each."""
    steps = len(seen[0].clusters.accel.starts)
    return list(seen[steps - 1 :: steps])


_observations: ContextVar[list[ClusterObservation] | None] = ContextVar("tokaccel_observations", default=None)


@contextmanager
def observe_clusters() -> Iterator[list[ClusterObservation]]:
    """Collects every clustering of the eager forward passes run inside, in this thread only.

    Each step of a setting with several is one; `last_steps` picks. Compiled and exported graphs are not observed.
    """
    seen: list[ClusterObservation] = []
    token = _observations.set(seen)
    try:
        yield seen
    finally:
        _observations.reset(token)


# The track of hosts whose forward hands no keywords down to its blocks; theirs only, and only while they run.
ambient_track = CompileableContextVar("tokaccel_track")
# What the head around such a host reads of it; see `modeling.read`.
ambient_read = CompileableContextVar("tokaccel_read")


def _only_states(track: "TokenTrack", args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return args, kwargs


class TokenTrack:
    """The state of one forward pass: a local variable of it, so passes never disturb each other.

    Args:
        accel: the setting, with nothing left open.
        layout: where the patch tokens are in the states of this host, at this image size.
        depth: blocks of the host.
        wanted: indices of the hidden states that somebody reads; 0 is the embeddings, i the output of block i - 1.
        final: whether the patch tokens after the last block are read at full resolution.
        block_inputs: given this track, what else a block is called with; see `AcceleratedModel.accel_block_inputs`.
        positions: (N, P) coordinates of the tokens of `layout`, of which `cluster_positions` then has the means.

    Attributes:
        adaptive_clusters: what makes adaptive clusters; measurements put others in its place.
    """

    adaptive_clusters: type[AdaptiveClusters] = AdaptiveClusters

    def __init__(
        self,
        accel: TokenClusteringConfig,
        layout: TokenLayout,
        *,
        depth: int,
        wanted: Collection[int],
        final: bool = True,
        block_inputs: Callable = _only_states,
        positions: Tensor | None = None,
    ) -> None:
        self.accel = accel
        self.layout = layout
        self.depth = depth
        self.wanted = wanted
        self.final = final
        self.block_inputs = block_inputs
        self.positions = positions
        self.cluster_positions: Tensor | None = None
        self.memo: dict[str, Any] = {}  # what a host's block inputs compute once per pass
        self.hidden_states: list[Tensor | None] = []
        self.clustered = False
        self.blocks_run = 0
        self.last_clusters: Tensor | None = None  # (B', M, C) after the last block, where nothing was rebuilt
        self.clusters: GridClusters | AdaptiveClusters | None = None
        self.bias: Tensor | None = None  # (B, 1, 1, keys) of attention that knows sizes, on clusters

    def before_layer(self, index: int, states: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        """States as block `index` shall see them; `normalize` is that block's first LayerNorm."""
        if index == 0:
            self._record(0, states)
        if index not in self.accel.starts:
            return states
        # A later step starts from all tokens, so that what the one before changed is kept in each.
        return self._cluster(self.full(states), normalize, self.accel.starts.index(index))

    def after_layer(self, index: int, states: Tensor) -> Tensor:
        """The output of block `index`, at full resolution from the block on where the setting says so."""
        self.blocks_run += 1
        done = index + 1
        if done == (self.accel.reconstruct_after or self.depth) and (done < self.depth or self.final):
            states = self.full(states)
            self.clustered = False
        elif done == self.depth and self.clustered:
            self.last_clusters = self.layout.split(states, self.clusters.shape)[1]
        self._record(done, states)
        return states

    def full(self, states: Tensor) -> Tensor:
        """States brought back to all tokens; what bypasses clustering is as given."""
        if not self.clustered:
            return states
        kept, refined = self.layout.split(states, self.clusters.shape)
        return self.layout.join(kept, self.rebuild(refined), self.layout.grid)

    def rebuild(self, refined: Tensor) -> Tensor:
        """(B', N, C') from what became of the clusters, (B', M, C')."""
        return self._unfold(self.clusters.rebuild(self._fold(refined)))

    def spread(self, change: Tensor) -> Tensor:
        """(B', N, C') from a change of the clusters (B', M, C') of any width: its weighted sums, whatever expands."""
        return self._unfold(self.clusters.spread(self._fold(change)))

    def check_ran(self) -> None:
        """Raises RuntimeError if the host did not run its blocks through this track, so nothing was accelerated."""
        if self.blocks_run != self.depth:
            raise RuntimeError(
                f"{self.blocks_run} of {self.depth} blocks ran through the acceleration. If you shortened the list of "
                "blocks, or put others in their place, do that before hf_tokaccel.accelerate, and set "
                "num_hidden_layers of the configuration to match. Else the host's forward does not pass the "
                "acceleration on: please report this with your version of transformers."
            )

    def _cluster(self, states: Tensor, normalize: Callable[[Tensor], Tensor], step: int) -> Tensor:
        accel, layout = self.accel, self.layout
        kept, tokens = layout.split(states, layout.grid)
        keys = normalize(tokens) if accel.similarity_on == "normalized" else None
        if accel.shared_frames > 1:
            accel.check_frames(layout.frames(len(tokens)))
            keys = self._fold(tokens if keys is None else keys).unflatten(2, (accel.shared_frames, -1)).mean(2)
        tokens = values = self._fold(tokens)
        if self.positions is not None:
            # Averaged along with the tokens, compared never. Half precision would round them.
            values = torch.cat((tokens.float(), self.positions.expand(len(tokens), -1, -1)), dim=2)
        if accel.adaptive:
            count = accel.counts(tokens.shape[1])[step]
            clusters = self.adaptive_clusters(accel, layout.grid, tokens, keys, values, count, self.clusters)
        else:
            clusters = GridClusters(accel, layout.grid, tokens, keys, values)
        if self.positions is not None:
            positions = clusters.means[..., tokens.shape[2] :].repeat(1, 1, accel.shared_frames)
            self.cluster_positions = self._unfold(positions)
        self.clusters, self.clustered = clusters, True
        self.memo.clear()
        if accel.size_attention:
            # In the dtype of the states, so that not every block has to convert it.
            self.bias = self._size_bias(kept, clusters.sizes()).to(states.dtype)
        self._observe(tokens if keys is None else keys)
        return layout.join(kept, self._unfold(clusters.centroids), clusters.shape)

    def _size_bias(self, kept: Tensor | None, sizes: Tensor) -> Tensor:
        """(B, 1, 1, keys) in the order of the states; what bypasses clustering stands for itself."""
        ones = None if kept is None else sizes.new_ones(*kept.shape[:2], 1)
        sizes = self._unfold(sizes[..., None].repeat(1, 1, self.accel.shared_frames))
        return size_bias(self.layout.join(ones, sizes, self.clusters.shape)[..., 0])

    def _fold(self, tokens: Tensor) -> Tensor:
        """(B', N, C) with the channels of the frames that share a plan side by side: (B' / T, N, T * C)."""
        count = self.accel.shared_frames
        if count == 1:
            return tokens
        # The grids of a frame, its windows, lie next to each other.
        clips = tokens.unflatten(0, (-1, count, self.layout.parts))
        return clips.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 1)

    def _unfold(self, tokens: Tensor) -> Tensor:
        """The inverse of `_fold`."""
        count = self.accel.shared_frames
        if count == 1:
            return tokens
        clips = tokens.unflatten(0, (-1, self.layout.parts)).unflatten(3, (count, -1))
        return clips.permute(0, 3, 1, 2, 4).flatten(0, 2)

    def _observe(self, keys: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        seen = _observations.get()
        if seen is not None:
            seen.append(ClusterObservation(self.layout.grid, keys, self.clusters, self.layout))

    def _record(self, index: int, states: Tensor) -> None:
        if self.wanted:
            self.hidden_states.append(self.full(states) if index in self.wanted else None)
