"""What a table holds besides time and GFLOPs: memory, and clustering and reconstruction by themselves."""

from __future__ import annotations

import copy
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..track import TokenTrack


def peak_memory(function: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a call takes at most beyond what is held before it, weights included in that.

    On a GPU what PyTorch allocates; on Linux the resident memory of this process; None elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # Freed memory that the allocator keeps would be used without a trace.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
        before = _status("VmRSS")
        function()
        return max(_status("VmHWM") - before, 0)
    except (OSError, AttributeError):
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


class MethodAlone:
    """Clustering (or merging) and reconstruction of one forward pass, to be run again without the layers.

    Args:
        model: accelerated or merging model, not compiled.
        call: runs a forward pass of it.
    """

    def __init__(self, model: nn.Module, call: Callable[[], Any]) -> None:
        self._tracks: list[TokenTrack] = []
        self._events: list[tuple[int, str, tuple]] = []
        hosts = [module for module in model.modules() if getattr(module, "accel", None) is not None]
        before = [module.__dict__.get("accel_make_track") for module in hosts]
        try:
            for module in hosts:
                if hasattr(module, "accel_make_track"):
                    module.accel_make_track = self._watched(module.accel_make_track)
            call()
        finally:
            for module, own in zip(hosts, before, strict=True):
                module.__dict__.pop("accel_make_track", None)
                if own is not None:
                    module.accel_make_track = own

    @property
    def ran(self) -> bool:
        """Whether the pass clustered at all."""
        return bool(self._events)

    def _watched(self, make: Callable[..., TokenTrack]) -> Callable[..., TokenTrack]:
        def made(*args: Any, **kwargs: Any) -> TokenTrack:
            track = make(*args, **kwargs)
            number = len(self._tracks)
            self._tracks.append(copy.copy(track))
            for name in ("_cluster", "rebuild"):
                setattr(track, name, self._recorded(number, name, getattr(track, name)))
            return track

        return made

    def _recorded(self, number: int, name: str, method: Callable) -> Callable:
        def recorded(*args: Any) -> Tensor:
            self._events.append((number, name, args))
            return method(*args)

        return recorded

    def __call__(self) -> list[Tensor]:
        tracks = [copy.copy(track) for track in self._tracks]
        return [getattr(tracks[number], name)(*args) for number, name, args in self._events]
