"""What is compared: one function for each method, from a dense model to the rows of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

import hf_tokaccel as ta
from hf_tokaccel import TokenClusteringConfig
from hf_tokaccel.hosts.config import stored_accel
from hf_tokaccel.images import input_step
from hf_tokaccel.measure.variant import Variant
from hf_tokaccel.rivals.entries import Entry
from hf_tokaccel.rivals.merging import merge_in_layers
from hf_tokaccel.settings.naming import setting_name
from hf_tokaccel.tuning.encoder import describe_encoder

Size = tuple[int, int]
# Shares of the blocks before clustering, and how much more or less of a grid's side than goes with them.
_AFTER = (0, 1 / 12, 2 / 12, 3 / 12, 4 / 12, 6 / 12)
_OFF = (0.0, 0.15, 0.3)
# Blocks at full resolution before the end of the clustered span.
_LAST = (1,)
_MERGED = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.95)  # of the tokens, by the last block
_SIZES, _SMALLEST = 12, 0.5  # lower resolutions, and the least of the side
# Of the papers: numbers of the released settings for these tasks, and on Swin the mask of the released code.
PAPER = {
    "depth": {"inverse_temperature": 1.0},
    "segmentation": {"inverse_temperature": 0.02, "neighbors": 20},
    "panoptic": {"inverse_temperature": 0.01, "neighbors": 49, "window": 7, "mask_shift": "released"},
}
_LABELS = {
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


@dataclass(frozen=True)
class Subject:
    """What is accelerated.

    Attributes:
        task: `"depth"`, `"segmentation"` or `"panoptic"`.
        model: dense.
        size: (height, width) of its input in pixels.
        schedules: of its clustered rows.
    """

    task: str
    model: nn.Module
    size: Size
    schedules: Sequence[Schedule]

    def entry(self, kind: str, setting: TokenClusteringConfig) -> Entry:
        accelerated = ta.accelerate(self.model, setting, self.size)
        accel = stored_accel(accelerated.config)
        # The family has filled in what the setting leaves open; what a row is called does not say it all again.
        resolved = replace(TokenClusteringConfig.from_dict(accel), iterations=5)
        name = setting_name(resolved).replace("similarity_on=", "")
        return Entry(Variant(f"{_LABELS.get(kind, kind)} {name}", accelerated), kind, accel)


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


def dense(subject: Subject) -> list[Entry]:
    return [Entry(Variant("dense", subject.model), "dense")]


def lower_resolution(subject: Subject) -> list[Entry]:
    """The dense model on smaller images, in steps of patches."""
    step = input_step(subject.model.config)
    most = min(subject.size) // step
    least = max(1, round(_SMALLEST * most))
    count = min(_SIZES, most - least)
    chosen = sorted({least + round(i * (most - 1 - least) / max(1, count - 1)) for i in range(count)})
    entries = []
    for steps in chosen:
        variant = Variant("", subject.model, steps / most, step)
        height, width = variant.size(*subject.size)
        entries.append(Entry(replace(variant, name=f"lower resolution {height}x{width}"), "lower resolution"))
    return entries


def grid_pooling(subject: Subject) -> list[Entry]:
    """Averages over a grid in place of clusters, rebuilt as released and by `"delta"`; every second schedule."""
    return [
        subject.entry("grid pooling", schedule.setting(iterations=0, **values))
        for schedule in subject.schedules[::2]
        for values in ({}, {"expansion": "delta"})
    ]


def released(subject: Subject) -> list[Entry]:
    """As released: the family's expansion, tokens compared in the stream; with the paper's numbers, too.

    Released DPT copies the nearest cluster, while the paper's formula is a soft sum: both are tried.
    """
    entries = [subject.entry("released", schedule.setting()) for schedule in subject.schedules]
    if entries[0].accel["expansion"] == "nearest":
        entries += [
            subject.entry("released", schedule.setting(expansion="soft")) for schedule in subject.schedules[::2]
        ]
    paper = PAPER[subject.task]
    return entries + [subject.entry("released", schedule.setting(**paper)) for schedule in subject.schedules[::2]]


def full_decoder(subject: Subject) -> list[Entry]:
    """Of Segmenter: soft as released, but its decoder runs on all tokens; nothing for others, which always do so."""
    if not _decodes(subject):
        return []
    values = {"expansion": "soft", "decode_clusters": False}
    return [subject.entry("full decoder", schedule.setting(**values)) for schedule in subject.schedules]


def nearest_logits(subject: Subject) -> list[Entry]:
    """Of Segmenter: the decoder on clusters as released, and every token takes the logits of its nearest cluster."""
    if not _decodes(subject):
        return []
    return [subject.entry("nearest logits", schedule.setting(expansion="nearest")) for schedule in subject.schedules]


def clustered_decoder(subject: Subject) -> list[Entry]:
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


def token_merging(subject: Subject) -> list[Entry]:
    """Token merging with unmerge.

    Raises:
        ValueError: the model needs a grid of tokens.
    """
    encoder = describe_encoder(subject.model.config, subject.size)
    height, width = encoder.blocks[0].grid
    depth, entries = len(encoder.blocks), []
    for count in sorted({max(1, round(share * height * width / depth)) for share in _MERGED}):
        variant = Variant(f"token merging {count} per layer", merge_in_layers(subject.model, count))
        entries.append(Entry(variant, "token merging"))
    return entries


def soft_normalized(subject: Subject) -> list[Entry]:
    """One of our changes alone: tokens compared after the LayerNorm."""
    values = {"similarity_on": "normalized"}
    return [subject.entry("normalized", schedule.setting(**values)) for schedule in subject.schedules]


def delta_on_tokens(subject: Subject) -> list[Entry]:
    """One of our changes alone: the change of the clusters is added to the token as it was."""
    return [subject.entry("delta", schedule.setting(expansion="delta")) for schedule in subject.schedules]


def delta_normalized(subject: Subject) -> list[Entry]:
    """Both changes."""
    return [subject.entry("delta, normalized", schedule.setting(**OURS)) for schedule in subject.schedules]


def early(subject: Subject) -> list[Entry]:
    """Both, and the last one or two blocks of the span at full resolution."""
    return [
        subject.entry("early", schedule.setting(reconstruct_after=schedule.end - last, **OURS))
        for schedule in subject.schedules
        for last in _LAST
        if schedule.end - last > schedule.after
    ]


SWEEP: tuple[Callable[[Subject], list[Entry]], ...] = (
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
)
# What a table compares, each made of kinds of rows of the sweep.
METHODS = {
    "released": ("released",),
    "released, full decoder": ("full decoder",),
    "nearest logits": ("nearest logits",),
    "lower resolution": ("lower resolution",),
    "grid pooling": ("grid pooling",),
    "token merging": ("token merging",),
    "ours": ("delta, normalized", "early", "clustered decoder"),
}
# What each change alone brings, on the validation scenes and the same schedules.
CHANGES = {
    "released": ("released",),
    "+ normalized": ("normalized",),
    "+ delta": ("delta",),
    "+ delta, normalized": ("delta, normalized",),
    "+ early reconstruction": ("delta, normalized", "early"),
    "+ decoder on clusters": ("delta, normalized", "clustered decoder"),
}


def entries_of(
    subject: Subject, methods: Iterable[Callable[[Subject], list[Entry]]] = SWEEP
) -> tuple[list[Entry], list[str]]:
    """All rows of a sweep, the dense one first, and a sentence for each method that the model refuses."""
    entries, notes = [], []
    for method in methods:
        try:
            entries += method(subject)
        except ValueError as error:
            notes.append(f"{method.__name__.replace('_', ' ')} is refused: {error}")
    return entries, notes
