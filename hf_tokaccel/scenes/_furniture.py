"""Furniture and small objects of the toy rooms: their parts and where they stand."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._classes import CLASS_NAMES, NUM_STUFF
from ._random import Draws


@dataclass
class Builder:
    """Collects parts slot by slot while the layout is drawn."""

    draws: Draws
    batch: int
    frames: list = field(default_factory=list)
    frame_valid: list = field(default_factory=list)
    object_class: list = field(default_factory=lambda: list(range(NUM_STUFF)))
    boxes: list = field(default_factory=list)
    cylinders: list = field(default_factory=list)
    balls: list = field(default_factory=list)

    def object(self, name: str) -> int:
        self.object_class.append(CLASS_NAMES.index(name))
        return len(self.object_class) - 1

    def frame(self, x: Tensor, z: Tensor, yaw: Tensor, valid: Tensor) -> int:
        self.frames.append(torch.stack([x, z, yaw.cos(), yaw.sin()], dim=1))
        self.frame_valid.append(valid)
        return len(self.frames) - 1

    def world(self, frame: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the world x and z of a point given in a frame."""
        x0, z0, cos, sin = self.frames[frame].unbind(1)
        return x0 + cos * x + sin * z, z0 - sin * x + cos * z

    def _row(self, *values) -> Tensor:
        values = [v if isinstance(v, Tensor) else torch.full((self.batch,), float(v)) for v in values]
        return torch.stack(values, dim=1)

    def box(self, obj: int, frame: int, centre: tuple, half: tuple, valid: Tensor | None = None) -> None:
        valid = self.frame_valid[frame] if valid is None else valid & self.frame_valid[frame]
        self.boxes.append((frame, obj, self._row(*centre, *half), valid))

    def cylinder(self, obj: int, x, z, bottom, top, radius, valid: Tensor) -> None:
        self.cylinders.append((obj, self._row(x, (bottom + top) / 2, z, radius, (top - bottom) / 2), valid))

    def ball(self, obj: int, x, y, z, radius, valid: Tensor) -> None:
        self.balls.append((obj, self._row(x, y, z, radius), valid))


def _table(b: Builder, f: int) -> None:
    d, obj = b.draws, b.object("table")
    wide, deep, high = d.uniform(0.4, 0.8), d.uniform(0.3, 0.45), d.uniform(0.55, 0.8)
    thick, leg = d.uniform(0.012, 0.03), d.uniform(0.015, 0.035)
    b.box(obj, f, (0.0, high - thick, 0.0), (wide, thick, deep))
    for sx in (-1, 1):
        for sz in (-1, 1):
            place = (sx * (wide - leg - 0.02), (high - 2 * thick) / 2, sz * (deep - leg - 0.02))
            b.box(obj, f, place, (leg, (high - 2 * thick) / 2, leg))
    _things(b, f, high, wide, deep, ("cup", "cup", "box", "ball"))


def _things(b: Builder, f: int, high: Tensor, wide: Tensor, deep: Tensor, names: tuple) -> None:
    """Put small things side by side on a board."""
    d = b.draws
    for i, name in enumerate(names):
        obj, there = b.object(name), d.flag(0.55) & b.frame_valid[f]
        lx = ((i + d.uniform(0.25, 0.75)) / len(names) * 2 - 1) * (wide - 0.02)
        lz = d.uniform(-0.6, 0.6) * deep
        size = torch.minimum(d.uniform(0.03, 0.1), deep * 0.5)
        tall = d.uniform(0.08, 0.3)
        x, z = b.world(f, lx, lz)
        if name == "cup":
            b.cylinder(obj, x, z, high, high + tall, size * 0.6, there)
        elif name == "ball":
            b.ball(obj, x, high + size, z, size, there)
        else:
            b.box(obj, f, (lx, high + tall / 2, lz), (size * 1.1, tall / 2, size * d.uniform(0.3, 1.0)), there)


def _chair(b: Builder, f: int) -> None:
    d, obj = b.draws, b.object("chair")
    wide, high, leg = d.uniform(0.18, 0.24), d.uniform(0.42, 0.5), d.uniform(0.012, 0.022)
    back = d.uniform(0.2, 0.27)
    b.box(obj, f, (0.0, high - 0.02, 0.0), (wide, 0.02, wide))
    b.box(obj, f, (0.0, high + back, wide - 0.015), (wide, back, 0.015))
    for sx in (-1, 1):
        for sz in (-1, 1):
            b.box(obj, f, (sx * (wide - leg), high / 2 - 0.02, sz * (wide - leg)), (leg, high / 2 - 0.02, leg))


