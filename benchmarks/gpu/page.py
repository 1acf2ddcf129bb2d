"""Writes docs/gpu.md anew from the newest result of a GPU in benchmarks/results, or says that there is none.

python -m benchmarks.gpu.page
python -m benchmarks.gpu.page --check   exit with 1 where the page differs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT
from benchmarks.gpu.steps import read
from hf_tokaccel.results.marked import fill_marked
from hf_tokaccel.results.report import Where, markdown_table

PAGE = ROOT / "docs" / "gpu.md"
NONE = "There is no result of a GPU yet: no `benchmarks/results/gpu-*.jsonl`. `python -m benchmarks.gpu` makes one."
Records = dict[str, dict[str, Any]]


def newest() -> Path | None:
    """The result that is shown, by its date."""
    found = [path for path in RESULTS.glob("gpu-*.jsonl") if not path.name.startswith("gpu-quick-")]
    return max(found, key=lambda path: _results(path)["environment"]["result"]["date"], default=None)


def tables(path: Path | None) -> str:
    """A result as Markdown."""
    if path is None:
        return NONE
    records = _results(path)
    parts = {
        "The machine": _machine(records, path),
        "The same as on the CPU": _parity(records),
        "TF32, and tokens with a common offset": _exactness(records),
        "Kernels": _kernels(records),
        "The method by itself": _method(records),
        "Attention with sizes": _attention(records),
        "Whole models": _models(records),
        "Compiled": _compiled(records),
        "What did not run": _failed(records),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items() if text)


def _results(path: Path) -> Records:
    return {record["step"]: record for record in read(path)}


def _of(records: Records, beginning: str) -> Iterator[tuple[str, Any]]:
    """What steps came to, by the rest of their names."""
    for name, record in records.items():
        if name.startswith(beginning) and record.get("result") is not None:
            yield name.removeprefix(beginning), record["result"]


def _number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, and no power of ten."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".rstrip(".")


def _short(error: str) -> str:
    """In a cell of a table."""
    return error.replace("|", "/")[:100]


def _times(base: float | None, value: float | None) -> str:
    return f"{base / value:.2f}x" if base and value else ""


def _machine(records: Records, path: Path) -> str:
    environment = records["environment"]["result"]
    where = Where.of(environment, changed=False)
    lines = [
        f"{environment['machine']['device']}; {where.versions}; {where.commit}; {environment['date']}; "
        f"`{RESULTS.relative_to(ROOT) / path.name}`."
    ]
    for _, found in _of(records, "about"):
        if "nvidia-smi" in found:
            card = ", ".join(f"{name} {value}" for name, value in found["nvidia-smi"].items())
            lines.append(f"CUDA {found['cuda']}, cuDNN {found['cudnn']}; {card}.")
        flags = ", ".join(f"{name} {str(value).lower()}" for name, value in found["flags"].items())
        lines.append(f"Flags: {flags}.")
    for _, found in _of(records, "ceilings"):
        rates = [(name, value) for name, value in found.items() if not isinstance(value, dict)]
        lines.append(markdown_table(["measured ceiling", ""], [[name, _number(value)] for name, value in rates]))
    return "\n\n".join(lines)


def _parity(records: Records) -> str:
    """One line for each form of the models; by name only those that do not hold."""
    forms: dict[str, list[tuple[str, dict]]] = {}
    for family, found in _of(records, "parity "):
        for name, outcome in found.items():
            tester, _, form = name.partition(" ")
            forms.setdefault(form, []).append((f"{family} ({tester})", outcome))
    if not forms:
        return ""
    lines, remarks = [], []
    for form, outcomes in forms.items():
        ran = [outcome for _, outcome in outcomes if "error" not in outcome]
        worst = [
            max((outcome["difference"].get(mode, 0) for outcome in ran), default=0)
            for mode in ("float32", "float32 with TF32", "bfloat16", "autocast")
        ]
        again = sum(all(outcome["repeats"].values()) for outcome in ran)
        held = sum(outcome["holds"] for outcome in ran)
        lines.append([form, str(len(ran)), str(held), *(f"{value:.1e}" for value in worst), f"{again} of {len(ran)}"])
        for name, outcome in outcomes:
            if "error" in outcome:
                remarks.append(f"- {form}, {name}: {outcome['error']}")
            elif not outcome["holds"]:
                differs = f"{outcome['difference'].get('float32', float('nan')):.1e}"
                repeats = ", ".join(mode for mode, same in outcome["repeats"].items() if not same) or "none"
                remarks.append(f"- {form}, {name}: float32 differs by {differs}; not repeatable: {repeats}")
    headings = ["models", "tried", "hold", "float32", "with TF32", "bfloat16", "autocast", "repeats in every bit"]
    text = "Largest difference to the CPU's float32, relative to the largest output; a model holds where that is at\n"
    text += "most 1e-4 in float32 and a second run gives every bit again."
    return "\n\n".join(filter(None, [text, markdown_table(headings, lines), _few(remarks)]))


def _few(remarks: list[str], most: int = 12) -> str:
    """Not all of what says the same."""
    rest = [f"- and {len(remarks) - most} more"] if len(remarks) > most else []
    return "\n".join([*remarks[:most], *rest])


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
    return markdown_table(headings, lines) + said if lines else ""


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
    return markdown_table(headings, lines, names=2) if lines else ""


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
    return markdown_table(headings, lines, names=2, remarks=1) if lines else ""


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
    return markdown_table(headings, lines, names=2, remarks=1) if lines else ""


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
            cells += [_number(row.get("graph_ms")), _times(dense.get("graph_ms"), row.get("graph_ms"))]
            cells += [_number(row.get("method_row_ms")), _number(row["peak_bytes"] / 1e6)]
            lines.append([title, name, *cells, _short(row.get("no_graph", ""))])
    headings = ["", "", "GFLOPs", "fewer", "waited for, ms", "speed", "images/s in a row", "speed"]
    headings += ["as a graph, ms", "speed", "method, ms in a row", "memory, MB", ""]
    return markdown_table(headings, lines, names=2, remarks=1) if lines else ""


def _compiled(records: Records) -> str:
    lines = []
    for title, found in _of(records, "compiled "):
        if title.startswith("method "):
            continue
        rows = found["rows"]
        dense = rows.get("dense", {})
        for name, row in rows.items():
            took = records.get(f"compile {title}, {name}", {}).get("seconds")
            cells = [_number(row["ms"]), _times(dense.get("ms"), row["ms"])]
            cells += [_number(row["images_per_second"]), _times(dense.get("row_ms"), row["row_ms"])]
            lines.append([title, name, *cells, _number(row["peak_bytes"] / 1e6), _number(took, 2)])
    headings = ["", "", "waited for, ms", "speed", "images/s in a row", "speed", "memory, MB", "to compile, s"]
    return markdown_table(headings, lines, names=2) if lines else ""


def _failed(records: Records) -> str:
    said = [(name, record.get("error") or record.get("skipped")) for name, record in records.items()]
    return "\n".join(f"- {name}: {why}" for name, why in said if why)


def main() -> int:
    text = fill_marked(PAGE.read_text(encoding="utf-8"), {"gpu": tables(newest())})
    if "--check" in sys.argv:
        return int(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
