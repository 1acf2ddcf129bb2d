"""One image, seen through several settings of a model: what `hf_tokaccel show` and the demo draw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..checks import UserError, brief, did_you_mean
from ..images import no_image, read_image
from ..measure.flops import count_gflops
from ..measure.variant import Variant
from ..rivals.build import Subject, rivals_of
from ..rivals.settings import default_settings
from ..settings.clustering import TokenClusteringConfig
from ..settings.naming import group_name
from ..tuning.recommended import Recommended
from ..tuning.text import resolve_accels
from .pictures import Panel
from .script import Loaded, load
from .scripts import BY_AUTO_CLASS, EVALUATIONS

TASKS = ("depth", "segmentation", "panoptic")
SCENE = "scene"


@dataclass
class View:
    """One setting on one image.

    Attributes:
        name: Of the setting.
        panel: Dense and accelerated map of the image, and the clusters.
        gflops: Billion FLOPs of the accelerated model for this image.
        gflops_ratio: The same relative to the dense model.
        variant: The accelerated model.
    """

    name: str
    panel: Panel
    gflops: float
    gflops_ratio: float
    variant: Variant


def find_task(model: str) -> str:
    """The one of `TASKS` that a model does, by the Auto class that config.json leads to.

    Raises:
        ValueError: Nothing to load there, or a model whose output these pictures do not show.
    """
    from ..checkpoint import load_config
    from ..hub.card import auto_class_of

    if model in TASKS:
        return model
    auto_class = auto_class_of(load_config(model))
    for task in BY_AUTO_CLASS.get(auto_class, ()):
        if task in TASKS:
            return task
    raise UserError(
        f"{model} loads with {auto_class}, whose output is not shown: give a model of depth, semantic or panoptic "
        "segmentation, for example Intel/dpt-large, or depth for the one of this package"
    )


def load_shown(model: str, device: torch.device | str = "cpu") -> Loaded:
    """A model with what its evaluation does before and after it.

    Args:
        model: Hub id, folder, or one of `TASKS` for the models of this package.
        device: Where it runs.

    Raises:
        ValueError: See `find_task`, and a checkpoint that cannot be loaded.
    """
    task = find_task(model)
    options = EVALUATIONS[task](model=None if model in TASKS else model, images=[])
    return load(options, torch.device(device))


def open_sample(image: str, loaded: Loaded) -> dict:
    """An image to look at: a file, a photograph of scikit-image, or a rendered scene with its truth.

    Args:
        image: Path, name such as astronaut or coffee, or "scene", also "scene:7" for the eighth.
        loaded: Model whose task says which truth a scene has, and whose processor says how large it is.

    Raises:
        ValueError: No such file, no such photograph, or a file that is no image.
    """
    kind, _, number = image.partition(":")
    if kind == SCENE and not Path(image).exists():
        if number and not re.fullmatch(r"\d{1,9}", number):
            raise UserError(f"{brief(image)} must be scene or scene:NUMBER, for example scene:7")
        return _scene(int(number or 0), loaded)
    path = Path(image)
    if path.is_file():
        return {"image": read_image(path), "name": path.stem}
    if path.suffix or len(path.parts) > 1:
        raise UserError(f"{no_image(path)}; give an image file, or for example astronaut or scene")
    found = _photographs()
    if image not in found:
        raise UserError(
            f"image {image!r} is no file, no rendered scene and not among scikit-image's colour photographs: "
            f"{', '.join(sorted(found))}; for example astronaut{did_you_mean(image, found)}"
        )
    return {"image": read_image(found[image]), "name": image}


def _photographs() -> dict[str, Path]:
    """Colour photographs that scikit-image carries in its package."""
    try:
        import skimage.data
    except ImportError as error:
        raise UserError(
            "photographs by name come with scikit-image: pip install scikit-image, or give a file"
        ) from error
    names = ("astronaut", "chelsea", "coffee", "color", "motorcycle_left", "motorcycle_right", "rocket")
    folder = Path(skimage.data.__file__).parent
    return {name: path for name in names for path in folder.glob(f"{name}.*") if path.suffix in (".png", ".jpg")}


def _scene(number: int, loaded: Loaded) -> dict:
    """A held-out scene at the size of the model's input, with the truth of its task where the model speaks of that."""
    from ..images import input_size
    from ..scenes import CLASS_NAMES
    from .depth.data import open_depth_dataset
    from .panoptic.data import open_panoptic_dataset
    from .segmentation.data import open_segmentation_dataset

    options = {"split": "test", "limit": number + 1, "seed": 0, "size": input_size(loaded.task.processor)}
    protocol = loaded.task.protocol
    same_classes = tuple(getattr(protocol, "class_names", ())) == tuple(CLASS_NAMES)
    if loaded.task.name == "panoptic-segmentation" and same_classes:
        sample = open_panoptic_dataset("scenes", labels=CLASS_NAMES, **options).samples[number]
    elif loaded.task.name == "image-segmentation" and same_classes:
        sample = open_segmentation_dataset("scenes", num_classes=len(CLASS_NAMES), **options).samples[number]
    else:
        sample = open_depth_dataset("scenes", **options).samples[number]
        if getattr(protocol, "inverse", True):  # No depth in metres, or no depth at all.
            sample = {"image": sample["image"]}
    return sample | {"name": f"scene {number}"}


