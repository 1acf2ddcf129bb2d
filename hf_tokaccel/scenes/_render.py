"""Turns drawn scenes into images, depth and label maps: camera rays, nearest hits, shading, shadows, sensor."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import _classes as classes
from ._layout import Scenes
from ._random import mix32, pixel_noise
from ._trace import Hits, Rays, room_exit, trace

_NO_PART = -1


class SceneBatch(NamedTuple):
    """A batch of rendered scenes.

    Attributes:
        image: (B, 3, H, W) float32 in [0, 1].
        depth: (B, H, W) float32, distance along the optical axis in metres.
        labels: (B, H, W) int64, positions in `CLASS_NAMES`.
        instances: (B, H, W) int64, 0 on room surfaces, otherwise the number of the object in its scene.
    """

    image: Tensor
    depth: Tensor
    labels: Tensor
    instances: Tensor

    @property
    def pixels(self) -> Tensor:
        """The images as image processors take them, (B, 3, H, W) uint8."""
        return (self.image * 255).round_().to(torch.uint8)


def camera_rays(scenes: Scenes, height: int, width: int) -> Rays:
    """Return world directions (B, H * W) of the pixel centres, scaled to one metre of depth per unit."""
    _, yaw, pitch, roll, focal = scenes.camera[:, :, None].unbind(1)
    device, half = scenes.camera.device, min(height, width) / 2
    x = ((torch.arange(width, device=device) + 0.5 - width / 2) / half).repeat(height)
    y = ((height / 2 - torch.arange(height, device=device) - 0.5) / half).repeat_interleave(width)
    u = (x * roll.cos() - y * roll.sin()) / focal
    v = (x * roll.sin() + y * roll.cos()) / focal
    up = v * pitch.cos() - pitch.sin()
    ahead = v * pitch.sin() + pitch.cos()
    return u * yaw.cos() + ahead * yaw.sin(), up, ahead * yaw.cos() - u * yaw.sin()


def _part_tables(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Return (B, K, 9) shape, centre, half sizes, cos, sin of the parts, and (K,) their objects."""
    batch, device = scenes.camera.shape[0], scenes.camera.device
    frames = scenes.frames[:, scenes.box_frame]
    cx, cy, cz, hx, hy, hz = scenes.boxes.unbind(2)
    x0, z0, cos, sin = frames.unbind(2)
    zero = torch.zeros_like(cx)
    boxes = [zero, x0 + cos * cx + sin * cz, cy, z0 - sin * cx + cos * cz, hx, hy, hz, cos, sin]
    x, y, z, radius, half = scenes.cylinders.unbind(2)
    one = torch.ones_like(x)
    cylinders = [one, x, y, z, radius, half, radius, one, one * 0]
    x, y, z, radius = scenes.balls.unbind(2)
    one = torch.ones_like(x)
    balls = [one * 2, x, y, z, radius, radius, radius, one, one * 0]
    room = scenes.room
    middle, half = (room[:, ::2] + room[:, 1::2]) / 2, (room[:, 1::2] - room[:, ::2]) / 2
    shell = torch.cat([torch.zeros(batch, 1, device=device), middle, half, torch.ones(batch, 1, device=device)], 1)
    shell = torch.cat([shell, torch.zeros(batch, 1, device=device)], 1)[:, None]
    table = torch.cat([torch.stack(group, 2) for group in (boxes, cylinders, balls)] + [shell], dim=1)
    objects = scenes.box_object + scenes.cylinder_object + scenes.ball_object + [classes.FLOOR]
    return table, torch.tensor(objects, device=device)


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    """Return (K, B, N): the rows (B, M, K) of a table at (B, N) positions, each column contiguous."""
    return torch.stack([column.gather(1, index) for column in table.unbind(2)])


class _Surface(NamedTuple):
    """What the camera rays hit; all (B, N). Normals point to the camera; u, v are texture coordinates in metres."""

    point: Rays
    normal: Rays
    u: Tensor
    v: Tensor
    object: Tensor
    border: Tensor


