"""Semantic tokens (STViT and STViT-R, CVPR 2023): trained models whose layers run on a few learned cluster centres."""

from ..settings.semantic import SemanticTokenConfig
from .modeling import SEMANTIC, Initialization, initialize

__all__ = ["SEMANTIC", "Initialization", "SemanticTokenConfig", "initialize"]
