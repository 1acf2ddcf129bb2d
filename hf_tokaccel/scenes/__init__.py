"""Procedural indoor RGB-D scenes, ray cast in PyTorch: images with exact depth, semantic labels and instances."""

from ._api import SceneDataset, as_datasets, render_scenes
from ._classes import CLASS_NAMES
from ._render import SceneBatch

__all__ = ["CLASS_NAMES", "SceneBatch", "SceneDataset", "as_datasets", "render_scenes"]