def _surface(scenes: Scenes, rays: Rays, depth: Tensor, part: Tensor) -> _Surface:
    origin = torch.zeros_like(scenes.room[:, :3])
    origin[:, 1] = scenes.camera[:, 0]
    point = tuple(torch.addcmul(origin[:, i, None].expand_as(depth), depth, rays[i]) for i in range(3))
    table, objects = _part_tables(scenes)
    index = torch.where(part == _NO_PART, table.shape[1] - 1, part).long()
    shape, cx, cy, cz, hx, hy, hz, cos, sin = _lookup(table, index)
    x, y, z = point[0] - cx, point[1] - cy, point[2] - cz
    qx, qy, qz = cos * x - sin * z, y, sin * x + cos * z
    px, py, pz = qx / hx, qy / hy, qz / hz
    ax, ay, az = px.abs(), py.abs(), pz.abs()
    box, ball = shape == 0, shape == 2
    side = (px * px + pz * pz).sqrt()
    on_y = torch.where(box, (ay >= ax) & (ay >= az), (ay >= side) & ~ball)
    on_x = box & ~on_y & (ax >= az)
    on_z = box & ~on_y & ~on_x
    # In the part's frame: boxes have axis normals, balls radial ones, cylinders radial ones without the y component.
    nx = torch.where(box, on_x * px.sign(), torch.where(on_y, 0.0, px))
    nz = torch.where(box, on_z * pz.sign(), torch.where(on_y, 0.0, pz))
    ny = torch.where(on_y, py.sign(), torch.where(ball, py, 0.0))
    normal = (cos * nx + sin * nz, ny, cos * nz - sin * nx)
    facing = -(normal[0] * rays[0] + normal[1] * rays[1] + normal[2] * rays[2])
    scale = facing.sign() * (nx * nx + ny * ny + nz * nz).clamp_(min=1e-12).rsqrt()
    u = torch.where(box, torch.where(on_x, qz, qx), torch.atan2(px, pz) * hx)
    v = torch.where(on_y & box, qz, qy)
    stuff, border = _stuff(scenes, point, on_x, on_y, py, px)
    obj = torch.where(part == _NO_PART, stuff, objects[index])
    return _Surface(point, tuple(n * scale for n in normal), u, v, obj, border & (part == _NO_PART))


