"""The search for a setting: schedules of equal cost first, ordered by redundancy, then how tokens are rebuilt.

Where a model can run on clusters of free shape these come first, and a few grids stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..auto import accelerate, accelerate_config
from ..clustering.tiling import SHARPNESS
from ..hosts.blocks import Encoder, Grid
from ..hosts.config import family_of, stored_accel
from ..measure.agreement import Agreement, Reading, read_output
from ..measure.flops import count_gflops, gflops_of_shape
from ..measure.speed import time_interleaved
from ..settings.clustering import TokenClusteringConfig
from ..settings.naming import setting_name
from .encoder import describe_encoder, find_head
from .images import other_inputs
from .recommended import AdaptiveRecipe, Recipe, recipe_for, recommend
from .redundancy import measure_redundancy
from .result import Trial
from .schedules import in_steps, most_promising, shrink

KEPT = 6  # schedules of a budget that are run; the others lose more tokens' variance
KEPT_BESIDE = 2  # likewise of each kind where adaptive clusters and grids are both tried
STEPS = (3, 8)  # of adaptive clusters, beside one and those that are recommended
FITS = 3  # times that the closed form is corrected by what a setting really costs
SPARE = 0.005  # of the dense GFLOPs that may stay unused
KNOBS: dict[str, tuple] = {
    "similarity_on": ("tokens", "normalized"),
    "expansion": ("delta", "soft", "nearest"),
    "decoder": (True,),
    "neighbors": (4, 10, 20, -1),
    "temperature": (0.3, 3.0, 10.0),
}
ADAPTIVE_KNOBS: dict[str, tuple] = {
    "similarity_on": ("tokens", "normalized"),
    "expansion": ("delta", "nearest"),
    "decoder": (True,),
    "round_share": (0.2, 0.5),
    "size_attention": (True, False),
}


class Search:
    """Runs settings on images and remembers all.

    Args:
        model: dense, in evaluation mode.
        images: (n, 3, height, width).
        batch_size: images of a forward pass.
        advance: told of every setting that was run.
    """

    def __init__(
        self, model: PreTrainedModel, images: Tensor, batch_size: int, advance: Callable[[Trial], None]
    ) -> None:
        parameter = next(model.parameters())
        self.model, self.advance = model, advance
        self.size: Grid = tuple(images.shape[-2:])
        parts = [part.to(parameter.device, parameter.dtype) for part in images.split(batch_size)]
        self.batches = [{"pixel_values": part, **other_inputs(model, part)} for part in parts]
        config = accelerate_config(model.config, None)
        self.decodes = getattr(config, "accel_decodes_clusters", False)
        self.similarities = family_of(find_head(config).accel_host()).accel_similarities
        self.recipe = recipe_for(model.config)
        # What can have neighbors is a grid.
        self.grid_recipe = recipe_for(model.config, ("neighbors",))
        self.adaptive = isinstance(self.recipe, AdaptiveRecipe)
        self.encoder: Encoder = describe_encoder(config, self.size)
        self.span = self.encoder.longest()
        self.dense: list[Reading] = self._read(model)
        self.kind = self.dense[0].kind
        self.dense_gflops = self._count(accelerate(model, None))
        self.redundancy = measure_redundancy(model, self.batches, self.span, self.adaptive)
        self.trials: dict[str, Trial] = {}
        self._costs: dict[tuple, float] = {}

    def _read(self, model: PreTrainedModel) -> list[Reading]:
        with torch.inference_mode():
            return [read_output(model(**batch)) for batch in self.batches]

    def _count(self, model: PreTrainedModel) -> float:
        if len(self.batches[0]) == 1:
            return gflops_of_shape(model, self.size)
        first = {k: v[:1] if isinstance(v, Tensor) else v for k, v in self.batches[0].items()}
        return count_gflops(lambda images: model(**{**first, "pixel_values": images}), first["pixel_values"])

    def cost(self, setting: TokenClusteringConfig) -> float:
        """GFLOPs of an image relative to the dense model."""
        chosen = setting.usually_decodes_clusters if setting.decode_clusters is None else setting.decode_clusters
        # Whatever else is set changes no product's size.
        schedule = setting.starts, setting.reconstruct_after, setting.cluster_grid, setting.clusters
        way = setting.round_share if setting.adaptive else (setting.expansion, setting.iterations)
        key = schedule, way, self.decodes and chosen
        if key not in self._costs:
            self._costs[key] = self._count(accelerate(self.model, setting, self.size)) / self.dense_gflops
        return self._costs[key]

    def run(self, setting: TokenClusteringConfig, kind: str = "clusters") -> Trial:
        """Agreement and cost of a setting on all images."""
        model = accelerate(self.model, setting, self.size)
        resolved = TokenClusteringConfig.from_dict(stored_accel(model.config))
        name = setting_name(resolved)
        if name not in self.trials:
            agreement = self._agreement(model)
            trial = Trial(name, kind, agreement, self.cost(setting), accel=setting.to_dict())
            self.trials[name] = trial
            self.advance(trial)
        return self.trials[name]

    def _agreement(self, model: PreTrainedModel) -> float:
        total = Agreement()
        with torch.inference_mode():
            for batch, dense in zip(self.batches, self.dense, strict=True):
                total.add(read_output(model(**batch)), dense)
        return total.value

    def cheapest(self) -> tuple[float, TokenClusteringConfig]:
        """The least cost that a setting can have."""
        start = self.span[0]
        grid = self.encoder.grids(start)[0]
        settings = [TokenClusteringConfig(cluster_after=start, cluster_grid=grid, **self._fields(False))]
        if self.adaptive:
            settings.append(TokenClusteringConfig(cluster_after=start, clusters=1, **self._fields(True)))
        return min(((self.cost(setting), setting) for setting in settings), key=lambda found: found[0])

    def _fields(self, adaptive: bool) -> dict[str, Any]:
        """What a recipe sets beside the schedule."""
        if not adaptive:
            return self.grid_recipe.fields
        height, width = self.encoder.blocks[self.span[0]].grid
        return {"tile": self.recipe.tile if height * width > self.recipe.most else None, **self.recipe.fields}

    def recommended(
        self, budget: float, recipe: Recipe | AdaptiveRecipe, fields: dict[str, Any]
    ) -> TokenClusteringConfig | None:
        """The setting of a recipe for a budget with these fields; None where it cannot meet the budget."""
        left = self.encoder.flops - (1 - budget) * self.dense_gflops * 1e9
        setting = None if left <= 0 else recommend(self.encoder, recipe, self.encoder.flops / left, fields)
        return None if setting is None else self.fit(setting, budget)

    def fit(self, setting: TokenClusteringConfig, budget: float) -> TokenClusteringConfig | None:
        """The same with as many clusters as a budget allows; None where not even the fewest are within it."""
        return self._fit_adaptive(setting, budget) if setting.adaptive else self._fit_grid(setting, budget)

    def _fit_adaptive(self, setting: TokenClusteringConfig, budget: float) -> TokenClusteringConfig | None:
        dense, found = self.dense_gflops * 1e9, None
        saved = (1 - budget) * dense
        for _ in range(FITS):
            guess = shrink(self.encoder, setting, saved)
            if guess is None:
                break
            spare = budget - self.cost(guess)
            if spare >= 0 and (found is None or self.cost(guess) > self.cost(found)):
                found = guess
            if 0 <= spare < SPARE or found not in (None, guess):
                break
            # The closed form lacks the method itself, and a decoder that runs on clusters.
            saved -= spare * dense
        return found

    def _fit_grid(self, setting: TokenClusteringConfig, budget: float) -> TokenClusteringConfig | None:
        grids = self.encoder.grids(setting.cluster_after)
        low, high = -1, len(grids) - 1
        # The closed form is near: it lacks what does not change, and the method itself.
        spare = (1 - budget) * self.dense_gflops * 1e9
        guess = sum(
            self.encoder.flops - self.encoder.clustered(setting.cluster_after, grid, setting.reconstruct_after)
            >= spare
            for grid in grids
        )
        probe = min(max(guess - 1, 0), high)
        while low < high:
            if self.cost(replace(setting, cluster_grid=grids[probe])) <= budget:
                low = probe
                probe = probe + 1
            else:
                high = probe - 1
                probe = probe - 1
            probe = min(max(probe, low + 1), max(high, low + 1))
        return None if low < 0 else replace(setting, cluster_grid=grids[low])

    def schedules(self, budget: float, like: TokenClusteringConfig | None = None) -> list[TokenClusteringConfig]:
        """The most promising schedules within a budget, the recommended one first.

        Args:
            budget: share of the dense GFLOPs.
            like: what all of them have in common with, but for the schedule; None tries what each recipe has.
        """
        saved = (1 - budget) * self.dense_gflops * 1e9
        kinds = [self.adaptive, False] if self.adaptive else [False]
        kinds = dict.fromkeys(kinds if like is None else [like.adaptive])
        found = []
        for adaptive in kinds:
            fields = self._fields(adaptive) if like is None else how_rebuilt(like)
            found.append(self.recommended(budget, self.recipe if adaptive else self.grid_recipe, fields))
            kept = KEPT_BESIDE if self.adaptive else KEPT
            chosen = most_promising(self.encoder, self.redundancy, saved, fields, adaptive, kept)
            if adaptive:
                taken = () if found[-1] is None else (found[-1].starts,)
                stepped = {setting.starts: setting for setting in (in_steps(self.span, n, fields) for n in STEPS)}
                chosen += [setting for starts, setting in stepped.items() if starts not in taken]
                chosen += [] if like is None else [like]
            found += [self.fit(setting, budget) for setting in chosen]
        return [setting for setting in found if setting is not None]

    def best_schedule(self, budget: float, like: TokenClusteringConfig | None = None) -> Trial | None:
        """The best of `schedules` within a budget, and with full resolution back early or late."""
        trials = [self.run(setting) for setting in self.schedules(budget, like)]
        if not trials:
            return None
        best = _best(trials)
        after, end = best.setting.starts[-1], self.span[1]
        early = sorted({end - 1, (after + 2 * end) // 3} - set(range(after + 2)) - {end})
        for until in [until for until in (*early, None) if until != best.setting.reconstruct_after]:
            fitted = self.fit(replace(best.setting, reconstruct_after=until, decode_clusters=None), budget)
            if fitted is not None:
                trials.append(self.run(fitted))
        return _best(trials)

    def refine(self, best: Trial, budget: float) -> Trial:
        """The best within a budget after one round over everything that is not the schedule."""
        for knob in ADAPTIVE_KNOBS if best.setting.adaptive else KNOBS:
            for setting in list(self._variations(best.setting, knob)):
                fitted = self.fit(setting, budget)
                if fitted is not None:
                    best = _best([best, self.run(fitted)])
        for step in (-1, 1):
            moved = [after + step for after in best.setting.starts]
            until = best.setting.reconstruct_after
            if self.span[0] <= moved[0] and moved[-1] < min(self.span[1], until or self.span[1]):
                several = isinstance(best.setting.cluster_after, tuple)
                setting = replace(best.setting, cluster_after=tuple(moved) if several else moved[0])
                fitted = self.fit(setting, budget)
                if fitted is not None:
                    best = _best([best, self.run(fitted)])
        return best

    def _variations(self, setting: TokenClusteringConfig, knob: str) -> Iterator[TokenClusteringConfig]:
        if knob == "temperature":
            scale = self._auto_scale(setting)
            values = [float(f"{scale * factor:.3g}") for factor in KNOBS[knob]]
            yield from (replace(setting, inverse_temperature=value) for value in values)
            return
        if knob == "decoder":
            if self.grid_recipe.decodes and setting.expansion == "delta" and not setting.decode_clusters:
                yield replace(setting, reconstruct_after=None, decode_clusters=True)
            return
        for value in (ADAPTIVE_KNOBS if setting.adaptive else KNOBS)[knob]:
            if value == getattr(setting, knob) or (knob == "neighbors" and setting.expansion == "nearest"):
                continue
            if knob == "similarity_on" and value not in self.similarities:
                continue
            if knob != "expansion":
                yield replace(setting, **{knob: value})
                continue
            if setting.adaptive:
                yield replace(setting, expansion=value, decode_clusters=None)
                continue
            for norm in (None, "l1") if value == "soft" else (None,):
                yield replace(setting, expansion=value, normalization=norm, decode_clusters=None)
            if self.decodes and setting.reconstruct_after is None and value != "delta":
                yield replace(setting, expansion=value, normalization="l1", decode_clusters=False)

    def _auto_scale(self, setting: TokenClusteringConfig) -> float:
        """What `"auto"` multiplies distances by, about: 4 over the median squared distance to the own cluster."""
        from ..hosts.track import observe_clusters

        with torch.inference_mode(), observe_clusters() as seen:
            accelerate(self.model, setting, self.size)(**self.batches[0])
        keys = seen[0].keys.float()
        centroids = seen[0].clusters.key_centroids.float()
        return SHARPNESS / max(torch.cdist(keys, centroids).min(-1).values.square().median().item(), 1e-30)

    def speeds(self, settings: Sequence[TokenClusteringConfig], rounds: int) -> list[float]:
        """Measured speed relative to dense, all in turns."""
        models = [self.model, *(accelerate(self.model, setting, self.size) for setting in settings)]
        batch = self.batches[0]
        calls = [lambda model=model: model(**batch) for model in models]
        device = batch["pixel_values"].device
        return [timing.speedup for timing in time_interleaved(calls, device=device, rounds=rounds)[1:]]


def how_rebuilt(setting: TokenClusteringConfig) -> dict[str, Any]:
    """The fields of a setting that are not its schedule."""
    schedule = ("cluster_after", "cluster_grid", "clusters", "reconstruct_after", "method", "version")
    return {name: value for name, value in setting.to_dict().items() if name not in schedule}


def _best(trials: Sequence[Trial]) -> Trial:
    return max(trials, key=lambda trial: (trial.agreement, -trial.gflops_ratio))
