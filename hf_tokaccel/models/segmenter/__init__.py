"""Segmenter, which Transformers lacks: the model and its accelerated form."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
from transformers.models.segformer import SegformerConfig

from ...upstream import image_processors, tell_pipelines
from .configuration import SegmenterConfig
from .modeling import (
    SegmenterForSemanticSegmentation,
    SegmenterModel,
    SegmenterPreTrainedModel,
    segmenter_image_processor,
)

AutoConfig.register("segmenter", SegmenterConfig, exist_ok=True)
AutoModel.register(SegmenterConfig, SegmenterModel, exist_ok=True)
AutoModelForSemanticSegmentation.register(SegmenterConfig, SegmenterForSemanticSegmentation, exist_ok=True)
tell_pipelines(AutoModelForSemanticSegmentation, "segmenter", (SegmenterForSemanticSegmentation,))
AutoImageProcessor.register(
    SegmenterConfig, image_processor_classes=dict(image_processors(SegformerConfig)), exist_ok=True
)

# Needs the registrations above.
from .accelerated import (  # noqa: E402
    TokAccelSegmenterConfig,
    TokAccelSegmenterForSemanticSegmentation,
    TokAccelSegmenterModel,
)

__all__ = [
    "SegmenterConfig",
    "SegmenterForSemanticSegmentation",
    "SegmenterModel",
    "SegmenterPreTrainedModel",
    "TokAccelSegmenterConfig",
    "TokAccelSegmenterForSemanticSegmentation",
    "TokAccelSegmenterModel",
    "segmenter_image_processor",
]
