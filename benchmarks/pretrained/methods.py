"""What is compared: one function for each method, from the judge to the rows of its sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

import torch
import torch.nn.functional as F

import hf_tokaccel as ta
from hf_tokaccel import TokenClusteringConfig
from hf_tokaccel.hosts.blocks import Encoder
from hf_tokaccel.images import input_step
from hf_tokaccel.rivals import build
from hf_tokaccel.rivals.build import Rival
from hf_tokaccel.rivals.regions import choose_regions
from hf_tokaccel.tuning.encoder import describe_encoder

from .schedules import SHARES, counts_of, grid_for, merged_counts, merged_for, share_of, steps_for
from .subject import Judge, features

Size = tuple[int, int]
SMALLEST = 0.65  # of the side, of lower resolutions: some 2.7 times fewer FLOPs
# Released settings that are searched: shares of the blocks before clustering, and temperatures in units of the mean
# squared distance between tokens there, beside "auto"; on corners of this share of some photographs, for these speeds.
STARTS, TEMPERATURES = (1 / 12, 2 / 12, 4 / 12, 6 / 12), (5.0, 20.0, 80.0)
CORNER, SEARCHED_IMAGES, SEARCHED_SHARES = 0.6, 4, (0.8, 0.6, 0.4)
# Steps of adaptive clusters after these shares of the depth, in twelfths.
STEPS = {
    "one step": (2,),
    "five steps": (1, 3, 5, 7, 9),
    "nine steps": (0, 1, 2, 3, 4, 5, 6, 8, 10),
}


@dataclass(frozen=True)
class Row:
    """One way to run the backbone.

    Attributes:
        method: whose front it belongs to.
        rival: how it runs.
        share: of the dense blocks' FLOPs, in closed form.
        timed: whether its time says anything.
    """

    method: str
    rival: Rival
    share: float
    timed: bool = True


@dataclass(frozen=True)
class Field:
    """What rows are made of.

    Attributes:
        judge: the dense backbone and its images.
        encoder: FLOPs of its blocks.
        subject: makes rivals.
        shares: of the blocks' FLOPs, that each method has rows for.
    """

    judge: Judge
    encoder: Encoder
    subject: build.Subject
    shares: tuple[float, ...] = SHARES
    _distances: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, judge: Judge, shares: tuple[float, ...] = SHARES) -> Field:
        size = judge.size
        return cls(judge, describe_encoder(judge.model.config, size), build.Subject(judge.model, size), shares)

    def after(self, share: float) -> int:
        """Blocks of such a share of the depth, at least one."""
        return max(1, round(share * len(self.encoder.blocks)))

    def clustered(self, method: str, setting: TokenClusteringConfig, counts: list[int | None]) -> Row:
        return Row(method, self.subject.clustered(setting), share_of(self.encoder, counts))

    def distance(self, after: int) -> float:
        """Mean squared distance between two patch tokens of an image after so many blocks."""
        if after not in self._distances:
            count = self.judge.grid[0] * self.judge.grid[1]
            with torch.inference_mode():
                output = self.judge.model(pixel_values=self.judge.images[:4], output_hidden_states=True)
            tokens = output.hidden_states[after][:, -count:].float()
            self._distances[after] = 2 * (tokens - tokens.mean(1, keepdim=True)).square().sum(-1).mean().item()
        return self._distances[after]


def lower_resolution(field: Field) -> Iterator[Row]:
    """The dense model on smaller images, at all sizes down to two thirds that patches allow; features are resized."""
    step = input_step(field.judge.model.config)
    most = min(field.judge.size) // step
    for steps in range(most - 1, round(SMALLEST * most) - 1, -1):
        rival = build.resized(field.subject, steps)
        encoder = describe_encoder(field.judge.model.config, rival.variant.size(*field.judge.size))
        yield Row("lower resolution", rival, encoder.flops / field.encoder.flops)


def _on_grids(
    field: Field, method: str, after: int, shares: tuple[float, ...] | None = None, **values
) -> Iterator[Row]:
    for share in shares or field.shares:
        grid = grid_for(field.encoder, after, share)
        if grid is not None:
            setting = TokenClusteringConfig(cluster_after=after, cluster_grid=grid, **values)
            counts = counts_of(field.encoder, (after,), (grid[0] * grid[1],))
            yield field.clustered(method, setting, counts)


def released(field: Field) -> Iterator[Row]:
    """The soft sum of the paper with this package's defaults, after a third of the blocks."""
    yield from _on_grids(field, "released", field.after(1 / 3), expansion="soft")


