"""Settings by name or by budget: those that the paper published, and the one that did best so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedConfig

from .auto import accelerate_config
from .configs import family_of
from .configuration import TokenClusteringConfig
from .tuning.encoder import Encoder, Grid, check_speedup, choose_schedule, describe_encoder, find_head, unreachable


@dataclass(frozen=True)
class Recipe:
    """What a recommended setting is made of.

    Attributes:
        fields: of the setting.
        last_blocks: of the clustered span that run at full resolution.
        share: of the side of the token grid that clusters keep, where all blocks before `reconstruct_after` run on
            them, and what is added to it, times the share of these blocks that come before clustering.
        bold: speed from which a decoder that can runs on the clusters, and no last block at full resolution.
        decodes: whether the model has such a decoder.
    """

    fields: dict[str, Any]
    last_blocks: int
    share: tuple[float, float]
    bold: float = 1.7
    decodes: bool = False


# What did best on the reference models: docs/quality.md and docs/method_search.md. A last block at full resolution is
# not worth its cost there, most clearly on depth.
RECIPE = Recipe(fields={"expansion": "delta", "similarity_on": "normalized"}, last_blocks=0, share=(0.45, 0.8))
SPEEDUP = 1.5


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
    raise ValueError(
        f"preset {name!r} is not known{near}; it must be one of {', '.join(RELEASED)}; for example "
        f"{(like or list(RELEASED))[0]!r}."
    )


def released(name: str, **overrides: Any) -> TokenClusteringConfig:
    """See `TokenClusteringConfig.released`."""
    return TokenClusteringConfig(**{**find_released(name).accel, **_checked(overrides)})


def recommended(
    config: PreTrainedConfig, image_size: int | Grid, speedup: float = SPEEDUP, **overrides: Any
) -> TokenClusteringConfig:
    """See `TokenClusteringConfig.recommended`."""
    check_speedup("recommended", speedup, _checked(overrides))
    encoder = describe_encoder(config, image_size)
    setting = recommend(encoder, recipe_for(config), speedup, overrides)
    if setting is None:
        raise unreachable(encoder, image_size, speedup, overrides.get("reconstruct_after"))
    accelerate_config(config, setting, image_size)  # an override that does not fit is told now
    return setting


def recipe_for(config: PreTrainedConfig) -> Recipe:
    """The recipe as far as it makes sense for a model.

    Where blocks have no LayerNorm before attention, tokens are compared as they are. Classification reads no map of
    features, so nothing is gained by a last block at full resolution.
    """
    head = find_head(config)
    family = family_of(head.accel_host())
    chosen = dict(RECIPE.fields)
    if chosen.get("similarity_on", "tokens") not in family.accel_similarities:
        chosen["similarity_on"] = family.accel_similarities[0]
    classifies = any("Classification" in name for name in getattr(config, "architectures", None) or ())
    last = 0 if classifies else RECIPE.last_blocks
    return replace(RECIPE, fields=chosen, last_blocks=last, decodes=head.accel_decodes_change)


def recommend(
    encoder: Encoder, recipe: Recipe, speedup: float, overrides: dict[str, Any]
) -> TokenClusteringConfig | None:
    """The setting of a recipe for a ratio of the FLOPs of an encoder; None where it cannot be reached.

    Of the last blocks as many are left at full resolution as the recipe says and the ratio allows; none at bold ratios
    and where a decoder runs on the clusters.
    """
    start, end = encoder.longest()
    bold = speedup >= recipe.bold
    early = range(0 if bold else recipe.last_blocks, 0, -1)
    ends = [*(end - count for count in early if end - count > start), None]
    if overrides.get("decode_clusters"):
        ends = [None]
    if "reconstruct_after" in overrides:
        ends = [overrides["reconstruct_after"]]
    for until in ends:
        found = choose_schedule(encoder, speedup, until, recipe.share)
        if found is not None:
            after, grid = found
            decodes = {"decode_clusters": True} if recipe.decodes and bold and until is None else {}
            chosen = {**recipe.fields, **decodes, **overrides, "reconstruct_after": until}
            return TokenClusteringConfig(cluster_after=after, cluster_grid=grid, **chosen)
    return None


def _checked(overrides: dict[str, Any]) -> dict[str, Any]:
    known = [item.name for item in fields(TokenClusteringConfig)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(f"unknown fields {unknown}: allowed are {', '.join(known)}; for example neighbors=10.")
    return overrides


@dataclass(frozen=True)
class Recommended:
    """A recommended setting that waits for its model, as a command line names one.

    Attributes:
        speedup: see `TokenClusteringConfig.recommended`.
        overrides: likewise.
    """

    speedup: float = SPEEDUP
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Before a model is loaded.
        check_speedup("recommended", self.speedup, _checked(self.overrides))

    def resolve(self, config: PreTrainedConfig, image_size: int | Grid) -> TokenClusteringConfig:
        return recommended(config, image_size, self.speedup, **self.overrides)


def released_table(match: str = "") -> str:
    """The presets whose line holds a text, as a Markdown table; docs/settings.md shows all as printed here."""
    headings, *lines = table_cells(match)
    cells = [headings, ("---",) * len(headings), *((f"`{name}`", *rest) for name, *rest in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


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
