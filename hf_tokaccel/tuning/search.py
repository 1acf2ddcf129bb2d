"""The search for a setting: schedules of equal cost first, ordered by redundancy, then how tokens are rebuilt."""

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
from ..settings.naming import group_name, setting_name
from .encoder import describe_encoder, find_head
from .images import other_inputs
from .recommended import recipe_for, recommend
from .redundancy import measure_redundancy, predicted_loss
from .result import Trial

KEPT = 6  # schedules of a budget that are run; the others lose more tokens' variance
KNOBS: dict[str, tuple] = {
    "similarity_on": ("tokens", "normalized"),
    "expansion": ("delta", "soft", "nearest"),
    "decoder": (True,),
    "neighbors": (4, 10, 20, -1),
    "temperature": (0.3, 3.0, 10.0),
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
        self.encoder: Encoder = describe_encoder(config, self.size)
        self.span = self.encoder.longest()
        self.dense: list[Reading] = self._read(model)
        self.kind = self.dense[0].kind
        self.dense_gflops = self._count(accelerate(model, None))
        self.redundancy = measure_redundancy(model, self.batches, self.encoder, self.span)
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
        key = group_name(setting), setting.expansion, self.decodes and chosen, setting.iterations
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
        setting = TokenClusteringConfig(cluster_after=start, cluster_grid=grid, **self.recipe.fields)
        return self.cost(setting), setting

    def recommended(self, budget: float, fields: dict[str, Any]) -> TokenClusteringConfig | None:
        """The recommended setting for a budget with these fields; None where it cannot meet the budget."""
        left = self.encoder.flops - (1 - budget) * self.dense_gflops * 1e9
        setting = None if left <= 0 else recommend(self.encoder, self.recipe, self.encoder.flops / left, fields)
        return None if setting is None else self.fit(setting, budget)

    def fit(self, setting: TokenClusteringConfig, budget: float) -> TokenClusteringConfig | None:
        """The same with the largest cluster grid whose cost is within a budget; None where there is none."""
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

    def schedules(self, budget: float, fields: dict[str, Any]) -> list[TokenClusteringConfig]:
        """The most promising `cluster_after` with the grids that a budget allows."""
        start, end = self.span
        guesses = []
        for after in range(start, end):
            tokens = self.encoder.blocks[after].grid
            spare = (1 - budget) * self.dense_gflops * 1e9
            allowed = [
                g for g in self.encoder.grids(after) if self.encoder.flops - self.encoder.clustered(after, g) >= spare
            ]
            if allowed:
                share = allowed[-1][0] * allowed[-1][1] / (tokens[0] * tokens[1])
                guesses.append((predicted_loss(self.redundancy[after], share), after, allowed[-1]))
        chosen = sorted(guesses)[:KEPT]
        settings = [
            TokenClusteringConfig(cluster_after=after, cluster_grid=grid, **fields) for _, after, grid in chosen
        ]
        return [fitted for setting in settings if (fitted := self.fit(setting, budget)) is not None]

    def best_schedule(self, budget: float, fields: dict[str, Any]) -> Trial | None:
        """The best of the recommended schedule and others within a budget, with full resolution back early or late."""
        first = self.recommended(budget, fields)
        trials = [self.run(setting) for setting in (first, *self.schedules(budget, fields)) if setting is not None]
        if not trials:
            return None
        best = _best(trials)
        after, end = best.setting.cluster_after, self.span[1]
        early = sorted({end - 1, (after + 2 * end) // 3} - set(range(after + 2)) - {end})
        for until in [until for until in (*early, None) if until != best.setting.reconstruct_after]:
            early = self.fit(replace(best.setting, reconstruct_after=until, decode_clusters=None), budget)
            if early is not None:
                trials.append(self.run(early))
        return _best(trials)

    def refine(self, best: Trial, budget: float) -> Trial:
        """The best within a budget after one round over everything that is not the schedule."""
        for knob in KNOBS:
            for setting in list(self._variations(best.setting, knob)):
                fitted = self.fit(setting, budget)
                if fitted is not None:
                    best = _best([best, self.run(fitted)])
        for step in (-1, 1):
            moved = best.setting.cluster_after + step
            until = best.setting.reconstruct_after
            if self.span[0] <= moved < min(self.span[1], until or self.span[1]):
                fitted = self.fit(replace(best.setting, cluster_after=moved), budget)
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
            if self.recipe.decodes and setting.expansion == "delta" and not setting.decode_clusters:
                yield replace(setting, reconstruct_after=None, decode_clusters=True)
            return
        for value in KNOBS[knob]:
            if value == getattr(setting, knob) or (knob == "neighbors" and setting.expansion == "nearest"):
                continue
            if knob == "similarity_on" and value not in self.similarities:
                continue
            if knob != "expansion":
                yield replace(setting, **{knob: value})
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


def _best(trials: Sequence[Trial]) -> Trial:
    return max(trials, key=lambda trial: (trial.agreement, -trial.gflops_ratio))
