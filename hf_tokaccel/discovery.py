"""Finds the module of a model family by name, so that a family is imported when it is first asked for.

The name of a file in `models/` says what is in it: `sam_hq.py` has the model types that begin with `sam_hq`, such as
`sam_hq_vision_model`, and, with `tokaccel_` in front, their accelerated types; of several files that fit the longest
name counts. A new family is so still one file. Nothing here needs torch or Transformers.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

PREFIX = "tokaccel_"
_CONFIGURATIONS = "transformers.models.auto.configuration_auto"

T = TypeVar("T")


@cache
def family_modules() -> tuple[str, ...]:
    """Names of the modules in `models/`, which need not have been imported."""
    return tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "models")]))


def modules_of(model_type: str) -> tuple[str, ...]:
    """The module whose families may have a model type, native or accelerated; none where no name fits."""
    words = model_type.removeprefix(PREFIX).replace("-", "_").split("_")
    names = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return tuple(name for name in names if name in family_modules())[:1]


def import_families(modules: Iterable[str]) -> None:
    """Imports modules of `models/`, which register their families."""
    for name in modules:
        importlib.import_module(f"{__package__}.models.{name}")


def import_family_of(native: type) -> None:
    """Imports the module that may accelerate a class of Transformers: a configuration, a model or a part of one."""
    if native.__module__.startswith("transformers.models."):
        _, _, name = native.__module__.rpartition(".")
        import_families(modules_of(name.removeprefix("modeling_").removeprefix("configuration_")))


class FoundByName(MutableMapping[str, T]):
    """A dict that family modules fill; a key that is not there yet makes it import the modules that may have it.

    Args:
        find: names the modules of a key.
        every: names all modules that fill the dict; they are imported by whatever needs all keys.
        found: what is there already.
    """

    def __init__(
        self,
        find: Callable[[str], Iterable[str]] = modules_of,
        every: Callable[[], Iterable[str]] = family_modules,
        found: Mapping[str, T] | None = None,
    ) -> None:
        self._find, self._every = find, every
        self._found: dict[str, T] = dict(found or {})

    def __getitem__(self, key: str) -> T:
        if key not in self._found and isinstance(key, str):
            import_families(self._find(key))
        return self._found[key]

    def __setitem__(self, key: str, value: T) -> None:
        self._found[key] = value

    def __delitem__(self, key: str) -> None:
        del self._found[key]

    def __iter__(self) -> Iterator[str]:
        # What is there comes first: a search that ends with it imports nothing.
        first = list(self._found)
        yield from first
        import_families(self._every())
        yield from [key for key in self._found if key not in first]

    def __len__(self) -> int:
        import_families(self._every())
        return len(self._found)

    def __reduce__(self) -> tuple:
        # Transformers has its mappings pickled and copied: what arrives is a plain dict.
        return dict, (dict(self),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)!r})"


class _AfterImport:
    """A finder of modules that runs an action whenever one module has been executed.

    Import holds that module's own lock all the while, so no thread sees the module without what the action does. The
    finder stays: to take it out of `sys.meta_path` would let another thread, in the midst of that list, skip an entry.
    """

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name, self.action = name, action

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        finders = (finder for finder in list(sys.meta_path) if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            self._extend(spec.loader)
        return spec

    def _extend(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            # A loader of a zip file is that of all modules in it.
            if module.__name__ == self.name:
                self.action(module)

        loader.exec_module = exec_module


def offer_types() -> None:
    """Makes our model types known to `AutoConfig`: now if Transformers has imported it, else as soon as it does.

    It takes 2 seconds to import, most of them torch's, which whoever imports this package may not need. Asked for one
    of our types, `AutoConfig` then has the family's module imported, and that tells the Auto classes the rest.
    """
    sys.meta_path.insert(0, _AfterImport(_CONFIGURATIONS, _extend_types))
    if _CONFIGURATIONS in sys.modules:
        # Waits where another thread is in the midst of it.
        _extend_types(importlib.import_module(_CONFIGURATIONS))


def _extend_types(configuration_auto: ModuleType) -> None:
    from .upstream import registered_types, set_registered_types

    def find(model_type: str) -> Iterable[str]:
        if model_type in configuration_auto.CONFIG_MAPPING_NAMES:
            return ()
        # Of our own native types, such as 'segmenter', the module has the name.
        ours = model_type.startswith(PREFIX) or model_type in family_modules()
        return modules_of(model_type) if ours else ()

    registered = registered_types(configuration_auto.CONFIG_MAPPING)
    if not isinstance(registered, FoundByName):
        set_registered_types(configuration_auto.CONFIG_MAPPING, FoundByName(find, found=registered))
