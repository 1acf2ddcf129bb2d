"""Puts tables made from committed results into README, so that every number there is one that a command printed.

python -m benchmarks.readme          rewrite the tables
python -m benchmarks.readme --check  exit with 1 where README differs
"""

import re
import sys

import hf_tokaccel as ta
from benchmarks.common import ROOT
from benchmarks.method import to_markdown as method_table
from hf_tokaccel.evaluation import Result, to_markdown


def tables() -> dict[str, str]:
    """Markdown by the name of its place."""
    return {
        "evaluate_depth": to_markdown(Result.load(ROOT / "docs" / "evaluate_depth" / "result.json")),
        "method": method_table(),
        "models": ta.support_table(),
    }


def fill(text: str) -> str:
    """The text with every marked place filled anew."""
    for name, table in tables().items():
        place = re.compile(rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        assert place.search(text), f"README has no place for {name}"
        text = place.sub(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", text)
    return text


def main() -> int:
    path = ROOT / "README.md"
    old = path.read_text()
    new = fill(old)
    if "--check" in sys.argv:
        return int(new != old)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
