"""What the settings of all methods share."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Self

from ..checks import UserError, as_pair, as_plain, brief, check_grid, did_you_mean, require
from ..version import __version__


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A frozen setting, stored as the plain dict `accel` in config.json.

    A subclass gives `method` its own name, which a reader of the dict knows it by.

    Attributes:
        method: name of the method.
        version: of hf_tokaccel that wrote it.
    """

    grid_name: ClassVar[str]
    """Which field is a grid."""
    grid_example: ClassVar[tuple[int, int]]
    example: ClassVar[dict[str, Any]]
    """A dict that `from_dict` takes."""

    method: str = ""
    version: str = __version__

    def __post_init__(self) -> None:
        name, own = self.grid_name, type(self).method
        for field in fields(self):
            object.__setattr__(self, field.name, as_plain(getattr(self, field.name)))
        grid = as_pair(getattr(self, name))
        object.__setattr__(self, name, grid)
        # The grid is optional where None is its default.
        if grid is not None or getattr(type(self), name, MISSING) is not None:
            check_grid(name, grid, self.grid_example)
        require(self.method == own, "method", self.method, repr(own), own)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Reads `accel` as it stands in config.json.

        Raises:
            ValueError: on unknown or missing keys, and on any value that the class refuses.
        """
        known = {field.name: field.default for field in _fields(cls)}
        unknown = sorted(values.keys() - known.keys(), key=str)
        if unknown:
            # A version that is not ours explains a key better than a slip of the pen does.
            written_by = values.get("version", __version__)
            other = (
                "" if written_by == __version__ else f" (written by hf_tokaccel {written_by}, this is {__version__})"
            )
            near = did_you_mean(unknown[0], known)
            raise UserError(
                f"unknown keys {brief(unknown)} in accel{other}{near}. Allowed: {', '.join(known)}; for example "
                f"{cls.example}."
            )
        missing = [name for name, default in known.items() if default is MISSING and name not in values]
        if missing:
            raise UserError(f"accel={brief(values)} lacks {missing}: give for example {cls.example}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The plain dict that goes into config.json; None is kept, so that a reader sees every setting."""
        values = asdict(self)
        # Lists, as JSON has them, so that what is read back equals what was written.
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {field.name: plain[field.name] for field in _fields(type(self))}


def _fields(cls: type[Setting]) -> list:
    """The fields in the order of the stored dict: method and version, which the base has, stand last."""
    base = len(fields(Setting))
    return [*fields(cls)[base:], *fields(cls)[:base]]
