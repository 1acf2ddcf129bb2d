"""What Transformers' tests do on native classes, which changes with torch, Transformers and what these files say only.

python tests/upstream/record.py      runs all controls and writes to native.json what they skip

A control that is recorded is not collected. One that is not, whose source is another by now, or whose classes are not
those of Transformers (Segmenter's) runs with the tests of ours; so do all with HF_TOKACCEL_NATIVE_CONTROLS=1.
"""

import functools
import hashlib
import inspect
import json
import os
import sys
import unittest
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers.testing_utils import torch_device

HERE = Path(__file__).resolve().parent
FILE = HERE / "native.json"


def recorded_skips(control: type) -> dict[str, int] | None:
    """How often each test of a control skips, without those that do not; None where it has to be run."""
    record = _records().get(_versions(), {}).get(control.__name__)
    if (
        record is None
        or record["source"] != _source_of(control)
        or os.environ.get("HF_TOKACCEL_NATIVE_CONTROLS") == "1"
    ):
        return None
    return record["skips"]


def is_recordable(control: type) -> bool:
    return all(cls.__module__.startswith("transformers.") for cls in control.all_model_classes)


def run_control(control: type, test: str) -> tuple[int, unittest.TestResult]:
    """Run one test of a control: how often it skips, and its result."""
    case, result = control(test), unittest.TestResult()
    case.run(result)
    return case.skips or len(result.skipped), result


@functools.cache
def _records() -> dict:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def _versions() -> str:
    torch, transformers = (version(name).split("+")[0] for name in ("torch", "transformers"))
    return f"torch {torch}, transformers {transformers}, {torch_device}"


def _source_of(control: type) -> str:
    """A digest of what the tests say of a control: how controls run, its class and those that it inherits from."""
    files = [HERE / name for name in ("base.py", "loading.py")]
    where = {cls: Path(inspect.getfile(cls)).resolve() for cls in control.__mro__ if cls is not object}
    own = [cls for cls, file in where.items() if HERE in file.parents and file not in files]
    said = [file.read_text() for file in files] + [inspect.getsource(cls) for cls in own]
    return hashlib.sha256("".join(said).encode()).hexdigest()[:12]


def _record(control: type) -> dict:
    skips = {}
    for test in unittest.defaultTestLoader.getTestCaseNames(control):
        count, result = run_control(control, test)
        if not result.wasSuccessful():
            raise SystemExit(f"{control.__name__}.{test} fails:\n{(result.failures + result.errors)[0][1]}")
        skips |= {test: count} if count else {}
    return {"source": _source_of(control), "skips": skips}


def main() -> None:
    """Let pytest import the test modules, and run the controls that they define."""
    files = map(str, HERE.glob("test_upstream_*.py"))
    if pytest.main(["--collect-only", "-qq", "-n0", "-p", "no:cacheprovider", *files]):
        raise SystemExit("the test modules cannot be collected, see above")
    base = next(module for name, module in [*sys.modules.items()] if name.endswith("upstream.base"))
    found = {control.__name__: _record(control) for control in filter(is_recordable, base.controls())}
    records = {**_records(), _versions(): dict(sorted(found.items()))}
    # One control a line.
    lines = [
        f"{json.dumps(pair)}: {{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in own.items()) + "\n}"
        for pair, own in sorted(records.items())
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
