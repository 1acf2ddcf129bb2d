"""Draws the parameters of a batch of toy rooms: camera, room, furniture, small objects, materials and lights.

World axes: x right, y up, z away from the camera; metres. The floor is y = 0 and the camera stands over the origin.
Every scene has the same slots (parts, objects), each with a validity flag, so that a batch is a set of dense tensors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._classes import (
    BASE_COLOURS,
    CEILING,
    CLASS_NAMES,
    COLOUR_SPREAD,
    FLOOR,
    FRONT,
    NUM_STUFF,
    TYPICAL_COLOURS,
    TYPICAL_SHADE,
    TYPICAL_SPREAD,
    WALL,
)
from ._furniture import Builder, floor_objects, wall_furniture
from ._random import Draws


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


def _panels(b: Builder, room: Tensor) -> tuple[Tensor, Tensor]:
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


def _rug(b: Builder, yaw: Tensor) -> Tensor:
    d = b.draws
    bearing, reach, turn = yaw + d.uniform(-0.3, 0.3), d.uniform(1.8, 3.6), d.uniform(-0.6, 0.6)
    there = d.flag(0.6)
    half = [
        torch.where(there, size, torch.full_like(size, -1.0)) for size in (d.uniform(0.5, 1.2), d.uniform(0.4, 0.9))
    ]
    return torch.stack([reach * bearing.sin(), reach * bearing.cos(), *half, turn.cos(), turn.sin()], dim=1)


def _materials(b: Builder, typical: bool) -> Tensor:
    d, count = b.draws, len(b.object_class)
    names = [CLASS_NAMES[c] for c in b.object_class]
    base = torch.tensor([(TYPICAL_COLOURS if typical else BASE_COLOURS)[n] for n in names])
    spread = torch.tensor([TYPICAL_SPREAD if typical else COLOUR_SPREAD.get(n, 0.4) for n in names])[:, None]
    colour = base + spread * (d.uniform(count=count * 3).view(-1, count, 3) - base)
    second = d.uniform(count=count * 3).view(-1, count, 3)
    # Mostly a darker or lighter shade of the first colour, sometimes a different colour altogether.
    shade = (colour * (0.5 + d.uniform(count=count)[..., None])).clamp(max=1.0)
    second = torch.where(d.uniform(count=count)[..., None] < 0.25, second, shade)
    if typical:  # after the draws, so that both kinds of rooms have the same geometry, textures and light
        second = TYPICAL_SHADE * colour
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


def _lights(b: Builder, room: Tensor) -> Tensor:
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


def draw_scenes(indices: Tensor, split: str, seed: int, materials: str = "any") -> Scenes:
    """Draw the parameters of the scenes with the given (B,) int64 indices, on the CPU."""
    d = Draws(indices, split, seed)
    b = Builder(d, len(indices))
    left, right, top, front = -d.uniform(1.3, 3.2), d.uniform(1.3, 3.2), d.uniform(2.3, 3.0), d.uniform(3.0, 7.5)
    room = torch.stack([left, right, torch.zeros_like(top), top, torch.full_like(top, -0.6), front], dim=1)
    yaw = d.uniform(-30.0, 30.0).deg2rad()
    angles = [yaw, d.uniform(6.0, 22.0).deg2rad(), d.uniform(-2.5, 2.5).deg2rad()]
    focal = 1.0 / (d.uniform(59.0, 63.0).deg2rad() / 2).tan()
    camera = torch.stack([d.uniform(1.25, 1.5), *angles, focal], dim=1)
    floor_objects(b, room, yaw, wall_furniture(b, room))
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
        materials=_materials(b, materials == "typical"),
        lights=_lights(b, room),
        tone=torch.cat([tone, d.uniform(0.92, 1.08, count=3)], dim=1),
        keys=d.keys,
    )
