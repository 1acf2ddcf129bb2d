"""Accelerated Segmenter: clusters in the encoder, and by default in the decoder too, as released."""

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...checks import as_pair
from ...hosts.config import AcceleratedConfig
from ...hosts.layout import TokenLayout
from ...hosts.modeling import AcceleratedModel, enter, record
from ...hosts.sizes import weigh_sizes
from ...hosts.track import TokenTrack
from ...hosts.tracked import track_blocks
from ...registry import register_family
from ...settings.clustering import TokenClusteringConfig
from .configuration import SegmenterConfig
from .modeling import SegmenterForSemanticSegmentation, SegmenterModel, token_grid


class TokAccelSegmenterConfig(AcceleratedConfig, SegmenterConfig):
    """`SegmenterConfig` with `accel`.

    Released Segmenter sums softly with the L2 norm: class logits with `decode_clusters`, else features after the last
    LayerNorm. Only `"delta"` rebuilds before that LayerNorm, since it adds to the tokens of an earlier block; with
    `decode_clusters` it adds the change in the decoder's blocks, too, so that only projections see all tokens.
    """

    model_type = "tokaccel_segmenter"
    native_class = SegmenterConfig
    accel_decodes_clusters = True
    accel_prefix, accel_prefix_field = 0, "num_prefix_tokens"

    @property
    def accel_decodes_change(self) -> bool:
        return self.decoder_type != "linear" and self.decoder_num_hidden_layers > 0


class _AcceleratedSegmenter(AcceleratedModel):
    def accel_layout(self, arguments: dict[str, Any]) -> TokenLayout:
        grid = token_grid(arguments["pixel_values"], as_pair(self.config.patch_size))
        return TokenLayout(grid, self.config.num_prefix_tokens)


def _leave_last_clustered(forward: Callable, decodes: bool = False) -> Callable:
    """After the last block clusters stay clusters, to be rebuilt behind the LayerNorm; except those of `"delta"`.

    Args:
        forward: the host's, as `enter` wraps it.
        decodes: whether a decoder follows, which may run on the clusters of `"delta"`.
    """

    @functools.wraps(forward)
    def wrapped(self, *args, **kwargs):
        if self.accel is not None:
            kwargs["accel_final"] = self.accel.expansion == "delta" and not (decodes and self.accel.decode_clusters)
        return forward(self, *args, **kwargs)

    return wrapped


def _rebuild_last(native_forward: Callable) -> Callable:
    """Rebuilds the patch tokens of `last_hidden_state`, if they are still clusters."""

    @functools.wraps(native_forward)
    def forward(self, *args, **kwargs):
        track = kwargs.get("accel_track")
        output = native_forward(self, *args, **kwargs)
        if track is None or not track.clustered:
            return output
        return type(output)(**{**output, "last_hidden_state": track.full(output.last_hidden_state)})

    return forward


_run_within = record(SegmenterModel.forward)
_run_alone = _leave_last_clustered(enter(record(_rebuild_last(SegmenterModel.forward))))


class TokAccelSegmenterModel(_AcceleratedSegmenter, SegmenterModel):
    """Tokens (B, prefix + N, hidden_size); within the segmentation model it returns clusters and leaves them to it."""

    config: TokAccelSegmenterConfig
    native_class = SegmenterModel
    accel_layers = "layers"

    @functools.wraps(SegmenterModel.forward)
    def forward(self, *args, **kwargs):
        run = _run_alone if kwargs.get("accel_track") is None else _run_within
        return run(self, *args, **kwargs)


class TokAccelSegmenterForSemanticSegmentation(_AcceleratedSegmenter, SegmenterForSemanticSegmentation):
    config: TokAccelSegmenterConfig
    native_class = SegmenterForSemanticSegmentation
    accel_parts = ("segmenter",)
    forward = _leave_last_clustered(enter(SegmenterForSemanticSegmentation.forward), decodes=True)

    def install_accel(self, accel: TokenClusteringConfig | None) -> None:
        super().install_accel(accel)
        if accel is not None and accel.size_attention and accel.decode_clusters and self.config.accel_decodes_change:
            track_blocks(self.decode_head.layers, self.segmenter.accel_norm)
            for layer in self.decode_head.layers:
                weigh_sizes(layer)

    def classify(self, tokens: Tensor, accel_track: TokenTrack | None = None, **kwargs: Any) -> Tensor:
        if accel_track is None or not accel_track.clustered:
            return self.decode_head(tokens)
        if self.accel.expansion == "delta":
            return self._decode_change(tokens, accel_track)
        if self.accel.decode_clusters:
            logits = self.decode_head(tokens, **self._sizes(accel_track))
            return accel_track.rebuild(logits)
        return self.decode_head(accel_track.rebuild(tokens))

    def _decode_change(self, clusters: Tensor, track: TokenTrack) -> Tensor:
        """Logits of all tokens from a decoder whose blocks see clusters (B, M, hidden_size), after the LayerNorm."""
        tokens = self.segmenter.layernorm(track.rebuild(track.last_clusters))
        before = self.decode_head.projection(clusters)
        after, classes = self.decode_head.transform(before, **self._sizes(track))
        patches = self.decode_head.projection(tokens) + track.spread(after - before)
        return self.decode_head.compare(patches, classes)

    def _sizes(self, track: TokenTrack) -> dict[str, Any]:
        """What the decoder's blocks need to weigh clusters by their size, beside class embeddings that stand alone."""
        if track.bias is None or not self.config.accel_decodes_change:
            return {}
        bias = F.pad(track.bias[..., track.layout.prefix :], (0, self.config.num_labels))
        return {"accel_bias": bias}


register_family(
    TokAccelSegmenterConfig,
    (TokAccelSegmenterModel, TokAccelSegmenterForSemanticSegmentation),
    note="the native model is ours too; released: the decoder runs on clusters and logits are reconstructed",
)
