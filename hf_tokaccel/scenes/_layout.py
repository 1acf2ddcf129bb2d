"""Draws the parameters of a batch of toy rooms: camera, room, furniture, small objects, materials and lights.

World axes: x right, y up, z away from the camera; metres. The floor is y = 0 and the camera stands over the origin.
Every scene has the same slots (parts, objects), each with a validity flag, so that a batch is a set of dense tensors.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._random import Draws

CLASS_NAMES = (
    "floor",
    "ceiling",
    "wall",
    "door",
    "window",
    "picture",
    "rug",
    "table",
    "chair",
    "sofa",
    "cabinet",
    "shelf",
    "box",
    "ball",
    "pole",
    "lamp",
    "cup",
    "plant",
    "bin",
)
NUM_STUFF = 7  # The first classes are room surfaces and panels on them: they have no instances.
FLOOR, CEILING, WALL, DOOR, WINDOW, PICTURE, RUG = range(NUM_STUFF)
PLAIN, CHECKER, STRIPES, PLANKS, NOISE = range(5)
LEFT, RIGHT, FRONT = range(3)

_BASE_COLOURS = {
    "floor": (0.60, 0.48, 0.36),
    "ceiling": (0.90, 0.90, 0.88),
    "wall": (0.78, 0.76, 0.70),
    "door": (0.55, 0.38, 0.24),
    "window": (0.65, 0.80, 0.98),
    "picture": (0.50, 0.50, 0.50),
    "rug": (0.60, 0.25, 0.25),
    "table": (0.62, 0.44, 0.28),
    "chair": (0.45, 0.36, 0.30),
    "sofa": (0.35, 0.42, 0.58),
    "cabinet": (0.70, 0.62, 0.52),
    "shelf": (0.75, 0.70, 0.62),
    "box": (0.72, 0.56, 0.36),
    "ball": (0.80, 0.35, 0.25),
    "pole": (0.55, 0.57, 0.60),
    "lamp": (0.95, 0.88, 0.65),
    "cup": (0.85, 0.85, 0.90),
    "plant": (0.22, 0.50, 0.20),
    "bin": (0.35, 0.38, 0.40),
}
# How far a drawn colour may lie from its class colour: pictures and balls come in any colour, plants are green.
_COLOUR_SPREAD = {"ceiling": 0.15, "window": 0.15, "plant": 0.2, "lamp": 0.2, "picture": 0.9, "ball": 0.8, "cup": 0.7}


@dataclass
class Scenes:
    """Parameters of B scenes; all tensors lead with B. Lists are the same for every scene.

    Attributes:
        camera: (B, 5) height in metres, yaw, pitch, roll in radians, focal length in half short sides.
        room: (B, 6) x of the left and right wall, floor and ceiling y, z of the back and front wall.
        frames: (B, F, 4) x, z, cos and sin of the yaw of each furniture frame.
        frame_valid: (B, F) whether any of its boxes may be there.
        box_frame: frame of each box. box_object, cylinder_object, ball_object: object of each part.
        boxes: (B, P, 6) centre and half sizes in the frame (y from the floor).
        cylinders: (B, C, 5) centre x, y, z, radius, half height, in the world.
        balls: (B, S, 4) centre x, y, z, radius, in the world.
        box_valid, cylinder_valid, ball_valid: (B, P), (B, C), (B, S).
        panels: (B, 3, 5) wall, centre along the wall, centre height, half sizes of door, window and picture.
        panel_valid: (B, 3).
        rug: (B, 6) centre x, z, half sizes, cos, sin; half sizes are negative where there is no rug.
        object_class: class of each object; the first NUM_STUFF objects are the stuff classes.
        materials: (B, O, 8) colour, second colour, texture kind, texture scale in metres.
        lights: (B, 2, 4) position and strength; strength 0 switches a light off.
        tone: (B, 6) ambient level, exposure, noise standard deviation, colour cast.
        keys: (B, 2) keys of the per-pixel noise.
    """

    camera: Tensor
    room: Tensor
    frames: Tensor
    frame_valid: Tensor
    box_frame: list[int]
    box_object: list[int]
    cylinder_object: list[int]
    ball_object: list[int]
    boxes: Tensor
    cylinders: Tensor
    balls: Tensor
    box_valid: Tensor
    cylinder_valid: Tensor
    ball_valid: Tensor
    panels: Tensor
    panel_valid: Tensor
    rug: Tensor
    object_class: list[int]
    materials: Tensor
    lights: Tensor
    tone: Tensor
    keys: Tensor

    def select(self, part: slice, device: torch.device) -> "Scenes":
        """Return some of the scenes, with their tensors on the device."""
        moved = {k: v[part].to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Scenes(**moved)


@dataclass
class _Builder:
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


def _table(b: _Builder, f: int) -> None:
    d, obj = b.draws, b.object("table")
    wide, deep, high = d.uniform(0.4, 0.8), d.uniform(0.3, 0.45), d.uniform(0.55, 0.8)
    thick, leg = d.uniform(0.012, 0.03), d.uniform(0.015, 0.035)
    b.box(obj, f, (0.0, high - thick, 0.0), (wide, thick, deep))
    for sx in (-1, 1):
        for sz in (-1, 1):
            place = (sx * (wide - leg - 0.02), (high - 2 * thick) / 2, sz * (deep - leg - 0.02))
            b.box(obj, f, place, (leg, (high - 2 * thick) / 2, leg))
    _things(b, f, high, wide, deep, ("cup", "cup", "box", "ball"))


def _things(b: _Builder, f: int, high: Tensor, wide: Tensor, deep: Tensor, names: tuple) -> None:
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


def _chair(b: _Builder, f: int) -> None:
    d, obj = b.draws, b.object("chair")
    wide, high, leg = d.uniform(0.18, 0.24), d.uniform(0.42, 0.5), d.uniform(0.012, 0.022)
    back = d.uniform(0.2, 0.27)
    b.box(obj, f, (0.0, high - 0.02, 0.0), (wide, 0.02, wide))
    b.box(obj, f, (0.0, high + back, wide - 0.015), (wide, back, 0.015))
    for sx in (-1, 1):
        for sz in (-1, 1):
            b.box(obj, f, (sx * (wide - leg), high / 2 - 0.02, sz * (wide - leg)), (leg, high / 2 - 0.02, leg))


def _sofa(b: _Builder, f: int) -> None:
    d, obj = b.draws, b.object("sofa")
    wide, deep, seat = d.uniform(0.6, 1.0), d.uniform(0.38, 0.45), d.uniform(0.38, 0.46)
    back, arm = d.uniform(0.7, 0.9), d.uniform(0.07, 0.12)
    b.box(obj, f, (0.0, seat / 2, 0.0), (wide, seat / 2, deep))
    b.box(obj, f, (0.0, back / 2, deep - 0.1), (wide, back / 2, 0.1))
    for side in (-1, 1):
        b.box(obj, f, (side * (wide - arm), seat / 2 + 0.1, 0.0), (arm, seat / 2 + 0.1, deep))


def _lamp(b: _Builder, x: Tensor, z: Tensor, valid: Tensor) -> None:
    d, obj = b.draws, b.object("lamp")
    high, radius = d.uniform(1.2, 1.7), d.uniform(0.12, 0.2)
    b.cylinder(obj, x, z, torch.zeros_like(x), torch.full_like(x, 0.03), radius * 0.8, valid)
    b.cylinder(obj, x, z, torch.full_like(x, 0.03), high, d.uniform(0.01, 0.02), valid)
    b.cylinder(obj, x, z, high - d.uniform(0.0, 0.1), high + d.uniform(0.15, 0.3), radius, valid)


def _plant(b: _Builder, x: Tensor, z: Tensor, valid: Tensor) -> None:
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


def _wall_furniture(b: _Builder, room: Tensor) -> list[tuple[Tensor, Tensor, Tensor, float]]:
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


def _floor_places(b: _Builder, room: Tensor, yaw: Tensor, taken: list) -> tuple[Tensor, Tensor, Tensor]:
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


def _floor_objects(b: _Builder, room: Tensor, yaw: Tensor, taken: list) -> None:
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


def _panels(b: _Builder, room: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a door, a window and a picture on three different walls."""
    d = b.draws
    first, step = d.choice(3), 1 + d.choice(2)
    rows, valid = [], []
    sizes = ((0.38, 0.48, 0.95, 1.05), (0.35, 0.8, 0.35, 0.6), (0.15, 0.45, 0.15, 0.4))
    for i, (w0, w1, h0, h1) in enumerate(sizes):
        wall = (first + i * step) % 3
        wide, high = d.uniform(w0, w1), d.uniform(h0, h1)
        front = wall == FRONT
        low = torch.where(front, room[:, 0], torch.full_like(wide, 1.2)) + wide + 0.1
        top = torch.where(front, room[:, 1], room[:, 5]) - wide - 0.1
        along = low + (top - low) * d.uniform()
        height = high if i == 0 else d.uniform(1.45, 1.65)
        rows.append(torch.stack([wall.float(), along, height, wide, high], dim=1))
        valid.append(d.flag(0.75))
    return torch.stack(rows, dim=1), torch.stack(valid, dim=1)


