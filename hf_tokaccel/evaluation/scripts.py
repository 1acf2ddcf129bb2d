"""The evaluations: the options of each, and which of them fits a model.

`hf_tokaccel evaluate` and the scripts in examples/ run them.
"""

from .depth.options import DepthOptions
from .instances.options import InstanceOptions
from .options import Options
from .panoptic.options import PanopticOptions
from .sam.options import SamOptions
from .segmentation.options import SegmentationOptions

EVALUATIONS: dict[str, type[Options]] = {
    options.task: options
    for options in (DepthOptions, SegmentationOptions, PanopticOptions, InstanceOptions, SamOptions)
}
# What a model loads with says which of them is meant; models with masks for queries serve several.
BY_AUTO_CLASS = {
    "AutoModelForDepthEstimation": ("depth",),
    "AutoModelForSemanticSegmentation": ("segmentation",),
    "AutoModelForUniversalSegmentation": ("panoptic", "instances", "segmentation"),
    "AutoModelForInstanceSegmentation": ("instances",),
    "AutoModelForObjectDetection": ("instances",),
    "AutoModelForMaskGeneration": ("sam",),
}
