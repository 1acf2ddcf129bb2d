"""Progress on standard error, since standard output is for results: a bar in a terminal, lines in a log."""

from __future__ import annotations

from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 5.0


class NoBar(Progress):
    """Keeps the numbers and shows nothing."""

    def __init__(self, console: Console):
        super().__init__(console=console, disable=True)

    def stop(self) -> None:
        """Nothing was started, where Rich before 15 ends with an empty line."""


class ProgressLines(NoBar):
    """Progress as lines of text: one at the start, then one in a few seconds at most, and one at the end."""

    def __init__(self, console: Console):
        super().__init__(console)
        self._next: dict[TaskID, float | None] = {}  # when the next line is due; None after the last one

    def add_task(self, description: str, *args: Any, **options: Any) -> TaskID:
        number = super().add_task(description, *args, **options)
        self._print(self._tasks[number])
        return number

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._print_if_due(self._tasks[task_id])

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._print_if_due(self._tasks[task_id])

    def _print_if_due(self, task: Task) -> None:
        due = self._next.get(task.id)
        if due is not None and (task.finished or monotonic() >= due):
            self._print(task)

    def _print(self, task: Task) -> None:
        of = "" if task.total is None else f" of {task.total:g}"
        left = None if task.finished else task.time_remaining
        said = "" if left is None else f", about {left:.0f} s left"
        self.console.print(f"{task.description}: {task.completed:g}{of} after {task.elapsed or 0:.0f} s{said}")
        self._next[task.id] = None if task.finished else monotonic() + SECONDS_BETWEEN_LINES


def progress_bar(enabled: bool = True) -> Progress:
    """Progress of a loop: a context manager of Rich, which says nothing where it is not enabled."""
    console = Console(stderr=True)
    if not enabled:
        return NoBar(console)
    if not console.is_terminal:
        return ProgressLines(console)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)
