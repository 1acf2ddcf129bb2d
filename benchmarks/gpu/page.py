"""Writes docs/gpu.md anew from the results of GPUs in benchmarks/results, or says that there are none.

Where a step ran more than once, the newest run that came to an end counts.

python -m benchmarks.gpu.page
python -m benchmarks.gpu.page --check   exit with 1 where the page differs
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT
from benchmarks.gpu import targets
from benchmarks.gpu.steps import read
from hf_tokaccel.results.marked import fill_marked
from hf_tokaccel.results.report import markdown_table

PAGE = ROOT / "docs" / "gpu.md"
NONE = "There is no result of a GPU yet: no `benchmarks/results/gpu-*.jsonl`. `python -m benchmarks.gpu` makes one."
Records = dict[str, dict[str, Any]]
REFUSES_CLUSTERS = "it must be None for"  # as records have it that were made before they said so themselves
UNBELIEVED = "the replay took longer than the call, which nothing explains: no speed"
LAUNCHES = "hardly longer than one image: it waits for launches"
PARITY = """Largest difference to the CPU's float32, relative to the largest output; a model holds where that is at
most 1e-4 in float32 and a second run gives every bit again. Where a token is as near to one cluster as to another,
rounding decides, and an output of a tiny model may change by as much as it is large. Families with windows or relative
positions offer no adaptive clusters."""


def found() -> list[Path]:
    """The results that are shown, oldest first."""
    paths = [path for path in RESULTS.glob("gpu-*.jsonl") if not path.name.startswith("gpu-quick-")]
    return sorted(paths, key=lambda path: _environment(path)["date"])


def tables(paths: list[Path]) -> str:
    """Results as Markdown, of paths from the oldest to the newest."""
    if not paths:
        return NONE
    records = merged(paths)
    parts = {
        "Targets": _targets(records),
        "The machine": _machine(records, paths),
        "The same as on the CPU": _parity(records),
        "TF32, and tokens with a common offset": _exactness(records),
        "Kernels": _kernels(records),
        "The method by itself": _method(records),
        "Attention with sizes": _attention(records),
        "Whole models": _models(records),
        "Compiled": _compiled(records),
        "How far calls differ": _again(paths),
        "What did not run": _failed(paths),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items() if text)


def merged(paths: Iterable[Path]) -> Records:
    """The newest record of each step that came to its end, or else its newest error; each with its commit.

    Models are compiled row by row: rows that only an older run has are kept.
    """
    records: Records = {}
    for path in paths:
        commit = _commit(path)
        for record in read(path):
            name, before = record["step"], records.get(record["step"], {})
            if record.get("result") is None and before.get("result") is not None:
                continue
            records[name] = record | {"commit": commit}
            if name.startswith("compiled ") and "rows" in (record.get("result") or {}):
                rows = {row: value | {"commit": commit} for row, value in record["result"]["rows"].items()}
                older = before["result"]["rows"] if before.get("result") else {}
                records[name]["result"] = {"rows": older | rows}
    return records


def _environment(path: Path) -> dict[str, Any]:
    return next(record["result"] for record in read(path) if record["step"] == "environment")


def _commit(path: Path) -> str:
    """Short, with a remark where the tree differed from it; empty where there is none."""
    git = _environment(path).get("git")
    return f"{git['commit'][:7]}{' with changes' if git['dirty'] else ''}" if git else ""


def _of(records: Records, beginning: str) -> Iterator[tuple[str, Any]]:
    """What steps came to, by the rest of their names."""
    for name, record in records.items():
        if name.startswith(beginning) and record.get("result") is not None:
            yield name.removeprefix(beginning), record["result"]


def _commits(records: Records, *beginnings: str) -> str:
    """Which commits the numbers of a table are of."""
    commits = {
        record["commit"]: None
        for name, record in records.items()
        if name.startswith(beginnings) and record.get("result") is not None and record["commit"]
    }
    return f"\n\nAt commit {', '.join(f'`{commit}`' for commit in commits)}." if commits else ""


def _number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, and no power of ten."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".rstrip(".")


def _short(error: str) -> str:
    """In a cell of a table."""
    return error.replace("|", "/").split(" unless ")[0][:100]


def _times(base: float | None, value: float | None) -> str:
    return f"{base / value:.2f}x" if base and value else ""


def _targets(records: Records) -> str:
    lines = targets.reached(records)
    headings = ["", "to reach", "reached", "met", "remark"]
    return markdown_table(headings, lines, names=1, remarks=2) if lines else ""


def _machine(records: Records, paths: list[Path]) -> str:
    runs = []
    for path in paths:
        environment = _environment(path)
        versions = [f"{name} {environment['versions'].get(name, '?')}" for name in ("torch", "transformers")]
        cells = [environment["date"], environment["machine"]["device"], ", ".join(versions), _commit(path)]
        runs.append([*cells, f"`{path.name}`", environment.get("remark", "")])
    lines = [markdown_table(["ended", "device", "versions", "commit", "results", "remark"], runs, names=6)]
    for found in [_environment(path)["machine"].get("gpu") for path in paths] + [
        it for _, it in _of(records, "about")
    ]:
        if not found:
            continue
        flags = ", ".join(f"{name} {str(value).lower()}" for name, value in found["flags"].items())
        lines.append(f"Flags: {flags}.")
    for _, found in _of(records, "ceilings"):
        rates = [(name, value) for name, value in found.items() if not isinstance(value, dict)]
        lines.append(markdown_table(["measured ceiling", ""], [[name, _number(value)] for name, value in rates]))
    states = [found.get("nvidia-smi after") for _, found in _of(records, "ceilings")]
    cards = [state for state in states if state]
    if cards:
        lines.append(f"nvidia-smi: {', '.join(f'{name} {value}' for name, value in cards[-1].items())}.")
    return "\n\n".join(lines)


def _parity(records: Records) -> str:
    """One line for each form of the models; by name only those that do not hold or do not repeat."""
    forms: dict[str, list[tuple[str, dict]]] = {}
    without = [family for family, found in _of(records, "parity ") if not found]
    for family, found in _of(records, "parity "):
        for name, outcome in found.items():
            tester, _, form = name.partition(" ")
            forms.setdefault(form, []).append((f"{family} ({tester})", outcome))
    if not forms:
        return ""
    lines, remarks = [], []
    for form, outcomes in forms.items():
        not_offered = sum(is_not_offered(outcome) for _, outcome in outcomes)
        ran = [outcome for _, outcome in outcomes if "holds" in outcome]
        worst = [
            max((_difference(outcome, mode) for outcome in ran), default=0)
            for mode in ("float32", "float32 with TF32", "bfloat16", "autocast")
        ]
        again = sum(all(outcome["repeats"].values()) for outcome in ran)
        held = sum(outcome["holds"] for outcome in ran)
        cells = [str(len(ran)), str(held), *(f"{value:.1e}" for value in worst), f"{again} of {len(ran)}"]
        lines.append([form, *cells, str(not_offered or "")])
        remarks += [f"- {form}, {name}: {what}" for name, outcome in outcomes if (what := _unlike(outcome))]
    headings = ["models", "tried", "hold", "float32", "with TF32", "bfloat16", "autocast", "repeats in every bit"]
    table = markdown_table([*headings, "not offered"], lines)
    if without:
        remarks.append(f"- not tried, since the machine could build no model of theirs: {', '.join(without)}")
    return "\n\n".join(filter(None, [PARITY, table, "\n".join(remarks)])) + _commits(records, "parity ")


def is_not_offered(outcome: dict[str, Any]) -> bool:
    """Whether a family has no such form at all, which it says."""
    return "not offered" in outcome or ("error" in outcome and REFUSES_CLUSTERS in outcome["error"])


def _difference(outcome: dict[str, Any], mode: str) -> float:
    """Of the values that are numbers; `_unlike` names those that are not."""
    return outcome["difference"].get(mode) or 0.0


def _unlike(outcome: dict[str, Any]) -> str:
    """What a model does not do that others do; empty where there is nothing."""
    if is_not_offered(outcome):
        return ""
    if "error" in outcome:
        return outcome["error"]
    said = [] if outcome["holds"] else [f"float32 differs by {outcome['difference'].get('float32', float('nan')):.1e}"]
    broken = [mode for mode, value in outcome["difference"].items() if value is None]
    said += [f"{', '.join(broken)} gives values that are not numbers"] if broken else []
    changes = [mode for mode, same in outcome["repeats"].items() if not same]
    said += [f"two runs differ in {', '.join(changes)}"] if changes else []
    said += [f"{mode} does not run: {error}" for mode, error in outcome["errors"].items()]
    return "; ".join(said)


def _exactness(records: Records) -> str:
    lines = []
    for _, rows in _of(records, "exactness"):
        for row in rows:
            errors = [f"{row[name]:.1e}" for name in ("centroids", "rebuilt", "region means")]
            same = "yes" if len(row["repeats"]) == 4 else ", ".join(row["repeats"]) or "no"
            nearest = f"{100 * row['other nearest']:.2f} %"
            lines.append([_number(row["offset"], 2), "on" if row["tf32"] else "off", *errors, nearest, same])
    headings = ["offset", "TF32", "centroids", "rebuilt", "region means", "other nearest cluster", "repeats"]
    forms = [f"{name}: {what}" for _, found in _of(records, "deterministic") for name, what in found.items()]
    said = f"\n\nUnder `torch.use_deterministic_algorithms(True)`: {'; '.join(forms)}." if forms else ""
    return markdown_table(headings, lines) + said + _commits(records, "exactness") if lines else ""


def _kernels(records: Records) -> str:
    compiled = dict(_of(records, "kernels of the compiled method "))
    lines = []
    for place, forms in _of(records, "kernels of the method "):
        for form, found in forms.items():
            if "error" in found:
                continue
            count = compiled.get(place, {}).get(form)
            more = ["", ""] if count is None or "error" in count else [str(count["kernels"]), str(count["copies"])]
            lines.append([place, form, str(found["kernels"]), str(found["copies"]), *more])
    headings = ["at", "method", "kernels, eager", "copies and fills", "kernels, compiled", "copies and fills"]
    said = _commits(records, "kernels of the ")
    return (
        "Seen by the profiler, for one image.\n\n" + markdown_table(headings, lines, names=2) + said if lines else ""
    )


def _method(records: Records) -> str:
    compiled = dict(_of(records, "compiled method "))
    lines = []
    for place, forms in _of(records, "method "):
        for form, row in forms.items():
            if "error" in row:
                lines.append([place, form, *[""] * 5, _short(row["error"])])
                continue
            fast = compiled.get(place, {}).get(form, {})
            values = [row["ms"], row["row_ms"], row.get("graph_ms"), fast.get("row_ms"), fast.get("graph_ms")]
            lines.append([place, form, *map(_number, values), _short(fast.get("error", ""))])
    headings = ["at", "", "waited for, ms", "in a row", "as a graph", "compiled, in a row", "compiled, as a graph", ""]
    said = _commits(records, "method ", "compiled method ")
    return markdown_table(headings, lines, names=2, remarks=1) + said if lines else ""


def _attention(records: Records) -> str:
    lines = []
    for title, rows in _of(records, "attention, "):
        for name, row in rows.items():
            if "ms" not in row:
                lines.append([title, name, "", "", "", _short(row["error"])])
                continue
            error = f"{row['relative_error']:.1e}" if "relative_error" in row else ""
            lines.append([title, name, _number(row["row_ms"]), _number(row.get("graph_ms")), error, ""])
    headings = ["", "kernel, form", "in a row, ms", "as a graph, ms", "error to float64", ""]
    return markdown_table(headings, lines, names=2, remarks=1) + _commits(records, "attention") if lines else ""


def _models(records: Records) -> str:
    work = dict(_of(records, "work of the model "))
    lines = []
    for title, found in _of(records, "model "):
        case, rows = title.split(",")[0], found["rows"]
        dense = rows.get("dense", {})
        for name in sorted(rows, key=lambda name: (name != "dense", "error" in rows[name])):
            row, costs = rows[name], work.get(case, {}).get(name, {})
            if "ms" not in row:
                lines.append([title, name, *[""] * 10, _short(row["error"])])
                continue
            flops = work.get(case, {}).get("dense", {}).get("gflops")
            cells = [_number(costs.get("gflops"), 4), _times(flops, costs.get("gflops"))]
            cells += [_number(row["ms"]), _times(dense.get("ms"), row["ms"])]
            cells += [_number(row["images_per_second"]), _times(dense.get("row_ms"), row["row_ms"])]
            replay = targets.trusted(row)
            cells += [_number(row.get("graph_ms")), _times(targets.trusted(dense), replay)]
            cells += [_number(row.get("method_row_ms")), _number(row["peak_bytes"] / 1e6)]
            said = f"no graph: {_short(row['no_graph'])}" if "no_graph" in row else ""
            said = UNBELIEVED if replay is None and "graph_ms" in row else said
            lines.append([title, name, *cells, LAUNCHES if targets.is_launching(records, title, name) else said])
    headings = ["", "", "GFLOPs", "fewer", "waited for, ms", "speed", "images/s in a row", "speed"]
    headings += ["as a graph, ms", "speed", "method, ms in a row", "memory, MB", ""]
    said = _commits(records, "model ") + _commits(records, "work of the model ").replace("At", "GFLOPs at")
    return markdown_table(headings, lines, names=2, remarks=1) + said if lines else ""


def _compiled(records: Records) -> str:
    lines = []
    for title, found in _of(records, "compiled "):
        if title.startswith("method "):
            continue
        for name, row in found["rows"].items():
            took = records.get(f"compile {title}, {name}", {}).get("seconds")
            speeds = [f"{row[key]:.2f}x" if row.get(key) else "" for key in ("speedup", "row_speedup")]
            cells = [_number(row["ms"]), speeds[0], _number(row["images_per_second"]), speeds[1]]
            cells += [_number(row["peak_bytes"] / 1e6), _number(took, 2)]
            lines.append([title, name, *cells, f"`{row['commit']}`" if row["commit"] else ""])
    headings = [
        "",
        "",
        "waited for, ms",
        "speed",
        "images/s in a row",
        "speed",
        "memory, MB",
        "to compile, s",
        "commit",
    ]
    said = "Speed is against dense, compiled in the same way, of the same commit."
    return said + "\n\n" + markdown_table(headings, lines, names=2, remarks=1) if lines else ""


def _again(paths: list[Path]) -> str:
    """Rows of models that several runs timed with the same settings."""
    times: dict[tuple[str, str, str], dict[str, float]] = {}
    for path in paths:
        for title, found in _of(merged([path]), "model "):
            for name, row in found["rows"].items():
                if "ms" in row:
                    key = (title, name, str(found["settings"].get(name)))
                    times.setdefault(key, {})[_commit(path)] = row["ms"]
    lines = []
    for (title, name, _), found in times.items():
        if len(found) > 1:
            lines.append([title, name, ", ".join(f"{_number(ms)} (`{commit}`)" for commit, ms in found.items())])
    return markdown_table(["", "", "waited for, ms"], lines, names=3) if lines else ""


def _failed(paths: list[Path]) -> str:
    said: dict[str, list[str]] = {}
    for path in paths:
        commit = _commit(path)
        for record in read(path):
            why = record.get("error") or record.get("skipped")
            if why:
                said.setdefault(f"{why} (`{commit}`)", []).append(record["step"])
    return "\n".join(f"- {'; '.join(names)}: {why}" for why, names in said.items())


def main() -> int:
    text = fill_marked(PAGE.read_text(encoding="utf-8"), {"gpu": tables(found())})
    if "--check" in sys.argv:
        return int(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
