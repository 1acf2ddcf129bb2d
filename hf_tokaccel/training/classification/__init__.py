"""Training of image classifiers, plain and with semantic tokens: data, recipe, loop, model card."""

from .data import LabelledImages, load_images
from .drop_path import DropPath
from .models import SIZES, Teacher, build_model, build_processor
from .recipe import Recipe
from .run import Run, Settings, evaluate

__all__ = [
    "SIZES",
    "DropPath",
    "LabelledImages",
    "Recipe",
    "Run",
    "Settings",
    "Teacher",
    "build_model",
    "build_processor",
    "evaluate",
    "load_images",
]
