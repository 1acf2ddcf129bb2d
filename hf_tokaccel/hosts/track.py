"""What one forward pass of an accelerated model carries along: clusters, plan and the features that somebody reads."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..clustering.functional import (
    ReconstructionPlan,
    TokenClusters,
    cluster_tokens,
    plan_reconstruction,
    reconstruct_tokens,
)
from ..settings.clustering import TokenClusteringConfig
from ..upstream import CompileableContextVar
from .layout import TokenLayout


@dataclass
class ClusterObservation:
    """What a clustering did, for pictures and measurements; see `observe_clusters`."""

    grid: tuple[int, int]
    cluster_grid: tuple[int, int]
    keys: Tensor
    clusters: TokenClusters
    layout: TokenLayout

    def labels(self) -> Tensor:
        """(B, H, W) index of the nearest cluster of each token, row-major over the cluster grid.

        B counts what is clustered on its own: images, slices of videos, or windows.
        """
        plan = plan_reconstruction(self.keys, self.clusters.key_centroids, expansion="nearest")
        return plan.indices[..., 0].reshape(-1, *self.grid)

    def image_labels(self) -> Tensor:
        """(B, H, W) like `labels`, but over all windows of an image, whose clusters are numbered on."""
        return self.layout.assemble(self.labels())


_observations: ContextVar[list[ClusterObservation] | None] = ContextVar("tokaccel_observations", default=None)


@contextmanager
def observe_clusters() -> Iterator[list[ClusterObservation]]:
    """Collects every clustering of the eager forward passes run inside, in this thread only.

    Compiled and exported graphs are not observed.
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
    """

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
        self._plan = None
        self._tokens: Tensor | None = None
        self._keys: Tensor | None = None
        self._clusters: TokenClusters | None = None

    def before_layer(self, index: int, states: Tensor, norm: nn.Module | None = None) -> Tensor:
        """States as block `index` shall see them; `norm` is that block's first LayerNorm."""
        if index == 0:
            self._record(0, states)
        return self._cluster(states, norm) if index == self.accel.cluster_after else states

    def after_layer(self, index: int, states: Tensor) -> Tensor:
        """The output of block `index`, at full resolution from the block on where the setting says so."""
        self.blocks_run += 1
        done = index + 1
        if done == (self.accel.reconstruct_after or self.depth) and (done < self.depth or self.final):
            states = self.full(states)
            self.clustered = False
        elif done == self.depth and self.clustered:
            self.last_clusters = self.layout.split(states, self.accel.cluster_grid)[1]
        self._record(done, states)
        return states

    def full(self, states: Tensor) -> Tensor:
        """States brought back to all tokens; what bypasses clustering is as given."""
        if not self.clustered:
            return states
        kept, refined = self.layout.split(states, self.accel.cluster_grid)
        return self.layout.join(kept, self.rebuild(refined), self.layout.grid)

    def rebuild(self, refined: Tensor) -> Tensor:
        """(B', N, C') from what became of the clusters, (B', M, C')."""
        folded = self._fold(refined)
        return self._unfold(reconstruct_tokens(folded, self._plan_for(folded)))

    def spread(self, change: Tensor) -> Tensor:
        """(B', N, C') from a change of the clusters (B', M, C') of any width: its weighted sums, whatever expands."""
        folded = self._fold(change)
        plan = self._plan_for(folded)._replace(tokens=None, centroids=None)
        return self._unfold(reconstruct_tokens(folded, plan))

    def _plan_for(self, refined: Tensor) -> ReconstructionPlan:
        """The one plan of this pass, built when it is first needed, on the device where it is needed."""
        if self._plan is None:
            accel, keyed = self.accel, self._keys is not None
            self._plan = plan_reconstruction(
                self._tokens,
                self._clusters.centroids,
                neighbors=accel.neighbors,
                inverse_temperature=accel.inverse_temperature,
                normalization=accel.normalization,
                expansion=accel.expansion,
                keys=self._keys,
                key_centroids=self._clusters.key_centroids if keyed else None,
                grid=self.layout.grid,
                cluster_grid=accel.cluster_grid,
                window=accel.neighbor_window,
            )
        if self._plan.weights.device != refined.device:
            # A device map may split the clustered blocks over devices.
            self._plan = type(self._plan)(*(part if part is None else part.to(refined.device) for part in self._plan))
        return self._plan

    def check_ran(self) -> None:
        """Raises RuntimeError if the host did not run its blocks through this track, so nothing was accelerated."""
        if self.blocks_run != self.depth:
            raise RuntimeError(
                f"{self.blocks_run} of {self.depth} blocks ran through the acceleration: the host's forward does not "
                "pass it on. This is a bug in hf_tokaccel or an unsupported version of transformers; please report it."
            )

    def _cluster(self, states: Tensor, norm: nn.Module | None) -> Tensor:
        accel, layout = self.accel, self.layout
        kept, tokens = layout.split(states, layout.grid)
        keys = norm(tokens) if accel.similarity_on == "normalized" else None
        if accel.shared_frames > 1:
            accel.check_frames(layout.frames(len(tokens)))
            keys = self._fold(tokens if keys is None else keys).unflatten(2, (accel.shared_frames, -1)).mean(2)
        tokens = self._fold(tokens)
        self._tokens, self._keys = tokens, keys
        averaged = tokens
        if self.positions is not None:
            # Averaged along with the tokens, compared never. Half precision would round them.
            averaged = torch.cat((tokens.float(), self.positions.expand(len(tokens), -1, -1)), dim=2)
            keys = tokens if keys is None else keys
        clusters = cluster_tokens(
            averaged,
            layout.grid,
            accel.cluster_grid,
            iterations=accel.iterations,
            inverse_temperature=accel.inverse_temperature,
            window=accel.window,
            keys=keys,
        )
        if self.positions is not None:
            centroids, self.cluster_positions = clusters.centroids.split(
                [tokens.shape[2], self.positions.shape[1]], dim=2
            )
            clusters = clusters._replace(centroids=centroids.to(tokens.dtype))
            self.cluster_positions = self._unfold(self.cluster_positions.repeat(1, 1, accel.shared_frames))
        self._clusters = clusters
        self.clustered = True
        self._observe()
        return layout.join(kept, self._unfold(clusters.centroids), accel.cluster_grid)

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

    def _observe(self) -> None:
        if torch.compiler.is_compiling():
            return
        seen = _observations.get()
        if seen is not None:
            keys = self._tokens if self._keys is None else self._keys
            seen.append(
                ClusterObservation(self.layout.grid, self.accel.cluster_grid, keys, self._clusters, self.layout)
            )

    def _record(self, index: int, states: Tensor) -> None:
        if self.wanted:
            self.hidden_states.append(self.full(states) if index in self.wanted else None)


