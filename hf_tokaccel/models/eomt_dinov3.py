"""EoMT-DINOv3: EoMT on DINOv3's blocks; the rotary embedding of a cluster is that of its centre."""

from typing import Any

from torch import Tensor
from transformers import AutoModelForImageSegmentation, EomtDinov3Config, EomtDinov3ForUniversalSegmentation
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import EomtDinov3RotaryEmbedding

from ..hosts.modeling import enter, record
from ..hosts.track import TokenTrack, ambient_track
from ..registry import register_family
from .dinov3_vit import Dinov3BlocksConfig, rotary_of_patches, rotate_clusters
from .eomt import QueryBlocksConfig, QueryBlocksModel


class TokAccelEomtDinov3Config(QueryBlocksConfig, Dinov3BlocksConfig, EomtDinov3Config):
    """`EomtDinov3Config` with `accel`."""

    model_type = "tokaccel_eomt_dinov3"


class TokAccelEomtDinov3RotaryEmbedding(EomtDinov3RotaryEmbedding):
    """Also tells the track the patch centres, since training moves those at random."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin, centres = rotary_of_patches(self, pixel_values)
        track = ambient_track.get()
        if track is not None:
            track.positions = centres
        return cos, sin


class TokAccelEomtDinov3ForUniversalSegmentation(QueryBlocksModel, EomtDinov3ForUniversalSegmentation):
    config: TokAccelEomtDinov3Config
    accel_parts = ("rope_embeddings",)
    forward = enter(record(EomtDinov3ForUniversalSegmentation.forward, ties_last=True))

    def accel_block_inputs(
        self, track: TokenTrack, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        return args, rotate_clusters(self.rope_embeddings, track, kwargs)


register_family(
    TokAccelEomtDinov3Config,
    (TokAccelEomtDinov3ForUniversalSegmentation,),
    parts=(TokAccelEomtDinov3RotaryEmbedding,),
    note="as EoMT, with the rotary embedding of the cluster centres",
    also={AutoModelForImageSegmentation: TokAccelEomtDinov3ForUniversalSegmentation},
)
