"""Transformers' own model and backbone tests, run on our classes with the native ones as control.

Importing this package fetches the sources once (see `sdist`) or skips the importing test module with the reason.
"""

from .accelerated import AcceleratedBackboneTests, AcceleratedModelTests
from .base import BackboneTests, ModelTests

__all__ = ["AcceleratedBackboneTests", "AcceleratedModelTests", "BackboneTests", "ModelTests"]
