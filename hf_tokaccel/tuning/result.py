"""What a search found, as plain data, table and plot."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ..measure.agreement import NAMES
from ..results.report import Line, Report, Sheet
from ..results.tables import to_table
from ..settings.clustering import TokenClusteringConfig


@dataclass(frozen=True)
class Trial:
    """One setting that was run.

    Attributes:
        name: of the setting.
        kind: `"dense"`, `"clusters"` or `"grid pooling"`.
        agreement: with the dense model, 1 at best.
        gflops_ratio: GFLOPs of an image to those of the dense model.
        accel: the setting as a plain dict, None for dense.
        speedup: measured, None where it was not.
    """

    name: str
    kind: str
    agreement: float
    gflops_ratio: float
    accel: dict | None = None
    speedup: float | None = None

    @property
    def setting(self) -> TokenClusteringConfig:
        return TokenClusteringConfig.from_dict(self.accel)


@dataclass
class TuneResult(Report):
    """The setting that was found and what it was chosen from.

    Attributes:
        accel: the setting.
        chosen: its numbers.
        trials: all that were run, dense first.
        budget: such as `{"speedup": 1.5}`.
        measure: what `agreement` is, a key of `measure.agreement.NAMES`.
        dense_gflops: billion FLOPs of the dense model for an image.
        image_size: (height, width) in pixels.
        num_images: that were looked at.
        seed: of the draw of images.
        redundancy: by block, (share of tokens kept, share of variance lost); see `measure_redundancy`.
        environment: machine, versions and commit.
    """

    accel: TokenClusteringConfig
    chosen: Trial
    trials: list[Trial]
    budget: dict[str, float]
    measure: str
    dense_gflops: float
    image_size: tuple[int, int]
    num_images: int
    seed: int
    redundancy: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    environment: dict = field(default_factory=dict)

    def pareto(self) -> list[Trial]:
        """The settings that no other beats in agreement at its cost or below, from dear to cheap."""
        front: list[Trial] = []
        for trial in sorted(self.trials, key=lambda t: (t.gflops_ratio, -t.agreement)):
            if not front or trial.agreement > front[-1].agreement:
                front.append(trial)
        return front[::-1]

    def to_dict(self) -> dict[str, Any]:
        return {
            "accel": self.accel.to_dict(),
            "budget": self.budget,
            "measure": NAMES[self.measure],
            "chosen": asdict(self.chosen),
            "pareto": [asdict(trial) for trial in self.pareto()],
            "trials": [asdict(trial) for trial in self.trials],
            "dense_gflops": self.dense_gflops,
            "image_size": list(self.image_size),
            "num_images": self.num_images,
            "seed": self.seed,
            "redundancy": {str(block): curve for block, curve in self.redundancy.items()},
            "environment": self.environment,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TuneResult:
        others = {name: value for name, value in values.items() if name != "pareto"}
        curves = {int(block): [tuple(p) for p in curve] for block, curve in values["redundancy"].items()}
        return cls(
            **{
                **others,
                "accel": TokenClusteringConfig.from_dict(values["accel"]),
                "chosen": Trial(**values["chosen"]),
                "trials": [Trial(**trial) for trial in values["trials"]],
                "measure": next(key for key, name in NAMES.items() if name == values["measure"]),
                "image_size": tuple(values["image_size"]),
                "redundancy": curves,
            }
        )

    def sheet(self) -> Sheet:
        """The Pareto table; a star marks the chosen setting."""
        headings = ["setting", f"{NAMES[self.measure]} ↑", "GFLOPs ↓", "of dense", "measured speed ↑"]
        return Sheet(headings, [Line(self._cells(trial)) for trial in self.pareto()], notes=[self._caption()])

    def _cells(self, trial: Trial) -> list[str]:
        return [
            f"{'* ' if trial.name == self.chosen.name else ''}{trial.name}",
            f"{trial.agreement:.4f}",
            f"{trial.gflops_ratio * self.dense_gflops:.4g}",
            f"{100 * trial.gflops_ratio:.1f} %",
            "" if trial.speedup is None else f"{trial.speedup:.2f}x",
        ]

    def to_table(self) -> Table:
        """`sheet` for a terminal."""
        return to_table(self)

    def to_markdown(self) -> str:
        """`sheet` as Markdown."""
        return self.sheet().to_markdown()

    def _caption(self) -> str:
        (name, value), (height, width) = next(iter(self.budget.items())), self.image_size
        return (
            f"* chosen for {name} {value:g}; {len(self.trials) - 1} settings on {self.num_images} images of "
            f"{height}x{width}, seed {self.seed}"
        )

    def plot(self, path: str | Path) -> None:
        """Writes a picture of agreement over GFLOPs: all settings, the Pareto front, the chosen one."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        colours = {"adaptive clusters": "tab:blue", "grid clusters": "tab:green", "grid pooling": "tab:orange"}
        for kind, colour in colours.items():
            points = [(t.gflops_ratio, t.agreement) for t in self.trials if _plotted_as(t) == kind]
            if points:
                axes.scatter(*zip(*points, strict=True), s=16, alpha=0.6, color=colour, label=kind)
        front = self.pareto()
        axes.plot([t.gflops_ratio for t in front], [t.agreement for t in front], color="tab:gray", zorder=0)
        axes.scatter(1, 1, marker="s", color="black", label="dense")
        axes.scatter(
            self.chosen.gflops_ratio, self.chosen.agreement, marker="*", s=180, color="tab:red", label="chosen"
        )
        axes.set(xlabel="GFLOPs, share of the dense model's", ylabel=NAMES[self.measure])
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=150)


def _plotted_as(trial: Trial) -> str:
    if trial.kind != "clusters":
        return trial.kind
    return "adaptive clusters" if trial.setting.adaptive else "grid clusters"


def with_speed(trial: Trial, speedup: float) -> Trial:
    return replace(trial, speedup=speedup)