def _sofa(b: Builder, f: int) -> None:
    d, obj = b.draws, b.object("sofa")
    wide, deep, seat = d.uniform(0.6, 1.0), d.uniform(0.38, 0.45), d.uniform(0.38, 0.46)
    back, arm = d.uniform(0.7, 0.9), d.uniform(0.07, 0.12)
    b.box(obj, f, (0.0, seat / 2, 0.0), (wide, seat / 2, deep))
    b.box(obj, f, (0.0, back / 2, deep - 0.1), (wide, back / 2, 0.1))
    for side in (-1, 1):
        b.box(obj, f, (side * (wide - arm), seat / 2 + 0.1, 0.0), (arm, seat / 2 + 0.1, deep))


def _lamp(b: Builder, x: Tensor, z: Tensor, valid: Tensor) -> None:
    d, obj = b.draws, b.object("lamp")
    high, radius = d.uniform(1.2, 1.7), d.uniform(0.12, 0.2)
    b.cylinder(obj, x, z, torch.zeros_like(x), torch.full_like(x, 0.03), radius * 0.8, valid)
    b.cylinder(obj, x, z, torch.full_like(x, 0.03), high, d.uniform(0.01, 0.02), valid)
    b.cylinder(obj, x, z, high - d.uniform(0.0, 0.1), high + d.uniform(0.15, 0.3), radius, valid)


def _plant(b: Builder, x: Tensor, z: Tensor, valid: Tensor) -> None:
    d, obj = b.draws, b.object("plant")
    pot, radius = d.uniform(0.2, 0.45), d.uniform(0.1, 0.18)
    b.cylinder(obj, x, z, torch.zeros_like(x), pot, radius, valid)
    for _ in range(4):
        size = d.uniform(0.08, 0.2)
        y = pot + size * 0.6 + d.uniform(0.0, 0.4)
        b.ball(obj, x + d.uniform(-0.15, 0.15), y, z + d.uniform(-0.15, 0.15), size, valid)


# Floor objects: name, footprint radius in metres, probability, largest distance. Large ones claim their place first.
_FLOOR = (
    ("sofa", 0.95, 0.4, 6.0),
    ("table", 0.75, 0.7, 5.0),
    ("table", 0.75, 0.45, 6.5),
    ("chair", 0.3, 0.6, 4.5),
    ("chair", 0.3, 0.6, 6.0),
    ("plant", 0.32, 0.55, 6.0),
    ("lamp", 0.2, 0.55, 6.0),
    ("bin", 0.2, 0.5, 5.0),
    ("box", 0.35, 0.6, 3.5),
    ("box", 0.35, 0.6, 5.0),
    ("box", 0.3, 0.6, 6.5),
    ("pole", 0.06, 0.7, 4.0),
    ("pole", 0.06, 0.7, 6.0),
    ("ball", 0.2, 0.6, 3.0),
    ("ball", 0.2, 0.6, 5.0),
    ("ball", 0.2, 0.5, 6.5),
)


def wall_furniture(b: Builder, room: Tensor) -> list[tuple[Tensor, Tensor, Tensor, float]]:
    """Draw cabinets against the front and a side wall and a shelf; return the floor circles they occupy."""
    d = b.draws
    left, right, _, _, _, front = room.unbind(1)
    taken = []
    for slot in range(2):
        wide, deep = d.uniform(0.3, 0.7), d.uniform(0.18, 0.28)
        high, valid = d.uniform(0.6, 1.9), d.flag(0.55)
        if slot == 0:
            x, z, yaw = left + 0.8 + (right - left - 1.6) * d.uniform(), front - deep - 0.01, torch.zeros(b.batch)
        else:
            side = d.flag(0.5)
            x = torch.where(side, right - deep - 0.01, left + deep + 0.01)
            z, yaw = 2.0 + (front - 3.0).clamp(min=0.0) * d.uniform(), torch.full((b.batch,), math.pi / 2)
        frame = b.frame(x, z, yaw, valid)
        b.box(b.object("cabinet"), frame, (0.0, high / 2, 0.0), (wide, high / 2, deep))
        _things(b, frame, high, wide, deep, ("cup", "box"))
        taken.append((x, z, valid, 0.65))
    wide, valid = d.uniform(0.3, 0.6), d.flag(0.5)
    high = d.uniform(1.2, 1.75)
    frame = b.frame(left + 0.7 + (right - left - 1.4) * d.uniform(), front - 0.13, torch.zeros(b.batch), valid)
    b.box(b.object("shelf"), frame, (0.0, high - 0.015, 0.0), (wide, 0.015, 0.12))
    _things(b, frame, high, wide, torch.full_like(high, 0.1), ("box", "cup", "box"))
    return taken


