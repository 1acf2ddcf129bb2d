"""The plain dict of a setting as a configuration holds it: nobody changes it there, where no model would follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from ..checks import UserError


def _refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
    raise UserError(
        "the setting of a configuration cannot be changed in place, since no model would follow: use "
        "model = hf_tokaccel.accelerate(model, {**model.config.accel, 'reconstruct_after': None}), or "
        "accelerate_config for a configuration."
    )


class StoredList(list):
    """A list in a `StoredSetting`."""

    append = extend = insert = pop = remove = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse


class StoredSetting(dict):
    """A dict of plain values that raises ValueError on any change; `copy.deepcopy` gives a plain one."""

    update = setdefault = pop = popitem = clear = _refuse
    __setitem__ = __delitem__ = __ior__ = _refuse

    def __init__(self, values: dict[str, Any] | Iterable[tuple[str, Any]]) -> None:
        # Pairs are what `dataclasses.asdict` makes another of.
        pairs = dict(values).items()
        super().__init__({name: StoredList(value) if isinstance(value, list) else value for name, value in pairs})

    def _plain(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, list) else value for name, value in self.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return self._plain()

    def __reduce__(self) -> tuple:
        return dict, (self._plain(),)
