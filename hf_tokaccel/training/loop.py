"""The one training loop: any number of processes, accumulated gradients, log, evaluation, checkpoints, exact resuming.

What is drawn has to depend on the seed and the step alone, so that a run that was interrupted continues as if it had
not been; `batches` and `loss` of each kind of run see to that.
"""

import itertools
import json
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ..atomic import replace_folder, versions, write_text
from ..checks import UserError, first_line
from ..measure.progress import progress_bar

RUN, LOG, CHECKPOINT = "run.json", "training_log.jsonl", "checkpoint"


class Loop:
    """One training run with its log and its checkpoints; what is trained, and on what, is said by a subclass.

    Args:
        accelerator: that all processes share.
        settings: with `work`, the folder of log and checkpoint; `log_every` and `save_every`, in steps; and `stop_at`,
            a step to stop at before the end, or None.
        total: steps of the whole run.
        clip: largest norm of all gradients.
        parts: that each step is cut into.

    Attributes:
        state: what is saved of the run beside the tensors.
        known: what is saved to be compared when the run is resumed.
    """

    model: nn.Module
    optimizers: list[Optimizer]

    def __init__(
        self, accelerator: Accelerator, settings: Any, total: int, *, clip: float = math.inf, parts: int = 1
    ) -> None:
        self.accelerator, self.settings, self.total = accelerator, settings, total
        self.clip, self.parts, self.work = clip, parts, Path(settings.work)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "cpu_seconds": 0.0, "losses": []}
        self.known: dict[str, Any] = {}
        self._began = time.perf_counter(), _cpu_seconds()

    # What a subclass says

    def batches(self, last: int) -> Iterable[Any]:
        """Batches of the steps from the current one to `last`, `parts` for each; those of this process."""
        raise NotImplementedError

    def loss(self, batch: Any, part: int) -> Tensor:
        """Loss of a batch, the part of that number of the current step, from a pass of `model`."""
        raise NotImplementedError

    def rate(self, step: int, optimizer: Optimizer) -> float:
        """Learning rate of a step; a group may have a factor of it as `scale`."""
        raise NotImplementedError

    def place(self) -> dict[str, Any]:
        """What the log says of where the run is, beside the step."""
        return {}

    def updated(self) -> None:
        """Called after each update of the weights."""

    def evaluation_due(self) -> bool:
        raise NotImplementedError

    def evaluate(self) -> str:
        """Evaluates, and writes scores to the log; a line that tells them."""
        raise NotImplementedError

    # Checkpoints

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.state["step"]

    def seconds(self) -> float:
        """Time that the run took so far, with the parts before it was resumed."""
        return self.state["seconds"] + time.perf_counter() - self._began[0]

    def cpu_seconds(self) -> float:
        """Likewise of this process's CPU, with the workers that have ended."""
        return self.state["cpu_seconds"] + _cpu_seconds() - self._began[1]

    def prepare(self, model: nn.Module, *optimizers: Optimizer) -> None:
        """Hands model and optimizers to the accelerator; the log tells the rate of the last optimizer."""
        self.plain = model
        self.model, *self.optimizers = self.accelerator.prepare(model, *optimizers)

    def stored(self) -> dict[str, Any]:
        """What the checkpoint says of its run.

        Raises:
            ValueError: there is no checkpoint.
        """
        found = last_checkpoint(self.work)
        if found is None:
            raise UserError(f"there is no checkpoint in {self.work} to resume from: start without --resume")
        return _read_run(found)

    def check_new(self) -> None:
        """Raises ValueError where a run that is not resumed would write over another one."""
        if last_checkpoint(self.work) is not None:
            raise UserError(f"{self.work} holds a checkpoint: add --resume to continue it, or choose another --work")

    def restore(self, stored: dict[str, Any]) -> None:
        """Continues from the checkpoint, of which `stored` has said that it fits."""
        found = last_checkpoint(self.work)
        try:
            self.accelerator.load_state(str(found))
        except Exception as error:  # Of a damaged file: of any type.
            raise UserError(
                f"checkpoint {found} cannot be read ({type(error).__name__}: {first_line(error)})"
            ) from error
        self.state = {name: stored[name] for name in self.state}
        # All have read it.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            last = self.work / CHECKPOINT
            if found != last:
                # Interrupted between the two renames of a swap.
                shutil.rmtree(last, ignore_errors=True)
                os.rename(found, last)
            log = self.work / LOG
            lines = log.read_text().splitlines() if log.is_file() else []
            write_text(log, "".join(f"{line}\n" for line in lines if _is_until(line, self.step)))
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Writes a checkpoint beside the last one and swaps them: an interruption at any point leaves one intact."""
        last = self.work / CHECKPOINT
        fresh = versions(last)[1]
        if self.accelerator.is_main_process:
            shutil.rmtree(fresh, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(fresh))
        # Each process writes files of its own.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            times = {"seconds": self.seconds(), "cpu_seconds": self.cpu_seconds()}
            losses = [float(loss) for loss in self.state["losses"]]
            run = {**self.state, **times, "losses": losses, **self.known}
            write_text(fresh / RUN, json.dumps(run, indent=1))
            replace_folder(last, fresh)
        self.accelerator.wait_for_everyone()

    def log(self, **values: Any) -> None:
        if self.accelerator.is_main_process:
            with (self.work / LOG).open("a") as file:
                file.write(json.dumps({"step": self.step, **self.place(), **values}) + "\n")

    # Training

    def go(self, say: Callable[[str], None] | None = None) -> bool:
        """Trains to the end or to `stop_at`; whether the end was reached.

        Args:
            say: takes one line per evaluation; None prints them above the progress bar.

        Raises:
            ValueError: the loss is not finite.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        if self.step == 0 and self.accelerator.is_main_process:
            _set_aside(self.work / LOG)
        last = min(self.total, self.settings.stop_at or self.total)
        with progress_bar(self.accelerator.is_main_process) as bar:
            task = bar.add_task("training", total=self.total, completed=self.step)
            for number, batch in enumerate(self.batches(last)):
                self._part(batch, number % self.parts)
                if not self.accelerator.sync_gradients:
                    continue
                self.state["step"] += 1
                if self.step % self.settings.log_every == 0:
                    bar.update(task, description=self._log_step())
                bar.advance(task)
                if self.evaluation_due():
                    (say or bar.console.print)(self.evaluate())
                if self.step == last or self.step % self.settings.save_every == 0:
                    self.save()
        return self.step == self.total

    def _part(self, batch: Any, part: int) -> None:
        """Gradients of one part of a step, and the step itself after the last part."""
        self.model.train()
        with self.accelerator.accumulate(self.model):
            loss = self.loss(batch, part)
            self.state["losses"].append(loss.detach())
            self.accelerator.backward(loss)
            if not self.accelerator.sync_gradients:
                return
            self.norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.rate(self.step, optimizer) * group.get("scale", 1)
                optimizer.step()
                optimizer.zero_grad()
        self.updated()

    def _log_step(self) -> str:
        """Logs the mean loss of the steps since the last line; a description of them."""
        losses = [float(loss) for loss in self.state["losses"]]
        loss, self.state["losses"] = sum(losses) / len(losses), []
        optimizer = self.optimizers[-1]
        if not math.isfinite(loss):
            lower = optimizer.defaults["lr"] / 2
            raise UserError(f"the loss is {loss} at step {self.step}: use a lower lr, for example {lower:g}")
        rate = self.rate(self.step - 1, optimizer)
        self.log(loss=round(loss, 5), norm=round(float(self.norm), 4), lr=float(f"{rate:.6g}"))
        return ", ".join([*(f"{name} {value}" for name, value in self.place().items()), f"loss {loss:.3f}"])


def last_checkpoint(work: Path) -> Path | None:
    """The folder of a run's last complete checkpoint, wherever an interruption has left it; None for none."""
    found = [folder for folder in versions(work / CHECKPOINT) if _read_run(folder) is not None]
    return max(found, key=lambda folder: _read_run(folder)["step"], default=None)


def _read_run(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says of its run, which is written last; None where it is not complete."""
    try:
        run = json.loads((folder / RUN).read_text())
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and isinstance(run.get("step"), int) else None


def _is_until(line: str, step: int) -> bool:
    """Whether a line of the log is of a step until this one; a line that was cut short is of none."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _set_aside(path: Path) -> None:
    """Gives a file another name, if there is one: what a run without a checkpoint has logged."""
    if path.is_file():
        names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(1))
        os.rename(path, next(name for name in names if not name.exists()))


def _cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