class TrackedLayer:
    """A block as its host's loop sees it: called like the block, it runs on tokens or clusters."""

    def __init__(self, index: int, layer: nn.Module, norm: str, ambient: bool) -> None:
        self.index = index
        self.layer = layer
        self.norm = norm
        self.ambient = ambient

    def __call__(self, states: Tensor, *args: Any, accel_track: TokenTrack | None = None, **kwargs: Any) -> Any:
        if self.ambient:
            accel_track = ambient_track.get()
        if accel_track is None:
            return self.layer(states, *args, **kwargs)
        states = accel_track.before_layer(self.index, states, getattr(self.layer, self.norm))
        args, kwargs = accel_track.block_inputs(accel_track, args, kwargs)
        output = self.layer(states, *args, **kwargs)
        if isinstance(output, tuple):
            return accel_track.after_layer(self.index, output[0]), *output[1:]
        return accel_track.after_layer(self.index, output)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)


class TrackedLayers(nn.ModuleList):
    """A host's list of blocks whose iteration yields tracked blocks: the host's own loop stays untouched.

    Children, and so parameter names, are those of the list that it replaces. `norm` names a block's first LayerNorm;
    with `ambient` the track comes from `ambient_track` instead of the keyword `accel_track`.
    """

    def __init__(self, layers: nn.ModuleList, norm: str, ambient: bool = False) -> None:
        super().__init__(layers)
        self.norm = norm
        self.ambient = ambient

    def __iter__(self) -> Iterator[TrackedLayer]:
        for index, layer in enumerate(self._modules.values()):
            yield TrackedLayer(index, layer, self.norm, self.ambient)

    def __getitem__(self, index: int | slice) -> Any:
        # Some hosts loop over a slice; a single index is somebody who wants the module.
        return list(self)[index] if isinstance(index, slice) else super().__getitem__(index)