def settings_for(
    loaded: Loaded, sample: dict, accels: Sequence[TokenClusteringConfig | Recommended] = (), after: Sequence[int] = ()
) -> list[TokenClusteringConfig]:
    """Settings to look at: those given, that stored with the model, or the last of each of the evaluation's groups.

    Args:
        loaded: Model.
        sample: Image; with its size go default and recommended settings.
        accels: Settings of the user.
        after: Each setting is taken with clusters after each of these numbers of blocks; none leaves it as it is.
    """
    size = tuple(loaded.task.model_input(loaded.task.encode(sample)["pixel_values"][None]).shape[-2:])
    settings = resolve_accels(accels, loaded.dense.config, size)
    if not settings and loaded.stored is not None:
        settings = [TokenClusteringConfig.from_dict(loaded.stored)]
    if not settings:
        by_group = {group_name(s): s for s in default_settings(loaded.dense, size, loaded.task)}
        settings = list(by_group.values())
    return [start_after(s, n) for s in settings for n in after] if after else settings


def start_after(setting: TokenClusteringConfig, blocks: int) -> TokenClusteringConfig:
    """The same with clusters after another number of blocks; several steps are moved alike."""
    moved = tuple(start + blocks - setting.starts[0] for start in setting.starts)
    return replace(setting, cluster_after=moved if isinstance(setting.cluster_after, tuple) else blocks)


def make_views(loaded: Loaded, sample: dict, settings: Sequence[TokenClusteringConfig]) -> tuple[Variant, list[View]]:
    """The dense model as it was run, and what each setting makes of an image.

    Raises:
        ValueError: A setting that does not fit the model or the image.
    """
    task = loaded.task
    device = next(loaded.dense.parameters()).device
    pixel_values = task.model_input(task.encode(sample)["pixel_values"][None].to(device))
    (dense, *fast), _ = rivals_of(Subject(loaded.dense, tuple(pixel_values.shape[-2:])), settings, {})
    whole = count_gflops(dense.variant, pixel_values)
    views = []
    for entry in fast:
        gflops = count_gflops(entry.variant, pixel_values)
        panel = task.panel(dense.variant, entry.variant, sample)
        views.append(View(entry.variant.name, panel, gflops, gflops / whole, entry.variant))
    return dense.variant, views


def mean_colours(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image with the mean colour of its cluster at every pixel, uint8 (H, W, 3).

    Args:
        image: uint8 (H, W, 3).
        labels: Cluster index of every token, (h, w).
    """
    rows = np.arange(image.shape[0]) * labels.shape[0] // image.shape[0]
    columns = np.arange(image.shape[1]) * labels.shape[1] // image.shape[1]
    places = labels[rows][:, columns].ravel()
    _, places = np.unique(places, return_inverse=True)
    sums = np.stack([np.bincount(places, image[..., c].ravel()) for c in range(3)], -1)
    means = sums / np.bincount(places)[:, None]
    return means[places].reshape(image.shape).round().astype(np.uint8)
