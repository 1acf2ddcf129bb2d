"""The rooms of the package, in the order in which they may know of each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "hf_tokaccel"
# An import points to the same line or to one above.
ROOMS = """
    version lazy checks atomic discovery upstream registry
    clustering functional
    scenes
    results
    settings
    hub
    hosts
    semantic
    models
    auto
    convert
    reference
    images checkpoint export quantization
    measure
    tuning
    rivals
    evaluation
    bench
    training
    cli
"""
LINES = {room: number for number, line in enumerate(ROOMS.strip().splitlines()) for room in line.split()}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported_rooms(path):
    """(line, room) of everything that a module imports from this package, lazily or not; the root is ''."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = path.relative_to(ROOT).parent.parts
            target = (*package[: len(package) - node.level + 1], *filter(None, (node.module or "").split(".")))
            yield from ((node.lineno, (*target, alias.name)[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, f"{name}.".split(".")[1]) for name in names if name.split(".")[0] == ROOT.name)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_up(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    wrong = [(line, room) for line, room in imported_rooms(path) if LINES.get(room, 99) > LINES[own]]
    assert not wrong, f"{own} may import from its own line of ROOMS and those above, not from the package's root"
