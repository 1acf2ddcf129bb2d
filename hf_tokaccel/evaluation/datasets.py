"""What data sets of all tasks share: reading files, folder conventions, `datasets` tables, scenes, photographs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..checks import UserError, did_you_mean
from ..images import reading
from ..scenes import SceneDataset

DEFAULT_SCENES = 200


class MappedSamples(Dataset):
    """Items of a sequence, read when they are asked for."""

    def __init__(self, items: Sequence, read: Callable[[object], dict], limit: int | None = None):
        self.items, self.read = items, read
        self.length = len(items) if limit is None else min(limit, len(items))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.read(self.items[index])


def open_scenes(
    materials: str, split: str, limit: int | None, seed: int, size: tuple[int, int], **columns: Callable
) -> SceneDataset:
    """Rendered scenes with the images that processors take, and the truth of a task as columns."""
    length = DEFAULT_SCENES if limit is None else limit
    return SceneDataset(split, length, size, seed, materials, channels_last=True, columns=columns)


def read_map(path: str | Path) -> np.ndarray:
    """Stored values of an image file: (H, W), or (H, W, channels); indices where it has a palette.

    Raises:
        UnreadableError: It cannot be read.
    """
    with reading(path), Image.open(path) as image:
        image.load()
        return np.array(image.convert("L") if image.mode == "1" else image)


@dataclass(frozen=True)
class Rule:
    """Where a benchmark's folder keeps an image and its label.

    Attributes:
        labels: Glob of the label files.
        image: From a label's path below the folder to that of its image, both without suffix.
        values: What the labels' values mean, if the rules of a layout differ in that.
    """

    labels: str
    image: Callable[[str], str]
    values: Any = None


def find_pairs(
    root: Path, rules: Sequence[Rule], expected: str, what: str, keep: Callable[[Path], bool] = lambda path: True
) -> tuple[list[tuple[Path, Path]], Rule]:
    """Pairs of image and label files by the first rule that finds any, sorted by the label's path, and that rule.

    Args:
        root: Folder of the data set.
        rules: In the order in which they are tried.
        expected: What the folder should hold, for error messages.
        what: A label, in the plural, likewise.
        keep: Whether a label file belongs to the split.

    Raises:
        ValueError: The folder or its labels do not exist, or labels have no image; the missing ones are named.
    """
    if not root.is_dir():
        raise UserError(f"dataset folder {str(root)!r} does not exist; expected {expected}")
    pairs, missing = [], []
    for rule in rules:
        for label in filter(keep, sorted(root.glob(rule.labels))):
            stem = root / rule.image(label.relative_to(root).with_suffix("").as_posix())
            images = [stem.with_name(stem.name + suffix) for suffix in (".png", ".jpg", ".jpeg")]
            found = next((image for image in images if image.is_file()), None)
            if found is None:
                missing.append(images[0])
            else:
                pairs.append((found, label))
        if pairs or missing:
            break
    if missing:
        names = ", ".join(str(path.relative_to(root)) for path in missing[:3])
        raise UserError(f"{root} lacks the images of {len(missing)} {what}: {names} (or .jpg); expected {expected}")
    if not pairs:
        raise UserError(f"{root} has no {what}; expected {expected}")
    return pairs, rule


def load_table(name: str, split: str, specifications: str):
    """A split of a folder or of a Hub name as the `datasets` library reads it.

    Raises:
        ValueError: It is neither, has no such split, or cannot be loaded.
    """
    import datasets

    if Path(name).is_dir():
        folder = Path(name)
        if (folder / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(name)
            if split not in splits:
                near = did_you_mean(split, splits)
                raise UserError(f"dataset {name!r} has no split {split!r}; it has {', '.join(splits)}{near}")
            return splits[split]
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(name)
    elif name.startswith((".", "/", "~")) or name.count("/") != 1 or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        near = did_you_mean(name, re.split(r"[ ,]+", specifications))
        raise UserError(f"dataset {name!r} is neither known nor a folder; use {specifications}{near}")
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # The library raises a different type for each of network, name, split and file format.
        raise UserError(
            f"dataset {name!r}, split {split!r} cannot be loaded: {error}; use {specifications}"
        ) from error


def check_columns(table, name: str, columns: Mapping[str, str]) -> None:
    """ValueError where a table lacks a column; `columns` maps the option that names each to its value."""
    for option, column in columns.items():
        if column not in table.column_names:
            raise UserError(
                f"dataset {name!r} has no column {column!r}; it has {', '.join(table.column_names)}; "
                f"choose with {option}{did_you_mean(column, table.column_names)}"
            )


def read_row(table, index: int, name: str) -> dict:
    """A row of a `datasets` table, with its images decoded.

    Raises:
        UnreadableError: One of its images cannot be read.
    """
    with reading(f"row {index} of {name}"):
        row = table[index]
        for value in row.values():
            if isinstance(value, Image.Image):
                value.load()
        return row


def check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} must be at least 1, for example 100")