def _floor_places(b: Builder, room: Tensor, yaw: Tensor, taken: list) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, z (B, K) of the floor objects, spread over the field of view, and which of them found room."""
    d, count = b.draws, len(_FLOOR)
    radius = torch.tensor([row[1] for row in _FLOOR])
    chance = torch.tensor([row[2] for row in _FLOOR])
    far = torch.tensor([row[3] for row in _FLOOR])
    sector = d.uniform(count=count).argsort(dim=1)
    bearing = yaw[:, None] + math.radians(66) * ((sector + d.uniform(count=count)) / count - 0.5)
    reach = 1.15 + radius + (far - 1.15 - radius) * d.uniform(count=count)
    margin = radius * 0.9 + 0.03
    x = torch.minimum(torch.maximum(reach * bearing.sin(), room[:, :1] + margin), room[:, 1:2] - margin)
    z = torch.minimum(reach * bearing.cos(), room[:, 5:6] - margin)
    valid = (d.uniform(count=count) < chance) & ((x.square() + z.square()).sqrt() > radius + 0.75)
    xs = torch.cat([torch.stack([t[0] for t in taken], 1), x], 1)
    zs = torch.cat([torch.stack([t[1] for t in taken], 1), z], 1)
    radii = torch.cat([torch.tensor([t[3] for t in taken]), radius])
    keep = torch.cat([torch.stack([t[2] for t in taken], 1), valid], 1)
    gap = ((xs[:, :, None] - xs[:, None]).square() + (zs[:, :, None] - zs[:, None]).square()).sqrt()
    clash = gap < 0.9 * (radii[:, None] + radii)
    for k in range(len(taken), keep.shape[1]):
        keep[:, k] &= ~(clash[:, k, :k] & keep[:, :k]).any(dim=1)
    return x, z, keep[:, len(taken) :]


def floor_objects(b: Builder, room: Tensor, yaw: Tensor, taken: list) -> None:
    d = b.draws
    x, z, valid = _floor_places(b, room, yaw, taken)
    zero = torch.zeros(b.batch)
    for k, (name, _, _, _) in enumerate(_FLOOR):
        px, pz, ok = x[:, k], z[:, k], valid[:, k]
        if name in ("sofa", "table", "chair", "box"):
            frame = b.frame(px, pz, d.uniform(-math.pi, math.pi) * (0.15 if name == "sofa" else 1.0), ok)
        if name == "sofa":
            _sofa(b, frame)
        elif name == "table":
            _table(b, frame)
        elif name == "chair":
            _chair(b, frame)
        elif name == "box":
            high = d.uniform(0.05, 0.3)
            b.box(b.object("box"), frame, (0.0, high, 0.0), (d.uniform(0.06, 0.28), high, d.uniform(0.06, 0.28)))
        elif name == "plant":
            _plant(b, px, pz, ok)
        elif name == "lamp":
            _lamp(b, px, pz, ok)
        elif name == "bin":
            b.cylinder(b.object("bin"), px, pz, zero, d.uniform(0.25, 0.5), d.uniform(0.1, 0.18), ok)
        elif name == "pole":
            top = torch.where(d.flag(0.4), room[:, 3], d.uniform(0.6, 1.9))
            b.cylinder(b.object("pole"), px, pz, zero, top, d.uniform(0.012, 0.045), ok)
        else:
            size = d.uniform(0.06, 0.18)
            b.ball(b.object("ball"), px, size, pz, size, ok)
