from hf_tokaccel.models.segmenter.modeling import SegmenterConfig, SegmenterForSemanticSegmentation  # noqa: F401
