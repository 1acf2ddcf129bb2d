"""Labelled images: folders and Hub names read by `datasets`, handwritten digits, rendered scenes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as V

from ...checks import UserError, did_you_mean
from ...evaluation.datasets import check_columns, load_table, read_row
from ...evaluation.options import TABLES
from ...images import as_rgb
from ...scenes import CLASS_NAMES, render_scenes

BUILT_IN = ("digits", "scenes")
SPECIFICATIONS = f"{' or '.join(BUILT_IN)}, {TABLES}"

CLASS_FOLDERS = "at least 2 classes are needed, for example folders train/cat and train/dog"

# Of scikit-learn's 1797 digits, in their order.
DIGIT_SPLITS = {"train": (0, 1197), "validation": (1197, 1397), "test": (1397, 1797)}

# Which of these covers the most pixels; see `load_scenes`.
FURNITURE = ("table", "chair", "sofa", "cabinet", "box")
SCENE_SPLITS = {"train": 2000, "validation": 250, "test": 1000}
MATERIALS = "typical"
LABEL_SIDE, SMALLEST, LEAD = 48, 0.02, 1.5


class LabelledImages(Dataset):
    """Images uint8 (3, H, W) with their labels.

    Attributes:
        name: of data set and split, for reports.
        classes: their names, by label.
        labels: of all images, (N,).
    """

    def __init__(
        self, name: str, classes: Sequence[str], labels: Sequence[int], read: Callable[[int], Tensor]
    ) -> None:
        self.name, self.classes = name, list(classes)
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self._read = read

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._read(index), int(self.labels[index])


def load_images(
    name: str,
    split: str,
    size: tuple[int, int],
    *,
    image_column: str = "image",
    label_column: str = "label",
    share: tuple[float, str] | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> LabelledImages:
    """A split of a data set.

    Args:
        name: `"digits"`, `"scenes"`, or what the `datasets` library reads, for example an image folder.
        split: such as `"train"`, `"validation"` or `"test"`.
        size: height and width in pixels of what is drawn here; others keep the size of their files.
        image_column: of a `datasets` table.
        label_column: likewise.
        share: part of the split that is held out, and whether the `"rest"` or what is `"held out"` is meant.
        seed: picks the scenes; 0 for the same as everybody's.
        limit: images at most; of scenes how many, 2000, 250 and 1000 by default.

    Raises:
        ValueError: There is no such data set or split, or it has no labelled images, or fewer than two classes.
    """
    if name in BUILT_IN and share is not None:
        raise UserError(f"{name!r} has a validation split of its own: leave out --val-share")
    if name == "digits":
        return load_digits(split, size, limit)
    if name == "scenes":
        return load_scenes(split, size, limit, seed)
    return _load_table(name, split, image_column, label_column, share, limit)


def _check_split(name: str, split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise UserError(f"{name!r} has no split {split!r}; it has {', '.join(known)}{did_you_mean(split, known)}")


def load_digits(split: str, size: tuple[int, int], limit: int | None = None) -> LabelledImages:
    """Handwritten digits of scikit-learn (8 x 8 pixels of 17 greys), enlarged by bicubic interpolation.

    The splits are the first 1197 of the package's order, then 200, then 400: not shuffled, since digits of one writer
    follow each other.

    Raises:
        ValueError: Unknown split, or scikit-learn is not installed.
    """
    _check_split("digits", split, tuple(DIGIT_SPLITS))
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UserError("digits needs scikit-learn: pip install 'hf_tokaccel[training]'") from error
    source = datasets.load_digits()
    start, stop = DIGIT_SPLITS[split]
    stop = min(stop, start + limit) if limit else stop
    small = torch.from_numpy(source.images[start:stop]).float()[:, None] / 16
    large = F.interpolate(small, size, mode="bicubic", align_corners=False).clamp(0, 1)
    images = (255 * large).round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = source.target[start:stop].tolist()
    return LabelledImages(f"digits/{split}", [str(digit) for digit in range(10)], labels, images.__getitem__)


@functools.lru_cache(maxsize=8)
def load_scenes(split: str, size: tuple[int, int], limit: int | None = None, seed: int = 0) -> LabelledImages:
    """Rendered rooms, and which piece of furniture covers most of the image: table, chair, sofa, cabinet or box.

    A question with one answer: rooms are left out where the largest of these kinds covers less than 2 % of the image,
    or less than 1.5 times what the next does. Of each kind there are as many, the first rooms of the split, so that
    chance is 20 %. Labels are counted at 48 x 48 pixels, so that they do not depend on the image's size.

    Raises:
        ValueError: Unknown split, or fewer images than classes.
    """
    _check_split("scenes", split, tuple(SCENE_SPLITS))
    count = SCENE_SPLITS[split] if limit is None else limit
    if count < len(FURNITURE):
        raise UserError(f"{count} scenes are too few for {len(FURNITURE)} classes; use for example a limit of 100")
    wanted = [len(range(kind, count, len(FURNITURE))) for kind in range(len(FURNITURE))]
    found: list[list[int]] = [[] for _ in FURNITURE]
    start = 0
    while any(len(have) < want for have, want in zip(found, wanted, strict=True)):
        for number, kind in _furniture(range(start, start + 256), split, seed):
            if len(found[kind]) < wanted[kind]:
                found[kind].append(number)
        start += 256
    pairs = sorted((number, kind) for kind, numbers in enumerate(found) for number in numbers)
    numbers, labels = zip(*pairs, strict=True)
    parts = [numbers[i : i + 256] for i in range(0, len(numbers), 256)]
    images = torch.cat([render_scenes(part, size, split, seed, _device(), MATERIALS).pixels.cpu() for part in parts])
    return LabelledImages(f"scenes/{split}", FURNITURE, labels, images.__getitem__)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _furniture(numbers: range, split: str, seed: int) -> Iterator[tuple[int, int]]:
    """Number and label of the scenes that have one."""
    shown = render_scenes(numbers, (LABEL_SIDE, LABEL_SIDE), split, seed, _device(), MATERIALS).labels.flatten(1).cpu()
    kinds = torch.tensor([CLASS_NAMES.index(name) for name in FURNITURE])
    shares = (shown[:, :, None] == kinds).float().mean(dim=1)
    (first, second), kind = shares.topk(2).values.T, shares.argmax(dim=1)
    for i in ((first >= SMALLEST) & (first >= LEAD * second)).nonzero()[:, 0].tolist():
        yield numbers[i], int(kind[i])


def _load_table(
    name: str, split: str, image: str, label: str, share: tuple[float, str] | None, limit: int | None
) -> LabelledImages:
    from datasets import ClassLabel

    table = load_table(name, split, SPECIFICATIONS)
    if Path(name).is_dir() and table.column_names == [image]:
        raise UserError(f"{name!r}, split {split!r} has no classes: {CLASS_FOLDERS}")
    check_columns(table, name, {"--image-column": image, "--label-column": label})
    if not isinstance(table.features[label], ClassLabel):
        table = table.class_encode_column(label)
    classes = table.features[label].names
    if share is not None:
        if not 0 < share[0] < 1:
            raise UserError(f"--val-share {share[0]} must be above 0 and below 1; for example --val-share 0.1")
        # Shuffled, since folders come in the order of their classes.
        parts = table.train_test_split(test_size=share[0], seed=0)
        table = parts["test" if share[1] == "held out" else "train"]
    if limit is not None:
        table = table.shuffle(seed=0).select(range(min(limit, len(table))))
    labels = np.asarray(table.with_format("numpy")[label][:]) if len(table) else np.zeros(0)
    if not len(labels) or len(classes) < 2:
        raise UserError(
            f"{name!r}, split {split!r} has {len(labels)} images of {len(classes)} classes: {CLASS_FOLDERS}"
        )
    if labels.min() < 0:
        raise UserError(f"{name!r}, split {split!r} has {int((labels < 0).sum())} images without a label")

    read = functools.partial(_read_picture, table, image, f"{name}, split {split}")
    return LabelledImages(f"{name}/{split}", classes, labels, read)


def _read_picture(table: Any, column: str, name: str, index: int) -> Tensor:
    return V.pil_to_tensor(as_rgb(read_row(table, index, name)[column]))


ORDER, IMAGE, STEP = 1, 2, 3  # what is drawn


def seed_of(what: int, *numbers: int) -> int:
    """A seed for what is drawn at a place, so that nothing that was drawn before matters."""
    return int(np.random.SeedSequence((what, *numbers)).generate_state(1, np.uint64)[0] >> 1)


class Drawn(Dataset):
    """Training images, transformed with a random state that depends on seed, epoch and index alone.

    So neither workers nor processes nor an interruption change what is seen. Items are asked for as (epoch, index).
    """

    def __init__(self, images: LabelledImages, transform: Callable[[Tensor], Tensor], seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = place
        image, label = self.images[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(IMAGE, self.seed, epoch, index))
            return self.transform(image), label


class Steps(Sampler):
    """Batches of (epoch, index) of one process from a step on; each epoch is a permutation, its rest left out.

    Args:
        count: images.
        batch_size: of one step, over all processes and parts.
        parts: that a step is cut into: this process's number among all, processes, and accumulated parts.
        steps: (from, to).
        seed: of the permutations.
    """

    def __init__(
        self, count: int, batch_size: int, parts: tuple[int, int, int], steps: tuple[int, int], seed: int
    ) -> None:
        self.count, self.batch_size, self.parts, self.steps, self.seed = count, batch_size, parts, steps, seed

    def __len__(self) -> int:
        return (self.steps[1] - self.steps[0]) * self.parts[2]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        process, processes, accumulated = self.parts
        per_epoch, size = self.count // self.batch_size, self.batch_size // (processes * accumulated)
        epoch, order = -1, torch.empty(0)
        for step in range(*self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                generator = torch.Generator().manual_seed(seed_of(ORDER, self.seed, epoch))
                order = torch.randperm(self.count, generator=generator)
            first = step % per_epoch * self.batch_size
            for part in range(accumulated):
                start = first + (part * processes + process) * size
                yield [(epoch, index) for index in order[start : start + size].tolist()]


class Prepared(Dataset):
    """Images as the image processor of a model prepares them, for evaluation."""

    def __init__(self, images: LabelledImages, processor: Any) -> None:
        self.images, self.processor = images, processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.processor(image, return_tensors="pt")["pixel_values"][0], label