def _rug(b: _Builder, yaw: Tensor) -> Tensor:
    d = b.draws
    bearing, reach, turn = yaw + d.uniform(-0.3, 0.3), d.uniform(1.8, 3.6), d.uniform(-0.6, 0.6)
    there = d.flag(0.6)
    half = [
        torch.where(there, size, torch.full_like(size, -1.0)) for size in (d.uniform(0.5, 1.2), d.uniform(0.4, 0.9))
    ]
    return torch.stack([reach * bearing.sin(), reach * bearing.cos(), *half, turn.cos(), turn.sin()], dim=1)


def _materials(b: _Builder) -> Tensor:
    d, count = b.draws, len(b.object_class)
    names = [CLASS_NAMES[c] for c in b.object_class]
    base = torch.tensor([_BASE_COLOURS[n] for n in names])
    spread = torch.tensor([_COLOUR_SPREAD.get(n, 0.4) for n in names])[:, None]
    colour = base + spread * (d.uniform(count=count * 3).view(-1, count, 3) - base)
    second = d.uniform(count=count * 3).view(-1, count, 3)
    # Mostly a darker or lighter shade of the first colour, sometimes a different colour altogether.
    shade = (colour * (0.5 + d.uniform(count=count)[..., None])).clamp(max=1.0)
    second = torch.where(d.uniform(count=count)[..., None] < 0.25, second, shade)
    weights = torch.tensor([[0.45, 0.12, 0.23, 0.05, 0.15]]).repeat(count, 1)
    weights[FLOOR] = torch.tensor([0.1, 0.25, 0.1, 0.4, 0.15])
    weights[CEILING] = torch.tensor([0.7, 0.1, 0.0, 0.1, 0.1])
    weights[WALL] = torch.tensor([0.5, 0.0, 0.2, 0.1, 0.2])
    pick = d.uniform(count=count)
    kind = (pick[..., None] >= weights.cumsum(1)[:, :-1]).sum(-1)
    low, high = torch.full((count,), 0.04), torch.full((count,), 0.15)
    low[:NUM_STUFF], high[:NUM_STUFF] = 0.15, 0.5
    scale = low + (high - low) * d.uniform(count=count)
    return torch.cat([colour, second, kind.float()[..., None], scale[..., None]], dim=2)


