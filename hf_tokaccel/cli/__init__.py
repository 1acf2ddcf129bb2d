"""The command line: `hf_tokaccel COMMAND`, also installed as `tokaccel`; one module for each command."""

import importlib
import pkgutil

from .frame import app

__all__ = ["app"]

for _module in pkgutil.iter_modules(__path__):
    if _module.name != "__main__":
        importlib.import_module(f"{__name__}.{_module.name}")
