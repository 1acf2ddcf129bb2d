from ...models.segmenter.modeling import SegmenterConfig, SegmenterForSemanticSegmentation  # noqa: F401
