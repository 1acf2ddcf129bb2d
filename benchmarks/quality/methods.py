"""What is compared: one function for each method, from a dense model to the rows of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

import hf_tokaccel as ta
from hf_tokaccel import TokenClusteringConfig
from hf_tokaccel.images import input_step
from hf_tokaccel.rivals import build
from hf_tokaccel.rivals.build import Rival
from hf_tokaccel.rivals.regions import choose_regions
from hf_tokaccel.tuning.encoder import describe_encoder
from hf_tokaccel.tuning.recommended import AdaptiveRecipe, recipe_for, recommend

Size = tuple[int, int]
# Shares of the blocks before clustering, and how much more or less of a grid's side than goes with them.
_AFTER = (0, 1 / 12, 2 / 12, 3 / 12, 4 / 12, 6 / 12)
_OFF = (0.0, 0.15, 0.3)
# Blocks at full resolution before the end of the clustered span.
_LAST = (1,)
_MERGED = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.95)  # of the tokens, by the last block
_SMALLEST = 0.5  # of the side, of lower resolutions
# Of released settings, beside "auto" and the paper's: which one does best is searched where labels are not read.
_TEMPERATURES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_RATIOS = (1.15, 1.3, 1.5, 1.75, 2.0, 2.4, 2.8, 3.3)  # of the encoder's FLOPs, of adaptive clusters
# Of the papers: numbers of the released settings for these tasks, and on Swin the mask of the released code.
PAPER = {
    "depth": {"inverse_temperature": 1.0},
    "segmentation": {"inverse_temperature": 0.02, "neighbors": 20},
    "panoptic": {"inverse_temperature": 0.01, "neighbors": 49, "window": 7, "mask_shift": "released"},
}
_LABELS = {
    "adaptive": "ours",
    "delta, normalized": "ours",
    "early": "ours",
    "clustered decoder": "ours",
    "full decoder": "released",
}
OURS = {"expansion": "delta", "similarity_on": "normalized"}


@dataclass(frozen=True)
class Schedule:
    """Which blocks run on how many clusters.

    Attributes:
        after: blocks before clustering.
        grid: clusters.
        end: of the span: blocks after which full resolution returns by itself.
    """

    after: int
    grid: Size
    end: int

    def setting(self, **values) -> TokenClusteringConfig:
        return TokenClusteringConfig(cluster_after=self.after, cluster_grid=self.grid, **values)


@dataclass(frozen=True, kw_only=True)
class Subject(build.Subject):
    """What is accelerated.

    Attributes:
        task: `"depth"`, `"segmentation"` or `"panoptic"`.
        schedules: of its clustered rows.
    """

    task: str
    schedules: Sequence[Schedule]

    def entry(self, kind: str, setting: TokenClusteringConfig) -> Rival:
        row = build.clusters(self, setting, kind)
        name = row.name.removeprefix(kind)
        # What a row is called does not say it all again.
        return replace(row, name=_LABELS.get(kind, kind) + name.replace("similarity_on=", ""))


def schedules_of(model: nn.Module, size: Size, *, few: bool = False) -> list[Schedule]:
    """Schedules about the diagonal of the papers: the later tokens are clustered, the more clusters.

    Of a model with stages those of the stage that costs most; elsewhere at least one block comes before clustering.

    Args:
        model: dense.
        size: (height, width) of its input in pixels.
        few: a few of them, for a quick look.
    """
    encoder = describe_encoder(model.config, size)
    start, end = encoder.longest()
    found = {}
    for share in _AFTER:
        after = start + round(share * (end - start))
        if after == 0:
            continue
        tokens, grids = encoder.blocks[after].grid, encoder.grids(after)
        usual = 0.3 + 0.8 * (after - start) / (end - start)
        for off in _OFF:
            grid = min(grids, key=lambda g: abs((g[0] * g[1] / (tokens[0] * tokens[1])) ** 0.5 - usual - off))
            found[after, grid] = Schedule(after, grid, end)
    every = list(found.values())
    return every[1::3] if few else every


def dense(subject: Subject) -> list[Rival]:
    return [build.dense(subject)]


def lower_resolution(subject: Subject) -> list[Rival]:
    """The dense model on smaller images, at all sizes that patches allow."""
    most = min(subject.size) // input_step(subject.model.config)
    return [build.resized(subject, steps) for steps in range(max(1, round(_SMALLEST * most)), most)]


def grid_pooling(subject: Subject) -> list[Rival]:
    """Averages over a grid in place of clusters, rebuilt as released and by `"delta"`; every second schedule."""
    return [
        subject.entry(build.POOLING, schedule.setting(iterations=0, **values))
        for schedule in subject.schedules[::2]
        for values in ({}, {"expansion": "delta"})
    ]


def released(subject: Subject) -> list[Rival]:
    """As released: the family's expansion, tokens compared in the stream; the paper's numbers and others, too.

    Released DPT copies the nearest cluster, while the paper's formula is a soft sum: both are tried.
    """
    entries = [subject.entry("released", schedule.setting()) for schedule in subject.schedules]
    if entries[0].accel["expansion"] == "nearest":
        entries += [
            subject.entry("released", schedule.setting(expansion="soft")) for schedule in subject.schedules[::2]
        ]
    paper = PAPER[subject.task]
    numbers = [paper, *({"inverse_temperature": t} for t in _TEMPERATURES if t != paper["inverse_temperature"])]
    return entries + [
        subject.entry("released", schedule.setting(**values))
        for schedule in subject.schedules[::2]
        for values in numbers
    ]


def full_decoder(subject: Subject) -> list[Rival]:
    """Of Segmenter: soft as released, but its decoder runs on all tokens; nothing for others, which always do so."""
    if not _decodes(subject):
        return []
    values = {"expansion": "soft", "decode_clusters": False}
    return [subject.entry("full decoder", schedule.setting(**values)) for schedule in subject.schedules]


def nearest_logits(subject: Subject) -> list[Rival]:
    """Of Segmenter: the decoder on clusters as released, and every token takes the logits of its nearest cluster."""
    if not _decodes(subject):
        return []
    return [subject.entry("nearest logits", schedule.setting(expansion="nearest")) for schedule in subject.schedules]


def clustered_decoder(subject: Subject) -> list[Rival]:
    """Of Segmenter: ours, with the blocks of its decoder on the clusters, too."""
    if not _decodes(subject):
        return []
    return [
        subject.entry("clustered decoder", schedule.setting(decode_clusters=True, **OURS))
        for schedule in subject.schedules
    ]


def _decodes(subject: Subject) -> bool:
    """Whether the model has a decoder that can run on clusters."""
    return getattr(ta.accelerate_config(subject.model.config, None), "accel_decodes_clusters", False)


def token_merging(subject: Subject) -> list[Rival]:
    """Token Merging, copied back and with the change added.

    Raises:
        ValueError: the model needs a grid of tokens.
    """
    encoder = describe_encoder(subject.model.config, subject.size)
    height, width = encoder.blocks[0].grid
    depth = len(encoder.blocks)
    counts = sorted({max(1, round(share * height * width / depth)) for share in _MERGED})
    return [build.merged(subject, count, way) for way in ("nearest", "delta") for count in counts]


def soft_normalized(subject: Subject) -> list[Rival]:
    """One of our changes alone: tokens compared after the LayerNorm."""
    values = {"similarity_on": "normalized"}
    return [subject.entry("normalized", schedule.setting(**values)) for schedule in subject.schedules]


def delta_on_tokens(subject: Subject) -> list[Rival]:
    """One of our changes alone: the change of the clusters is added to the token as it was."""
    return [subject.entry("delta", schedule.setting(expansion="delta")) for schedule in subject.schedules]


def delta_normalized(subject: Subject) -> list[Rival]:
    """Both changes."""
    return [subject.entry("delta, normalized", schedule.setting(**OURS)) for schedule in subject.schedules]


def adaptive(subject: Subject) -> list[Rival]:
    """Clusters of free shape as `ta.recommended` gives them; of Segmenter also with its decoder on them."""
    ways = [{}, {"decode_clusters": True}] if _decodes(subject) else [{}]
    return [subject.entry("adaptive", setting) for values in ways for setting in _adaptive(subject, **values)]


def random_regions(subject: Subject) -> list[Rival]:
    """The same steps with regions that do not look at the image: what adaptivity adds."""
    return [
        Rival(f"random regions {number}", "random regions", choose_regions(subject.model, setting, "random"))
        for number, setting in enumerate(_adaptive(subject), start=1)
    ]


def _adaptive(subject: Subject, **values) -> Iterator[TokenClusteringConfig]:
    """Settings of adaptive clusters; none where a model cannot run on them."""
    recipe = recipe_for(subject.model.config)
    if isinstance(recipe, AdaptiveRecipe):
        encoder = describe_encoder(subject.model.config, subject.size)
        yield from filter(None, (recommend(encoder, recipe, ratio, values) for ratio in _RATIOS))


def early(subject: Subject) -> list[Rival]:
    """Both, and the last one or two blocks of the span at full resolution."""
    return [
        subject.entry("early", schedule.setting(reconstruct_after=schedule.end - last, **OURS))
        for schedule in subject.schedules
        for last in _LAST
        if schedule.end - last > schedule.after
    ]


SWEEP: tuple[Callable[[Subject], list[Rival]], ...] = (
    dense,
    lower_resolution,
    grid_pooling,
    token_merging,
    released,
    full_decoder,
    nearest_logits,
    soft_normalized,
    delta_on_tokens,
    delta_normalized,
    early,
    clustered_decoder,
    adaptive,
    random_regions,
)
# What a table compares, each made of kinds of rows of the sweep.
METHODS = {
    "released": ("released",),
    "released, full decoder": ("full decoder",),
    "nearest logits": ("nearest logits",),
    "lower resolution": ("lower resolution",),
    "grid pooling": ("grid pooling",),
    "token merging": ("token merging",),
    "token merging, delta": ("token merging, delta",),
    "random regions": ("random regions",),
    "ours": ("delta, normalized", "early", "clustered decoder", "adaptive"),
}
# What each change alone brings, on the validation scenes and the same schedules.
CHANGES = {
    "released": ("released",),
    "+ normalized": ("normalized",),
    "+ delta": ("delta",),
    "+ delta, normalized": ("delta, normalized",),
    "+ early reconstruction": ("delta, normalized", "early"),
    "+ decoder on clusters": ("delta, normalized", "clustered decoder"),
    "adaptive": ("adaptive",),
}


def entries_of(
    subject: Subject, methods: Iterable[Callable[[Subject], list[Rival]]] = SWEEP
) -> tuple[list[Rival], list[str]]:
    """All rows of a sweep, the dense one first, and a sentence for each method that the model refuses."""
    entries, notes = [], []
    for method in methods:
        try:
            entries += method(subject)
        except ValueError as error:
            notes.append(f"{method.__name__.replace('_', ' ')} is refused: {error}")
    return entries, notes