def _stuff(scenes: Scenes, point: Rays, on_x: Tensor, on_y: Tensor, py: Tensor, px: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stuff class of points on the room's faces and whether they lie on the frame of a panel."""
    x, y, z = point
    stuff = torch.where(on_y, torch.where(py < 0, classes.FLOOR, classes.CEILING), classes.WALL)
    border = torch.zeros_like(on_x)
    cx, cz, hx, hz, cos, sin = scenes.rug[:, :, None].unbind(1)
    u, v = cos * (x - cx) - sin * (z - cz), sin * (x - cx) + cos * (z - cz)
    rug = (u.abs() < hx) & (v.abs() < hz) & (stuff == classes.FLOOR)
    border |= rug & ((u.abs() > hx - 0.06) | (v.abs() > hz - 0.06))
    stuff = torch.where(rug, classes.RUG, stuff)
    wall = torch.where(on_x, torch.where(px < 0, classes.LEFT, classes.RIGHT), classes.FRONT)
    wall = torch.where(on_y | (~on_x & (z < 0)), -1, wall)
    along = torch.where(on_x, z, x)
    for i, name in enumerate((classes.DOOR, classes.WINDOW, classes.PICTURE)):
        face, centre, height, wide, high = scenes.panels[:, i, :, None].unbind(1)
        du, dv = (along - centre).abs(), (y - height).abs()
        inside = (wall == face) & (du < wide) & (dv < high) & scenes.panel_valid[:, i, None]
        edge = (du > wide - 0.05) | (dv > high - 0.05)
        if name == classes.WINDOW:
            edge |= (du < 0.025) | (dv < 0.02)
        border |= inside & edge
        stuff = torch.where(inside, name, stuff)
    return stuff, border


def _texture(surface: _Surface, kind: Tensor, scale: Tensor) -> Tensor:
    """Return the weight (B, N) of the second colour."""
    s, t = surface.u / scale, surface.v / scale
    i, j = s.floor(), t.floor()
    checker = (i + j).remainder(2.0)
    stripes = i.remainder(2.0)
    # Planks are four units long, shifted row by row, each with a shade of its own and a dark joint.
    row = (t * 2).floor()
    along = s / 4 + row * 0.37
    shade = (mix32(along.floor().long() * 7919 + row.long() * 104729) & 0xFF).to(s.dtype) / 320
    joint = ((t * 2 - row) < 0.08) | ((along - along.floor()) < 0.02)
    planks = torch.where(joint, 1.0, shade)
    noise = 0.5 + 0.25 * ((s * 2.3 + (t * 1.7).sin() * 1.5).sin() + (t * 2.9 + (s * 1.3).sin() * 1.9).sin())
    value = torch.where(kind == classes.CHECKER, checker, torch.zeros_like(s))
    value = torch.where(kind == classes.STRIPES, stripes, value)
    value = torch.where(kind == classes.PLANKS, planks, value)
    return torch.where(kind == classes.NOISE, noise, value)


def _illumination(scenes: Scenes, surface: _Surface) -> Tensor:
    """Return the light (B, N) that points receive: ambient plus point lights with hard shadows."""
    ambient = scenes.tone[:, :1] * (1.0 + 0.25 * surface.normal[1])
    total = ambient.expand_as(surface.u).clone()
    for k in range(scenes.lights.shape[1]):
        index = (scenes.lights[:, k, 3] > 0).nonzero()[:, 0]
        if len(index) == 0:
            continue
        origin, power = scenes.lights[index, k, :3], scenes.lights[index, k, 3:]
        rays = tuple(surface.point[i][index] - origin[:, i, None] for i in range(3))
        square = rays[0] * rays[0] + rays[1] * rays[1] + rays[2] * rays[2]
        inverse = square.rsqrt()
        n = [component[index] for component in surface.normal]
        cosine = -(n[0] * rays[0] + n[1] * rays[1] + n[2] * rays[2]) * inverse
        # Stop 4 mm before the surface, so that it does not shadow itself.
        far = 1.0 - 0.004 * inverse
        hits = Hits(far.clone(), None)  # hits are updated in place
        trace(_rows(scenes, index), origin, rays, hits)
        lit = (hits.t >= far) * cosine.clamp_(min=0.0) * power / (0.6 + 0.12 * square)
        total[index] += lit
    return total


def _rows(scenes: Scenes, index: Tensor) -> Scenes:
    if len(index) == scenes.camera.shape[0]:
        return scenes
    return Scenes(**{k: v[index] if isinstance(v, Tensor) else v for k, v in vars(scenes).items()})


def _colour(scenes: Scenes, surface: _Surface, depth: Tensor) -> Tensor:
    """Return what the sensor records, (B, 3, N) in [0, 1]."""
    columns = _lookup(scenes.materials, surface.object)
    weight = _texture(surface, columns[6], columns[7])
    # Textures finer than a pixel fade to their mean instead of aliasing.
    weight = 0.5 + (weight - 0.5) * (1.6 - depth * 0.022 / columns[7]).clamp_(0.0, 1.0)
    weight = torch.where(columns[6] == classes.PLAIN, 0.0, weight)
    weight = torch.where((surface.object == classes.WINDOW) | (surface.object == classes.DOOR), 0.0, weight)
    weight = torch.where(surface.border, 1.0, weight)
    light = _illumination(scenes, surface)
    kinds = torch.tensor(scenes.object_class, device=depth.device)[surface.object]
    light = light + 0.5 * ((kinds == classes.WINDOW) & ~surface.border)
    light = (light + 0.35 * (kinds == classes.CLASS_NAMES.index("lamp"))) * scenes.tone[:, 1:2]
    rgb = torch.stack([torch.lerp(columns[i], columns[i + 3], weight) for i in range(3)], dim=1)
    # The square root is the sensor's tone curve; noise is added after it, as cameras show it.
    rgb = (rgb * rgb * light[:, None] * scenes.tone[:, 3:, None]).clamp_(0.0, 1.0).sqrt_()
    return (rgb + scenes.tone[:, 2, None, None] * pixel_noise(scenes.keys, 3, depth.shape[1])).clamp_(0.0, 1.0)


def render(scenes: Scenes, height: int, width: int) -> SceneBatch:
    """Render drawn scenes on the device of their tensors."""
    batch = scenes.camera.shape[0]
    rays = camera_rays(scenes, height, width)
    origin = torch.zeros(batch, 3, device=scenes.camera.device)
    origin[:, 1] = scenes.camera[:, 0]
    depth, _ = room_exit(scenes, origin, rays)
    hits = Hits(depth, torch.full_like(depth, _NO_PART, dtype=torch.int32))
    trace(scenes, origin, rays, hits)
    surface = _surface(scenes, rays, hits.t, hits.part)
    image = _colour(scenes, surface, hits.t).view(batch, 3, height, width)
    labels = torch.tensor(scenes.object_class, device=depth.device)[surface.object]
    instances = (surface.object - classes.NUM_STUFF + 1).clamp_(min=0)
    maps = [m.view(batch, height, width) for m in (hits.t, labels, instances)]
    return SceneBatch(image, *maps)