def _lights(b: _Builder, room: Tensor) -> Tensor:
    d = b.draws
    left, right, _, top, _, front = room.unbind(1)
    rows = []
    for slot in range(2):
        x = left + (right - left) * d.uniform(0.2, 0.8)
        z = front * d.uniform(0.05, 0.7)
        y = top - (d.uniform(0.05, 0.3) if slot == 0 else d.uniform(0.1, 0.9))
        power = d.uniform(0.8, 1.3) if slot == 0 else torch.where(d.flag(0.4), d.uniform(0.3, 0.6), 0.0)
        rows.append(torch.stack([x, y, z, power], dim=1))
    return torch.stack(rows, dim=1)


def draw_scenes(indices: Tensor, split: str, seed: int) -> Scenes:
    """Draw the parameters of the scenes with the given (B,) int64 indices, on the CPU."""
    d = Draws(indices, split, seed)
    b = _Builder(d, len(indices))
    left, right, top, front = -d.uniform(1.3, 3.2), d.uniform(1.3, 3.2), d.uniform(2.3, 3.0), d.uniform(3.0, 7.5)
    room = torch.stack([left, right, torch.zeros_like(top), top, torch.full_like(top, -0.6), front], dim=1)
    yaw = d.uniform(-30.0, 30.0).deg2rad()
    angles = [yaw, d.uniform(6.0, 22.0).deg2rad(), d.uniform(-2.5, 2.5).deg2rad()]
    focal = 1.0 / (d.uniform(59.0, 63.0).deg2rad() / 2).tan()
    camera = torch.stack([d.uniform(1.25, 1.5), *angles, focal], dim=1)
    _floor_objects(b, room, yaw, _wall_furniture(b, room))
    panels, panel_valid = _panels(b, room)
    tone = torch.stack([d.uniform(0.22, 0.4), d.uniform(0.85, 1.2), d.uniform(0.003, 0.02)], dim=1)
    return Scenes(
        camera=camera,
        room=room,
        frames=torch.stack(b.frames, 1),
        frame_valid=torch.stack(b.frame_valid, 1),
        box_frame=[row[0] for row in b.boxes],
        box_object=[row[1] for row in b.boxes],
        cylinder_object=[row[0] for row in b.cylinders],
        ball_object=[row[0] for row in b.balls],
        boxes=torch.stack([row[2] for row in b.boxes], 1),
        cylinders=torch.stack([row[1] for row in b.cylinders], 1),
        balls=torch.stack([row[1] for row in b.balls], 1),
        box_valid=torch.stack([row[3] for row in b.boxes], 1),
        cylinder_valid=torch.stack([row[2] for row in b.cylinders], 1),
        ball_valid=torch.stack([row[2] for row in b.balls], 1),
        panels=panels,
        panel_valid=panel_valid,
        rug=_rug(b, yaw),
        object_class=b.object_class,
        materials=_materials(b),
        lights=_lights(b, room),
        tone=torch.cat([tone, d.uniform(0.92, 1.08, count=3)], dim=1),
        keys=d.keys,
    )
