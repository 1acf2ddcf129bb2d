"""Steps that cannot spoil each other: each within its time, and its outcome a line of JSON, written at once."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_tokaccel.results.files import json_line


class OutOfTime(BaseException):
    """Not an Exception, since compilers catch those and go on."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in what takes longer, as soon as Python runs again."""

    def stop(*_: Any) -> None:
        raise OutOfTime(f"took longer than {seconds:.3g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 5)  # again, should the first be lost in a destructor
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def reason(error: BaseException) -> dict[str, str]:
    """An error in a record: what it says, and where."""
    places = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{Path(place.filename).name}:{place.lineno}" for place in reversed(places))
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", "where": where}


@dataclass
class Steps:
    """Runs steps and writes what became of them.

    Attributes:
        path: of the lines.
        ends: `time.time()` at which everything has to be over.
        device: whose health is looked at after an error.
        only: beginnings of the names of steps that are run; none runs all.
    """

    path: Path
    ends: float
    device: torch.device
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.path.exists() and not self.path.read_text(encoding="utf-8").endswith("\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")  # after a line that was cut off
        self.done = {record["step"] for record in read(self.path)}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.time()

    def write(self, record: dict[str, Any]) -> None:
        # One write in append mode: processes beside this one write lines of their own.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(record) + "\n")

    def run(self, name: str, function: Callable[[], Any], needs: float, most: float) -> Any:
        """What a step returns, or None where it did not come to its end; a step that has a line is not run again.

        Args:
            name: of the step.
            function: returns plain data.
            needs: seconds that have to be left.
            most: seconds that it may take.
        """
        if name in self.done or (self.only and not name.startswith(self.only)):
            return None
        self.done.add(name)
        if self.left < needs:
            self.write({"step": name, "skipped": f"{self.left:.0f} s were left, {needs:.0f} are needed"})
            return None
        start, result, record = time.perf_counter(), None, {}
        try:
            with within(min(most, self.left)):
                result = function()
            record = {"result": result}
        except (Exception, OutOfTime) as error:
            record = reason(error)
        self.write({"step": name, "seconds": time.perf_counter() - start, **record})
        print(f"{self.left:6.0f} s left after {name}: {record.get('error', 'done')}", flush=True)
        gc.collect()
        gc.freeze()  # no search for garbage need look through what imports and graphs have made
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            if not healthy(self.device):
                self.restart()
        return result

    def restart(self) -> None:
        """Goes on in a new process, since some errors of a GPU spoil the one that they happen in."""
        self.write({"step": f"restart {len(self.done)}", "result": "the process could not use the GPU any more"})
        arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--ends=")]
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *arguments, f"--ends={self.ends}"])


def forget() -> None:
    """Frees what compiling keeps, with what it refers to."""
    torch._dynamo.reset()
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def healthy(device: torch.device) -> bool:
    """Whether kernels run and random numbers come: a CUDA graph that failed can leave their generator unusable."""
    try:
        torch.empty(8, device=device).normal_()
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none where there is no file. A last line that was cut off does not count."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
