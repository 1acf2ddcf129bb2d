"""Changing a host's own modules inside of an accelerated model."""

from typing import Any

from torch import nn

CHANGED = "_tokaccel_changed"


def change(module: nn.Module, **attributes: Any) -> None:
    """Sets attributes of a host's own module inside an accelerated model.

    `transplant` keeps them there, and does not take them along to other models.
    """
    for name, value in {**attributes, CHANGED: True}.items():
        setattr(module, name, value)


def become(module: nn.Module, cls: type[nn.Module], **attributes: Any) -> None:
    """Makes a host's own module inside an accelerated model one of `cls`, a subclass of its class with no `__init__`.

    For modules that no configuration alone can build; `transplant` treats it like any other class of ours.
    """
    module.__class__ = cls
    change(module, **attributes)
