"""The evaluations: a folder for each, with its options and what it loads.

`hf_tokaccel evaluate` and the scripts in examples/ run them.
"""

import argparse
from importlib import import_module
from types import ModuleType

NAMES = ("depth", "segmentation", "panoptic", "instances", "sam")
# What a model loads with says which of them is meant; models with masks for queries serve several.
BY_AUTO_CLASS = {
    "AutoModelForDepthEstimation": ("depth",),
    "AutoModelForSemanticSegmentation": ("segmentation",),
    "AutoModelForUniversalSegmentation": ("panoptic", "instances", "segmentation"),
    "AutoModelForInstanceSegmentation": ("instances",),
    "AutoModelForObjectDetection": ("instances",),
    "AutoModelForMaskGeneration": ("sam",),
}


def find_script(name: str) -> ModuleType:
    """The module of an evaluation: `build_parser(description)` and `load(arguments, device)`."""
    return import_module(f".{name}.script", __package__)


def build_parser(name: str, prog: str) -> argparse.ArgumentParser:
    """The options of an evaluation for a program of that name."""
    parser = find_script(name).build_parser()
    parser.prog = prog
    return parser
