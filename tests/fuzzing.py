"""What tests attack files with: values that no reader expects, at every place of a JSON file, and damaged bytes."""

import copy
import random

# Each was once taken for something else by some reader of some program.
HOSTILE = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64 + 1, 10**30, -(10**30), 10**400),
    *(0.5, -0.0, 1e9, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "../x", "/etc/passwd", "a\0b", "é" * 300, "1", "nan", "\ud800"),
    *([], [[]], [5], ["x"], [None], {}, {"x": 1}, [[1e9] * 6], [0] * 50),
)


def places(value, path=()):
    """Paths of all values below one of JSON, itself among them."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inner:
        yield from places(entry, (*path, key))


def mutations(value, count, seed=0, hostile=HOSTILE):
    """That many copies of a value of JSON, each with a hostile value, or nothing, at one place or at two."""
    draw = random.Random(seed)
    paths = [path for path in places(value) if path]
    for _ in range(count):
        changed = copy.deepcopy(value)
        for path in draw.sample(paths, draw.choice((1, 1, 2))):
            try:
                owner = changed
                for key in path[:-1]:
                    owner = owner[key]
                if draw.random() < 0.1:
                    del owner[path[-1]]
                else:
                    owner[path[-1]] = copy.deepcopy(draw.choice(hostile))
            except (KeyError, IndexError, TypeError):
                pass  # The first change took away the place of the second.
        yield changed


def damaged(content, count, seed=0):
    """That many copies of bytes: cut short, with bits that are turned, with a part taken out or repeated."""
    draw = random.Random(seed)
    for _ in range(count):
        data, kind = bytearray(content), draw.randrange(4)
        start = draw.randrange(len(data))
        if kind == 0:
            del data[start:]
        elif kind == 1:
            # Most of what is not weights stands at the beginning.
            for _ in range(draw.randint(1, 8)):
                data[draw.randrange(min(len(data), draw.choice((64, 4096, len(data)))))] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del data[start : start + draw.choice((1, 8, 100))]
        else:
            data[start:start] = data[start : start + draw.choice((1, 8, 100))]
        yield bytes(data)