def released_searched(field: Field) -> Iterator[Row]:
    """The same with start and temperature searched, on corners of the photographs that it is then judged on."""
    images = _corners(field.judge.images[:SEARCHED_IMAGES])
    dense = features(field.judge.model, images, field.judge.grid)
    chosen = {}
    for share in SEARCHED_SHARES:
        tried = {}
        for after, scale in product(sorted({field.after(start) for start in STARTS}), (None, *TEMPERATURES)):
            temperature = "auto" if scale is None else round(scale / field.distance(after), 9)
            grid = grid_for(field.encoder, after, share)
            if grid is not None:
                setting = TokenClusteringConfig(
                    cluster_after=after, cluster_grid=grid, expansion="soft", inverse_temperature=temperature
                )
                found = features(ta.accelerate(field.judge.model, setting), images, field.judge.grid)
                tried[after, temperature] = F.mse_loss(found, dense).item()
        chosen[share] = min(tried, key=tried.get)
    for share in field.shares:
        after, temperature = chosen[min(chosen, key=lambda searched: abs(searched - share))]
        values = {"expansion": "soft", "inverse_temperature": temperature}
        yield from _on_grids(field, "released, searched", after, (share,), **values)


def _corners(images: torch.Tensor) -> torch.Tensor:
    """The upper left part of images, as large as they were."""
    height, width = images.shape[-2:]
    part = images[..., : round(CORNER * height), : round(CORNER * width)]
    return F.interpolate(part, (height, width), mode="bicubic", antialias=True)


def grid_recommended(field: Field) -> Iterator[Row]:
    """Grid clusters as this package recommended them before adaptive ones: change added, normalized tokens."""
    for share in field.shares:
        values = {"expansion": "delta", "similarity_on": "normalized"}
        found = ta.for_speedup(field.judge.model.config, field.judge.size, 1 / share, **values)
        height, width = found.cluster_grid
        counts = counts_of(field.encoder, (found.cluster_after,), (height * width,))
        yield field.clustered("grid, recommended", found, counts)


def grid_pooling(field: Field) -> Iterator[Row]:
    """Averages over a grid, their change added to the tokens."""
    yield from _on_grids(field, "grid pooling, change added", field.after(2 / 12), iterations=0, expansion="delta")


def token_merging(field: Field) -> Iterator[Row]:
    """Token Merging as in its paper but before every block, and the same with the change added."""
    for share in field.shares:
        count = merged_for(field.encoder, share)
        if count is not None:
            left = merged_counts(field.encoder, count)
            for method, expansion in (("token merging", "nearest"), ("token merging, change added", "delta")):
                rival = build.merged(field.subject, count, expansion)
                yield Row(method, rival, share_of(field.encoder, left))


def _steps(field: Field, name: str) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    depth = len(field.encoder.blocks)
    # A step that comes after a block never moves to the embeddings.
    after = tuple(dict.fromkeys(max(min(1, twelfths), twelfths * depth // 12) for twelfths in STEPS[name]))
    for share in field.shares:
        clusters = steps_for(field.encoder, after, share)
        if clusters is not None:
            yield after, clusters


def adaptive(field: Field) -> Iterator[Row]:
    """Adaptive clusters: steps that each leave the same part of the clusters.

    Rounds join at most a fifth of the clusters, so that most steps take one round; with "half rounds" at most a half.
    """
    for name, share in (*((name, 0.2) for name in STEPS), ("five steps", 0.5)):
        for after, clusters in _steps(field, name):
            setting = TokenClusteringConfig(cluster_after=after, clusters=clusters, round_share=share)
            method = f"adaptive, {name}" + (", half rounds" if share == 0.5 else "")
            yield field.clustered(method, setting, counts_of(field.encoder, after, clusters))


def _otherwise(field: Field, kind: str, method: str, timed: bool) -> Iterator[Row]:
    for after, clusters in _steps(field, "five steps"):
        setting = TokenClusteringConfig(cluster_after=after, clusters=clusters)
        share = share_of(field.encoder, counts_of(field.encoder, after, clusters))
        model = choose_regions(field.judge.model, setting, kind)
        name = f"{kind} regions {', '.join(map(str, clusters))} after {', '.join(map(str, after))}"
        yield Row(method, Rival(name, "clusters", model, accel=setting.to_dict()), share, timed)


def random_regions(field: Field) -> Iterator[Row]:
    """Five steps with regions that do not look at the image: what adaptivity adds."""
    yield from _otherwise(field, "random", "random regions, five steps", True)


def exact_agglomeration(field: Field) -> Iterator[Row]:
    """Five steps with Ward's tree over all tokens: the limit of better matching. Its time would be scikit-learn's."""
    yield from _otherwise(field, "ward", "exact agglomeration, five steps", False)


METHODS: tuple[Callable[[Field], Iterator[Row]], ...] = (
    lower_resolution,
    released,
    released_searched,
    grid_recommended,
    grid_pooling,
    token_merging,
    random_regions,
    exact_agglomeration,
    adaptive,
)
