"""Clustering and reconstruction by themselves, without the layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..hosts.track import TokenTrack


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
