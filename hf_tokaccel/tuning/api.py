"""`tune`: from a budget to a setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ..auto import accelerate
from ..checks import UserError, is_count, is_number
from ..images import run_once
from ..measure.environment import describe_environment
from ..settings.clustering import TokenClusteringConfig
from ..settings.naming import group_name
from .images import gather_images, other_inputs
from .result import Trial, TuneResult, with_speed
from .search import Search, _best

_EXAMPLES = {"speedup": 1.5, "agreement": 0.99, "gflops": 0.6}
ATTEMPTS = 4  # times that a search for measured speed is made bolder
LADDER = (0.9, 0.75, 0.6, 0.45)  # other costs that the Pareto table shows, relative to dense
BISECTIONS = 5


def tune(
    model: PreTrainedModel,
    images: Any,
    *,
    speedup: float | None = None,
    agreement: float | None = None,
    gflops: float | None = None,
    processor: Any = None,
    max_images: int = 32,
    batch_size: int = 8,
    rounds: int = 5,
    seed: int = 0,
    advance: Callable[[Trial], None] = lambda trial: None,
) -> TuneResult:
    """Searches the setting that agrees best with the dense model within a budget, on unlabelled images.

    It begins with the setting that `hf_tokaccel.recommended` gives for the budget. One dense pass measures
    how redundant tokens are before each block; the schedules that lose least are run at the cost that the budget
    allows. Where the model allows it these are adaptive clusters in one or several steps, with a few grids beside
    them, else grids. Then how clusters are made and left is varied: what is compared, expansion, the share of a round
    and attention by sizes, or neighbors and temperature of a grid. GFLOPs decide what is run, so that
    a seed gives the same result on any machine; only `speedup` is also measured.

    Args:
        model: dense; an accelerated one counts as that.
        images: of one size: tensors (3, height, width) or (B, 3, height, width) as the model reads them, or a loader
            of such or of dicts with `pixel_values`; with a processor also PIL images and arrays (height, width, 3).
        speedup: measured speed to reach, relative to dense, above 1.
        agreement: to keep, below 1: mIoU with the dense prediction, 1 - relative depth error, PQ or mask IoU against
            dense segments or masks, or cosine of features.
        gflops: share of the dense model's GFLOPs to stay within, below 1.
        processor: image processor of the model.
        max_images: more are not looked at; those are drawn.
        batch_size: images of a forward pass.
        rounds: timed rounds, for `speedup`.
        seed: of the draw.
        advance: told of every setting that was run.

    Raises:
        ValueError: not exactly one budget, one that cannot be met (the message says the best that can), a model that
            cannot be accelerated, or images that cannot be used.
    """
    budget = _check_budget({"speedup": speedup, "agreement": agreement, "gflops": gflops})
    for name, value in (("max_images", max_images), ("batch_size", batch_size), ("rounds", rounds)):
        if not is_count(value):
            raise UserError(f"{name}={value!r} is not valid: it must be 1 or more, for example {name}=8.")
    model = accelerate(model, None).eval()
    given = gather_images(images, processor, max_images, seed)
    run_once(model, given[:1].to(model.device), **other_inputs(model, given[:1]))
    search = Search(model, given, batch_size, advance)
    chosen, target = _find(search, budget, rounds)
    _show_others(search, chosen, target)
    trials = [Trial("dense", "dense", 1.0, 1.0, speedup=1.0 if speedup else None), *search.trials.values()]
    return TuneResult(
        accel=chosen.setting,
        chosen=chosen,
        trials=trials,
        budget=budget,
        measure=search.kind,
        dense_gflops=search.dense_gflops,
        image_size=search.size,
        num_images=len(given),
        seed=seed,
        redundancy=search.redundancy,
        environment=describe_environment(next(model.parameters()).device),
    )


def _check_budget(given: dict[str, float | None]) -> dict[str, float]:
    budget = {name: value for name, value in given.items() if value is not None}
    if len(budget) != 1:
        raise UserError(
            f"the budget {budget or None} is not valid: give exactly one of speedup, agreement and gflops, for "
            "example speedup=1.5."
        )
    ((name, value),) = budget.items()
    if not is_number(value) or not (value > 1 if name == "speedup" else 0 < value < 1):
        allowed = "a number above 1" if name == "speedup" else "between 0 and 1"
        raise UserError(f"{name}={value!r} is not valid: it must be {allowed}, for example {name}={_EXAMPLES[name]}.")
    return budget


def _find(search: Search, budget: dict[str, float], rounds: int) -> tuple[Trial, float]:
    """The best setting for a budget, and the share of GFLOPs that it was searched at."""
    ((name, value),) = budget.items()
    if name == "gflops":
        return _within(search, value), value
    if name == "agreement":
        return _agreeing(search, value)
    return _fast(search, value, rounds)


def _within(search: Search, share: float) -> Trial:
    best = search.best_schedule(share)
    if best is None:
        least, setting = search.cheapest()
        raise UserError(
            f"gflops={share} cannot be met: the least that this model can do with is {least:.3f} of its dense "
            f"GFLOPs ({group_name(setting)} blocks), since the rest is outside of what is clustered; for example "
            f"gflops={min(0.99, round((1 + least) / 2, 2))}."
        )
    return search.refine(best, share)


def _agreeing(search: Search, wanted: float) -> tuple[Trial, float]:
    """The cheapest setting that agrees as much as is wanted: bisection of the cost."""
    low, high = search.cheapest()[0], 0.98
    like = None
    first = search.best_schedule((low + high) / 2)
    if first is not None:
        like = search.refine(first, (low + high) / 2).setting
    mildest = search.best_schedule(high, like)
    if mildest is None or mildest.agreement < wanted:
        best = _best(list(search.trials.values()))
        raise UserError(
            f"agreement={wanted} cannot be met: the best that was found is {best.agreement:.4f} at "
            f"{100 * best.gflops_ratio:.0f} % of the dense GFLOPs ({best.name}); for example "
            f"agreement={int(best.agreement * 1000) / 1000}."
        )
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        trial = search.best_schedule(middle, like)
        low, high = (low, middle) if trial is not None and trial.agreement >= wanted else (middle, high)
    enough = [trial for trial in search.trials.values() if trial.agreement >= wanted]
    return min(enough, key=lambda trial: (trial.gflops_ratio, -trial.agreement)), high


def _fast(search: Search, wanted: float, rounds: int) -> tuple[Trial, float]:
    """GFLOPs stand for time in the search; the best of each cost are timed, and the next cost follows from that."""
    share, like, fastest = 1 / wanted, None, None
    least = search.cheapest()[0]
    for attempt in range(ATTEMPTS):
        share = max(share, least)
        best = search.best_schedule(share, like)
        if best is None:
            break
        if attempt == 0:
            best = search.refine(best, share)
            like = best.setting
        near = sorted(
            (t for t in search.trials.values() if t.gflops_ratio <= share), key=lambda t: t.agreement, reverse=True
        )
        finalists = list({trial.name: trial for trial in (best, *near[:2])}.values())
        timed = [
            with_speed(trial, speed)
            for trial, speed in zip(finalists, search.speeds([t.setting for t in finalists], rounds), strict=True)
        ]
        search.trials.update({trial.name: trial for trial in timed})
        enough = [trial for trial in timed if trial.speedup >= wanted]
        if enough:
            return _best(enough), share
        fastest = max([*timed, *([fastest] if fastest else [])], key=lambda trial: trial.speedup)
        if share == least:
            break
        share *= min(0.95, max(trial.speedup for trial in timed) / wanted)
    told = "no setting is within that cost" if fastest is None else f"{fastest.speedup:.2f} ({fastest.name})"
    raise UserError(
        f"speedup={wanted} cannot be met on this device with {len(search.batches[0]['pixel_values'])} images a batch: "
        f"the best that was measured is {told}; at most {1 / least:.2f} follows from GFLOPs. A larger batch or image, "
        "or a lower budget helps."
    )


def _show_others(search: Search, chosen: Trial, target: float) -> None:
    """Rows beside the chosen one: the same at other costs, and plain grid pooling."""
    pooled = replace(chosen.setting, iterations=0) if not chosen.setting.adaptive else _pooled(search, chosen)
    if pooled is not None:
        search.run(pooled, "grid pooling")
    for share in LADDER:
        if abs(share - target) > 0.05:
            fitted = search.fit(chosen.setting, share)
            if fitted is not None:
                search.run(fitted)


def _pooled(search: Search, chosen: Trial) -> TokenClusteringConfig | None:
    """Grid pooling after as many blocks, of the same cost at most."""
    setting = TokenClusteringConfig(
        cluster_after=chosen.setting.starts[0], cluster_grid=1, iterations=0, **search.grid_recipe.fields
    )
    return search.fit(setting, chosen.gflops_ratio)
