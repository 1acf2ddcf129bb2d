"""STViT on ViViT, EXPERIMENTAL: of its video models only numbers were ever published.

The paper's text says that each frame has semantic tokens of its own; the rest is our reading. Base layers attend over
space and time, semantic tokens are generated in each slice of tubelets from that slice alone, and the layers after
that run on the semantic tokens of all slices together.
"""

import warnings

from torch import Tensor, nn
from transformers import VivitConfig, VivitForVideoClassification, VivitModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.vivit.modeling_vivit import (
    VivitAttention,
    VivitLayer,
    VivitPreTrainedModel,
    VivitTubeletEmbeddings,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ..checks import UserError, as_pair
from ..semantic.global_tokens import GlobalConfig, GlobalModel, PositionedPatches, patch_parameters
from ..semantic.layers import SemanticAttention, SemanticLayer
from ..semantic.modeling import SemanticFamily, register_semantic_family
from ..upstream import capture_outputs


class TokAccelSTViTVideoConfig(GlobalConfig, VivitConfig):
    """`VivitConfig` with `drop_path_rate` and `accel`, whose `token_grid` is that of one slice. Experimental."""

    model_type = "tokaccel_stvit_video"

    @property
    def slices(self) -> int:
        """Slices of tubelets in a video."""
        return self.num_frames // self.tubelet_size[0]

    def token_map(self) -> tuple[int, int]:
        """(H, W) tokens of a slice."""
        height, width = as_pair(self.image_size)
        return height // self.tubelet_size[1], width // self.tubelet_size[2]


class STViTVideoEmbeddings(PositionedPatches):
    """Tubelets of videos with their positions."""

    def __init__(self, config: TokAccelSTViTVideoConfig) -> None:
        super().__init__(config, VivitTubeletEmbeddings(config))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Tokens (B, T * H * W, C) of videos (B, frames, channels, height, width).

        Raises:
            ValueError: on another number of frames or image size than the configuration's.
        """
        frames, size = pixel_values.shape[1], tuple(pixel_values.shape[-2:])
        expected = as_pair(self.config.image_size)
        if (frames, *size) != (self.config.num_frames, *expected):
            raise UserError(
                f"Input of {frames} frames of size {size} is not valid: this model was built for "
                f"{self.config.num_frames} frames of size {expected}, so sample and resize the video to these."
            )
        return self.embed(pixel_values, self.position_embeddings)


class STViTVideoPreTrainedModel(GlobalModel, VivitPreTrainedModel):
    config: TokAccelSTViTVideoConfig
    _no_split_modules = ["STViTVideoEmbeddings", "VivitLayer", "SemanticLayer"]
    _can_record_outputs = {
        "hidden_states": [VivitLayer, SemanticLayer],
        "attentions": [VivitAttention, SemanticAttention],
    }


class TokAccelSTViTVideoModel(STViTVideoPreTrainedModel):
    """Base layers on all tokens, generation per slice, semantic layers over the tokens of all slices. Experimental.

    Warns:
        UserWarning: always, that nothing of this was published.
    """

    def __init__(self, config: TokAccelSTViTVideoConfig) -> None:
        super().__init__(config)
        warnings.warn(
            f"{type(self).__name__} is experimental: of STViT's video models only numbers were ever published, so how "
            "semantic tokens of slices are generated and joined is our reading, which nothing could be compared with.",
            stacklevel=2,
        )
        self.build(STViTVideoEmbeddings(config), VivitLayer)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutputWithPooling:
        """Videos (B, frames, channels, height, width) to S semantic tokens for each of T slices.

        `last_hidden_state` (B, T * S, C) holds them after the final LayerNorm, slice by slice, and `pooler_output`
        (B, C) their mean. `hidden_states` and `attentions` have the tokens of their layer; those of generation layers
        come from slices, which are folded into the batch as B * T rows.

        Raises:
            ValueError: on another number of frames or image size, or an argument that the model cannot use.
        """
        if kwargs.pop("interpolate_pos_encoding", None):
            raise UserError(
                f"interpolate_pos_encoding=True is not valid for {type(self).__name__}: resize the video to "
                f"image_size={self.config.image_size} of the configuration."
            )
        return self.run(self.embeddings(pixel_values), self.config.token_map(), **kwargs)


class TokAccelSTViTForVideoClassification(STViTVideoPreTrainedModel):
    """A linear classifier of the mean semantic token of all slices. Experimental."""

    def __init__(self, config: TokAccelSTViTVideoConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vivit = TokAccelSTViTVideoModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        """Logits (B, labels) of videos (B, frames, channels, height, width), and the loss for labels (B,)."""
        return self.classified(self.vivit(pixel_values, **kwargs), labels, **kwargs)


def _adapt(values: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return patch_parameters(values, model.config)


register_semantic_family(
    "vivit",
    SemanticFamily(
        TokAccelSTViTVideoConfig,
        {VivitModel: TokAccelSTViTVideoModel, VivitForVideoClassification: TokAccelSTViTForVideoClassification},
        _adapt,
    ),
)
