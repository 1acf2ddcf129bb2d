"""The settings that the papers published, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from ..checks import UserError, did_you_mean
from ..hosts.blocks import Grid
from ..results.report import markdown_table
from ..settings.clustering import TokenClusteringConfig


@dataclass(frozen=True)
class Released:
    """A row of the papers' tables.

    Attributes:
        name: of the preset.
        model: that the row is of.
        data: that it was measured on, where the model has several.
        image_size: (height, width) in pixels.
        alpha: as the table prints it; of SAM its clustering location.
        accel: what the released code sets. What is left open is the model family's own, which is as released.
        note: where the row and the released code disagree.
    """

    name: str
    model: str
    data: str
    image_size: Grid
    alpha: int
    accel: dict[str, Any]
    note: str = ""

    @property
    def schedule(self) -> dict[str, Any]:
        """The part of the setting that decides the cost."""
        return {name: self.accel[name] for name in ("cluster_after", "cluster_grid")}

    @property
    def others(self) -> dict[str, Any]:
        """The rest of the setting."""
        return {name: value for name, value in self.accel.items() if name not in self.schedule}


def _others(iterations: int, inverse_temperature: float, window: int, **more: Any) -> dict[str, Any]:
    return {"iterations": iterations, "inverse_temperature": inverse_temperature, "window": window, **more}


def _swin(iterations: int, inverse_temperature: float, window: int, neighbors: int) -> dict[str, Any]:
    return _others(iterations, inverse_temperature, window, neighbors=neighbors, mask_shift="released")


_SEGMENTER, _DPT = _others(5, 0.02, 5, neighbors=20), _others(5, 1.0, 5, expansion="nearest")
_SAM, _SWAG = _others(5, 0.005, 5, neighbors=20), _others(5, 1.0, 5)
_PANOPTIC, _INSTANCE, _SEMANTIC = _swin(5, 0.05, 7, 10), _swin(5, 0.01, 11, 60), _swin(5, 0.01, 5, 10)
_FOUR, _FIVE = _swin(4, 0.01, 7, 49), _swin(5, 0.01, 7, 49)
_PRINTED, _SHIPPED = "what the published GFLOPs imply", "what the released configuration says"
_MODELS = {
    "segmenter": "Segmenter ViT-L/16",
    "dpt": "DPT hybrid",
    "mask2former": "Mask2Former Swin-L",
    "sam": "SAM ViT-H",
    "swag-l16": "SWAG ViT-L/16",
    "swag-h14": "SWAG ViT-H/14",
}
# Model, data, (height, width) in pixels, fields, and of each row alpha, cluster_after, side of the cluster grid, and a
# note if the row and the released code disagree.
_TABLES = (
    ("segmenter", "ADE20K", (640, 640), _SEGMENTER, (16, 16, 28), (10, 10, 28), (8, 8, 20)),
    ("segmenter", "Cityscapes", (768, 768), _SEGMENTER, (18, 18, 32), (12, 12, 32), (10, 10, 24)),
    ("segmenter", "Pascal Context", (480, 480), _SEGMENTER, (14, 14, 20), (12, 12, 15), (8, 8, 15)),
    ("dpt", "KITTI", (352, 1216), _DPT, (6, 7, 28), (4, 5, 20), (4, 5, 16)),
    ("dpt", "NYUv2", (480, 640), _DPT, (6, 7, 24), (4, 5, 16), (2, 3, 14)),
    ("mask2former", "COCO panoptic", (1152, 1152), _PANOPTIC, (10, 9, 8, _PRINTED), (10, 10, 8, _SHIPPED)),
    ("mask2former", "COCO instance", (1152, 1152), _INSTANCE, (12, 11, 8, _PRINTED), (12, 12, 8, _SHIPPED)),
    ("mask2former", "ADE20K panoptic", (1152, 1152), _FOUR, (14, 14, 8)),
    ("mask2former", "ADE20K semantic", (1152, 1152), _SEMANTIC, (8, 7, 8)),
    ("mask2former", "YouTubeVIS 2019", (480, 832), _FOUR, (14, 14, 8)),
    ("mask2former", "YouTubeVIS 2021", (400, 640), _FIVE, (14, 14, 8)),
    ("sam", "", (1024, 1024), _SAM, (18, 18, 11), (14, 14, 10), (8, 8, 10), (8, 8, 9), (6, 6, 9)),
    ("swag-l16", "", (512, 512), _SWAG, (12, 12, 23), (6, 6, 23), (8, 8, 16)),
    ("swag-h14", "", (518, 518), _SWAG, (10, 10, 26), (4, 4, 25), (8, 8, 18)),
)


def _all_rows() -> Iterator[Released]:
    for model, data, size, others, *rows in _TABLES:
        prefix = "-".join(filter(None, (model, *data.lower().split())))
        for alpha, after, side, *note in rows:
            accel = {"cluster_after": after, "cluster_grid": (side, side), **others}
            name = f"{prefix}-{side}x{side}-after-{after}"
            yield Released(name, _MODELS[model], data, size, alpha, accel, *note)


RELEASED = {row.name: row for row in _all_rows()}


def find_released(name: str) -> Released:
    """A row by its name.

    Raises:
        ValueError: an unknown name; the message lists those that are like it, and all.
    """
    if isinstance(name, str) and name in RELEASED:
        return RELEASED[name]
    text = str(name).lower()
    like = [known for known in RELEASED if known.startswith(text)] or get_close_matches(text, RELEASED, n=3)
    near = f" (near it: {', '.join(like)})" if like else ""
    raise UserError(
        f"preset {name!r} is not known{near}; it must be one of {', '.join(RELEASED)}; for example "
        f"{(like or list(RELEASED))[0]!r}."
    )


def released(name: str, **overrides: Any) -> TokenClusteringConfig:
    """The setting of a row of the papers' tables: Segmenter, DPT, Mask2Former, SAM and SWAG.

    `hf_tokaccel presets` lists the names, which say model, data, cluster grid and blocks before clustering.

    Args:
        name: such as `"segmenter-ade20k-28x28-after-10"`.
        overrides: fields that differ from the released ones.

    Raises:
        ValueError: on an unknown name or field.
    """
    return TokenClusteringConfig(**{**find_released(name).accel, **check_fields(overrides)})


def check_fields(overrides: dict[str, Any]) -> dict[str, Any]:
    """Fields of a setting as they are given. Raises ValueError on an unknown one."""
    known = [item.name for item in fields(TokenClusteringConfig)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise UserError(
            f"unknown fields {unknown}{did_you_mean(unknown[0], known)}: allowed are {', '.join(known)}; for example "
            "neighbors=10."
        )
    return overrides


def released_table(match: str = "") -> str:
    """The presets whose line holds a text, as a Markdown table; docs/settings.md shows all as printed here."""
    headings, *lines = table_cells(match)
    return markdown_table(headings, [(f"`{name}`", *rest) for name, *rest in lines], names=len(headings))


def table_cells(match: str = "") -> list[tuple[str, ...]]:
    """Headings, and a line for each preset that holds a text somewhere."""
    lines = [("preset", "of", "pixels", "alpha", "other fields")]
    for row in RELEASED.values():
        others = ", ".join(f"{name}={value}" for name, value in row.others.items())
        alpha = f"{row.alpha}; {row.note}" if row.note else str(row.alpha)
        what = f"{row.model}, {row.data}" if row.data else row.model
        cells = (row.name, what, "x".join(map(str, row.image_size)), alpha, others)
        if any(match.lower() in cell.lower() for cell in cells):
            lines.append(cells)
    return lines
