"""The blocks of a host as modules that find the track of a pass: they run on tokens or clusters.

A block becomes one of a subclass of its own class, with the same name and parameters. So whatever iterates over the
blocks, wraps, shards, compiles or prints them has real modules at hand, and the host's own loop stays untouched.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .sizes import ClusterInputs, call_with_inputs
from .track import ambient_track

_OWN = ("accel_index", "accel_norm", "accel_ambient")


class TrackedBlock:
    """First base of a block that a track can follow; the second is the host's own class.

    Attributes:
        accel_index: number of the block.
        accel_norm: name of its first LayerNorm.
        accel_ambient: whether the track comes from `ambient_track` instead of the keyword `accel_track`.
        accel_native: the class that the block was of before.
    """

    accel_index: int
    accel_norm: str
    accel_ambient: bool
    accel_native: type[nn.Module]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outside of what gradient checkpointing repeats, so that a pass clusters once."""
        if "accel_norm_of" in kwargs:
            return super().__call__(*args, **kwargs)
        track = kwargs.pop("accel_track", None)
        if self.accel_ambient:
            track = ambient_track.get()
        if track is None:
            return super().__call__(*args, **kwargs)
        states, *args = args
        states = track.before_layer(self.accel_index, states, self._normalize)
        args, kwargs = track.block_inputs(track, tuple(args), kwargs)
        if track.clustered and track.bias is not None:
            kwargs = {**kwargs, "accel_bias": track.bias}
        output = super().__call__(states, *args, **kwargs)
        if isinstance(output, tuple):
            return track.after_layer(self.accel_index, output[0]), *output[1:]
        return track.after_layer(self.accel_index, output)

    def forward(
        self,
        *args: Any,
        accel_bias: Tensor | None = None,
        accel_places: Tensor | None = None,
        accel_norm_of: bool = False,
        **kwargs: Any,
    ) -> Any:
        """What gradient checkpointing repeats: what clusters need arrives as an input, so it is there again."""
        if accel_norm_of:
            return getattr(self, self.accel_norm)(*args)
        if accel_bias is None and accel_places is None:
            return super().forward(*args, **kwargs)
        return call_with_inputs(super().forward, ClusterInputs(accel_bias, accel_places), args, kwargs)

    def _normalize(self, tokens: Tensor) -> Tensor:
        """Through the block's own call, where hooks (sharding, offloading) bring the parameters."""
        return self(tokens, accel_norm_of=True)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # The class has no name of its own that pickle could find.
        return _new_block, (native_block(type(self)),), self.__getstate__()


def _new_block(native: type[nn.Module]) -> nn.Module:
    return nn.Module.__new__(_tracked_class(native))


@functools.cache
def _tracked_class(native: type[nn.Module]) -> type[nn.Module]:
    # The same name, by which Accelerate and others know what must not be split.
    names = {
        "accel_native": native,
        "__module__": native.__module__,
        "__qualname__": native.__qualname__,
        "__doc__": native.__doc__,
    }
    return type(native.__name__, (TrackedBlock, native), names)


def native_block(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that a block was of before it was tracked; any other class as it is."""
    return getattr(cls, "accel_native", cls)


def track_blocks(layers: Iterable[nn.Module], norm: str, ambient: bool = False) -> None:
    """Makes each block of a host's list a `TrackedBlock`."""
    for index, layer in enumerate(layers):
        track_block(layer, accel_index=index, accel_norm=norm, accel_ambient=ambient)


def track_block(layer: nn.Module, **attributes: Any) -> None:
    """Makes a block a `TrackedBlock` with these attributes of it."""
    layer.__class__ = _tracked_class(native_block(type(layer)))
    for name, value in attributes.items():
        setattr(layer, name, value)


def retrack(module: nn.Module, template: nn.Module) -> None:
    """Makes a block tracked as `template` is, or native where that is."""
    module.__class__ = native_block(type(module))
    for name in _OWN:
        module.__dict__.pop(name, None)
    if isinstance(template, TrackedBlock):
        track_block(module, **{name: getattr(template, name) for name in _OWN})
