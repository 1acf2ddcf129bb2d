"""Public entry points: rendering scenes by index, and datasets of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..checks import UserError, did_you_mean, is_count, is_int
from ._classes import MATERIALS
from ._layout import Scenes, draw_scenes
from ._random import SPLITS
from ._render import SceneBatch, render

if TYPE_CHECKING:
    import datasets

# Pixels rendered at a time: small enough for the working set to stay near a CPU's caches.
_CPU_PIXELS = 1 << 17
_GPU_PIXELS = 1 << 22


def _check_split(split: str) -> None:
    if split not in SPLITS:
        near = did_you_mean(split, SPLITS)
        raise UserError(
            f"Unknown split {split!r}: it must be one of {', '.join(SPLITS)}; for example split='train'{near}."
        )


def _check_materials(materials: str) -> None:
    if materials not in MATERIALS:
        known = ", ".join(MATERIALS)
        near = did_you_mean(materials, MATERIALS)
        raise UserError(f"Unknown materials {materials!r}: it must be one of {known}; e.g. materials='any'{near}.")


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    good = isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2
    if not good or not all(map(is_count, size)):
        raise UserError(f"Bad size {size!r}: it must be (height, width), two positive integers; e.g. size=(128, 128).")
    return int(size[0]), int(size[1])


def _check_integer(name: str, value: int, low: int, example: int) -> int:
    if not is_int(value) or value < low:
        raise UserError(
            f"Bad {name} {value!r}: it must be an integer from {low} to {2**31 - 1}; for example {name}={example}."
        )
    return int(value)


def _draw(indices: Sequence[int] | Tensor, split: str, seed: int, materials: str) -> Scenes:
    _check_split(split)
    _check_materials(materials)
    seed = _check_integer("seed", seed, 0, 0)
    values = torch.as_tensor(indices).cpu()
    if values.ndim != 1 or len(values) == 0 or values.is_floating_point() or values.dtype == torch.bool:
        raise UserError(f"Bad indices {indices!r}: they must be a non-empty list of integers; e.g. indices=[0, 1].")
    if int(values.min()) < 0 or int(values.max()) >= 2**31:
        raise UserError(f"Bad indices {indices!r}: each must be from 0 to {2**31 - 1}; for example indices=[0, 1].")
    return draw_scenes(values.long(), split, seed, materials)


@torch.no_grad()
def render_scenes(
    indices: Sequence[int] | Tensor,
    size: tuple[int, int] = (128, 128),
    split: str = "train",
    seed: int = 0,
    device: str | torch.device = "cpu",
    materials: str = "any",
) -> SceneBatch:
    """Render toy indoor scenes with a ray caster.

    A scene is a function of (split, index, seed) alone: the batch, the size, the device and PyTorch's random state
    do not change it. Pixels sample the scene at their centres, so other sizes show the same scene.

    Args:
        indices: B scene numbers from 0 to 2**31 - 1.
        size: Height and width in pixels. The field of view belongs to the shorter side.
        split: "train", "validation" or "test"; no scene belongs to two of them.
        seed: Picks another set of scenes, from 0 to 2**31 - 1.
        device: Where to render; the result stays there.
        materials: "any", or "typical", where each class has a colour of its own that varies little; everything else
            about a scene is the same for both.

    Returns:
        Image (B, 3, H, W) in [0, 1], depth (B, H, W) in metres along the optical axis, labels (B, H, W) into
        `CLASS_NAMES`, and instances (B, H, W), 0 on room surfaces and otherwise numbering the objects of a scene.

    Raises:
        ValueError: If the split or the materials are unknown, or an index, the size or the seed is out of range.
    """
    height, width = _check_size(size)
    scenes, device = _draw(indices, split, seed, materials), torch.device(device)
    step = max(1, (_CPU_PIXELS if device.type == "cpu" else _GPU_PIXELS) // (height * width))
    starts = range(0, scenes.camera.shape[0], step)
    batches = [render(scenes.select(slice(i, i + step), device), height, width) for i in starts]
    return batches[0] if len(batches) == 1 else SceneBatch(*(torch.cat(maps) for maps in zip(*batches, strict=True)))


class SceneDataset(Dataset):
    """Map-style dataset of rendered scenes 0 to length - 1 of a split.

    Items are dicts of "image" (uint8, (3, H, W)), "depth" (float32, (H, W), metres), "labels" and "instances"
    (int64, (H, W)). A `DataLoader` asks for whole batches, which are rendered in one go.

    Args:
        split: "train", "validation" or "test".
        length: Number of scenes.
        size: Height and width in pixels.
        seed: Picks another set of scenes.
        materials: "any" or "typical", as in `render_scenes`.
        channels_last: Gives images as NumPy arrays (H, W, 3) instead.
        columns: What items hold instead of the three maps, beside the image and their "name": functions of an item.

    Raises:
        ValueError: If the split or the materials are unknown, or the length, the size or the seed is out of range.
    """

    def __init__(
        self,
        split: str = "train",
        length: int = 1024,
        size: tuple[int, int] = (128, 128),
        seed: int = 0,
        materials: str = "any",
        *,
        channels_last: bool = False,
        columns: Mapping[str, Callable[[dict[str, Tensor]], Any]] | None = None,
    ):
        _check_split(split)
        _check_materials(materials)
        self.length, self.seed = _check_integer("length", length, 1, 1024), _check_integer("seed", seed, 0, 0)
        self.split, self.size = split, _check_size(size)
        self.materials, self.channels_last, self.columns = materials, channels_last, columns

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the items at the indices; negative ones count from the end."""
        for i in indices:
            if not -self.length <= i < self.length:
                raise IndexError(f"Index {i} is out of range for a dataset of {self.length} scenes.")
        numbers = [i % self.length for i in indices]
        batch = render_scenes(numbers, self.size, self.split, self.seed, materials=self.materials)
        rows = zip(batch.pixels, batch.depth, batch.labels, batch.instances, strict=True)
        items = [dict(zip(batch._fields, row, strict=True)) for row in rows]
        return [self._arrange(number, item) for number, item in zip(numbers, items, strict=True)]

    def _arrange(self, number: int, item: dict[str, Tensor]) -> dict[str, Any]:
        image = item["image"]
        if self.channels_last:
            image = image.permute(1, 2, 0).contiguous().numpy()
        if self.columns is None:
            return {**item, "image": image}
        values = {column: make(item) for column, make in self.columns.items()}
        return {"name": f"scene {number}", "image": image, **values}


def as_datasets(
    split: str = "train",
    length: int = 1024,
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    materials: str = "any",
) -> "datasets.Dataset":
    """Render scenes 0 to length - 1 of a split into a `datasets.Dataset`.

    Returns:
        A dataset with columns "image" (an image feature), "depth" (H, W) float32 in metres, "labels" and "instances"
        (H, W) int64.

    Raises:
        ValueError: If the split or the materials are unknown, or the length, the size or the seed is out of range.
        ImportError: If the `datasets` package is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("as_datasets needs the datasets package: pip install datasets.") from error
    from PIL import Image

    source = SceneDataset(split, length, size, seed, materials)
    shape = source.size
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "depth": datasets.Array2D(shape, "float32"),
            "labels": datasets.Array2D(shape, "int64"),
            "instances": datasets.Array2D(shape, "int64"),
        }
    )
    columns = {name: [] for name in features}
    for start in range(0, length, 32):
        for item in source.__getitems__(range(start, min(start + 32, length))):
            columns["image"].append(Image.fromarray(item["image"].permute(1, 2, 0).numpy()))
            for name in ("depth", "labels", "instances"):
                columns[name].append(item[name].numpy())
    return datasets.Dataset.from_dict(columns, features=features)
