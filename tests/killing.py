"""Processes that are killed (-9) at every place where they touch files."""

import os
import signal
import sys
from collections.abc import Callable

# What the interpreter tells hooks of before it happens.
TOUCHES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir")


def kill_everywhere(prepare: Callable[[], None], work: Callable[[], None], check: Callable[[int], None]) -> int:
    """Runs `work` in a process that is killed just before it touches a file the first, second, ... time; how often.

    Args:
        prepare: called before each, in this process.
        work: called in a process of its own.
        check: called after each, in this process, with the number of touches that were done.
    """
    killed = True
    count = -1
    while killed:
        count += 1
        prepare()
        process = os.fork()
        if process == 0:
            _work(work, count)
        _, status = os.waitpid(process, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed or status == 0, f"the process failed by itself after {count} touches"
        check(count)
    return count


def _work(work: Callable[[], None], count: int) -> None:
    left = count

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        # Only what is written counts.
        if event not in TOUCHES or (event == "open" and not (isinstance(arguments[1], str) and arguments[1] != "r")):
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    status = 1
    try:
        sys.addaudithook(hook)
        work()
        status = 0
    finally:
        os._exit(status)
