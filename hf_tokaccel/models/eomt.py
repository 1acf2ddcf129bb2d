"""EoMT: the last blocks run with the queries among the tokens, so the blocks before those are accelerated."""

from dataclasses import replace
from typing import Any

from transformers import AutoModelForImageSegmentation, EomtConfig, EomtForUniversalSegmentation, PreTrainedConfig

from ..checks import UserError
from ..hosts.blocks import Encoder, Grid
from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, record
from ..registry import register_family
from ..settings.clustering import TokenClusteringConfig
from ..settings.methods import as_accel
from .dinov2 import Dinov2BlocksConfig


class QueryBlocksConfig(AcceleratedConfig):
    """What the configurations of EoMT and EoMT-DINOv3 share: the accelerated span ends where the queries join.

    Nothing was released for EoMT. Blocks follow on what is reconstructed, so its weights sum to one by default.
    """

    accel_normalization = "l1"
    accel_fixed_image_size = True
    accel_prefix_field = "num_register_tokens"

    def resolve_accel(self, accel: Any) -> TokenClusteringConfig:
        """See `AcceleratedConfig`; an open `reconstruct_after` becomes the last block before the queries.

        Raises:
            ValueError: when the setting is not valid, or does not fit the blocks before the queries.
        """
        setting = as_accel(accel)
        # As in AcceleratedConfig: the number of blocks is known only after the host's __post_init__.
        if "_name_or_path" in self.__dict__:
            setting = self._end_before_queries(setting)
        return super().resolve_accel(setting)

    def _end_before_queries(self, setting: TokenClusteringConfig) -> TokenClusteringConfig:
        last, start, end = self.num_hidden_layers - self.num_blocks, setting.starts[-1], setting.reconstruct_after
        why = f"the queries join the last num_blocks={self.num_blocks} of num_hidden_layers={self.num_hidden_layers}"
        if last < 1:
            raise UserError(f"a model without blocks before the queries cannot be accelerated: {why}; pass None.")
        if start >= last:
            raise UserError(
                f"cluster_after={setting.cluster_after} is not valid: it must be between 0 and {last - 1}, since "
                f"{why}, for example cluster_after={setting.steps_within(last)}."
            )
        if end is not None and end > last:
            raise UserError(
                f"reconstruct_after={end} is not valid: it must be None or between {start + 1} and {last}, since "
                f"{why}, for example reconstruct_after={last}."
            )
        return replace(setting, reconstruct_after=end or last)

    @classmethod
    def accel_encoder(cls, host: PreTrainedConfig, image_size: Grid) -> Encoder:
        """See `AcceleratedConfig`; in the last blocks the queries are among the tokens."""
        encoder, last = super().accel_encoder(host, image_size), host.num_hidden_layers - host.num_blocks
        joined = (replace(block, prefix=block.prefix + host.num_queries) for block in encoder.blocks[last:])
        return replace(encoder, blocks=(*encoder.blocks[:last], *joined), spans=((0, last),))


class QueryBlocksModel(AcceleratedModel):
    """What the models share: queries and attention masks come after the span, so blocks keep what the host passes."""

    accel_layers = "layers"
    accel_norm = "norm1"
    accel_ambient = True
    accel_passes_inputs = True


class TokAccelEomtConfig(QueryBlocksConfig, Dinov2BlocksConfig, EomtConfig):
    """`EomtConfig` with `accel`."""

    model_type = "tokaccel_eomt"


class TokAccelEomtForUniversalSegmentation(QueryBlocksModel, EomtForUniversalSegmentation):
    config: TokAccelEomtConfig
    forward = enter(record(EomtForUniversalSegmentation.forward, ties_last=True))


register_family(
    TokAccelEomtConfig,
    (TokAccelEomtForUniversalSegmentation,),
    note="the blocks before the queries; like its host neither exported nor compiled into one graph",
    also={AutoModelForImageSegmentation: TokAccelEomtForUniversalSegmentation},
)
