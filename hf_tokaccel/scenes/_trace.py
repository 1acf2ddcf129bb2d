"""Nearest hits of rays that leave one point per scene: camera rays, and shadow rays followed from the light.

Rays are three (B, N) direction components; hits are reported as the multiple t of the direction.
"""

import torch
from torch import Tensor

from ._layout import Scenes

Rays = tuple[Tensor, Tensor, Tensor]


def _reciprocal(x: Tensor) -> Tensor:
    # A zero component would give 0 * inf = nan in the slab test.
    return torch.where(x.abs() < 1e-7, 1e-7, x).reciprocal_()


def _slab(centre: Tensor, half: Tensor, inverse: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays enter and leave a slab; centre and half (B, 1) are relative to the origin of the rays."""
    middle, extent = centre * inverse, half * magnitude
    return middle - extent, middle.add_(extent)


class Hits:
    """Nearest hit so far of each ray.

    Attributes:
        t: (B, N) ray parameter of the hit; starts at the far limit.
        part: (B, N) int32 number of the part hit, or None when only occlusion matters.
    """

    def __init__(self, far: Tensor, part: Tensor | None):
        self.t, self.part = far, part

    def offer(self, near: Tensor, far: Tensor, part: int | Tensor) -> None:
        """Take a solid's entry points where they lie inside (0, t) and before the exit."""
        closer = (near < torch.minimum(far, self.t)) & (near > 1e-4)
        self.t = torch.where(closer, near, self.t)
        if self.part is not None:
            self.part = torch.where(closer, part, self.part)

    def rows(self, index: Tensor) -> "Hits":
        return Hits(self.t[index], None if self.part is None else self.part[index])

    def put(self, index: Tensor, rows: "Hits") -> None:
        self.t[index] = rows.t
        if self.part is not None:
            self.part[index] = rows.part


def room_exit(scenes: Scenes, origin: Tensor, rays: Rays) -> tuple[Tensor, Tensor]:
    """Return t (B, N) where rays leave the room and the axis (0, 1, 2) of the face they leave through."""
    best, axis = None, None
    for i, d in enumerate(rays):
        low, high = scenes.room[:, 2 * i, None], scenes.room[:, 2 * i + 1, None]
        inverse = _reciprocal(d)
        # The sign of the reciprocal decides, since that is the direction a vanishing component was given.
        t = (torch.where(inverse > 0, high, low) - origin[:, i, None]) * inverse
        axis = torch.zeros_like(t, dtype=torch.int32) if axis is None else torch.where(t < best, i, axis)
        best = t if best is None else torch.minimum(best, t)
    return best, axis


def trace(scenes: Scenes, origin: Tensor, rays: Rays, hits: Hits) -> None:
    """Offer every part of the scenes to the hits: boxes are parts 0 to P - 1, then cylinders, then balls."""
    inverse_y = _reciprocal(rays[1])
    vertical = (inverse_y, inverse_y.abs())
    _trace_boxes(scenes, origin, rays, vertical, hits)
    _trace_cylinders(scenes, origin, rays, vertical, hits)
    _trace_balls(scenes, origin, rays, hits)


def _trace_boxes(scenes: Scenes, origin: Tensor, rays: Rays, vertical: tuple, hits: Hits) -> None:
    for frame in range(scenes.frames.shape[1]):
        members = [i for i, f in enumerate(scenes.box_frame) if f == frame]
        index = scenes.frame_valid[:, frame].nonzero()[:, 0]
        if len(index) == 0:
            continue
        # Only the scenes that have this piece of furniture are worth a pass over their rays.
        whole = len(index) == origin.shape[0]
        dx, dz = (rays[0], rays[2]) if whole else (rays[0][index], rays[2][index])
        inverse, magnitude = vertical if whole else (vertical[0][index], vertical[1][index])
        x0, z0, cos, sin = scenes.frames[index, frame, :, None].unbind(1)
        ox, oy, oz = origin[index, :, None].unbind(1)
        ix = _reciprocal(cos * dx - sin * dz)
        iz = _reciprocal(sin * dx + cos * dz)
        ax, az = ix.abs(), iz.abs()
        lx, lz = cos * (ox - x0) - sin * (oz - z0), sin * (ox - x0) + cos * (oz - z0)
        local = hits if whole else hits.rows(index)
        for i in members:
            cx, cy, cz, hx, hy, hz = scenes.boxes[index, i, :, None].unbind(1)
            hx = torch.where(scenes.box_valid[index, i, None], hx, -1.0)  # A negative size is never hit.
            near, far = _slab(cx - lx, hx, ix, ax)
            near_y, far_y = _slab(cy - oy, hy, inverse, magnitude)
            near_z, far_z = _slab(cz - lz, hz, iz, az)
            near = torch.maximum(torch.maximum(near, near_y), near_z)
            local.offer(near, torch.minimum(torch.minimum(far, far_y), far_z), i)
        if not whole:
            hits.put(index, local)


def _packed(valid: Tensor) -> tuple[Tensor, int]:
    """Return slot numbers with the valid ones first, and how many columns hold any valid slot."""
    return (~valid).to(torch.uint8).argsort(dim=1, stable=True), int(valid.sum(1).max())


def _trace_cylinders(scenes: Scenes, origin: Tensor, rays: Rays, vertical: tuple, hits: Hits) -> None:
    order, count = _packed(scenes.cylinder_valid)
    if count == 0:
        return
    dx, _, dz = rays
    a = (dx * dx + dz * dz).clamp_(min=1e-12)
    inverse = a.reciprocal()
    first = len(scenes.box_object)
    for k in range(count):
        slot = order[:, k : k + 1]
        row = scenes.cylinders.gather(1, slot[..., None].expand(-1, -1, 5))[:, 0, :, None]
        there = scenes.cylinder_valid.gather(1, slot)
        x, y, z, radius, half = row.unbind(1)
        ox, oz = x - origin[:, :1], z - origin[:, 2:]
        b = ox * dx + oz * dz
        # A ray that misses gets an empty interval; the root of a negative number would be slow as well as nan.
        root = (b * b - a * (ox * ox + oz * oz - radius * radius)).clamp_(min=0.0).sqrt_()
        near_y, far_y = _slab(y - origin[:, 1:2], torch.where(there, half, -1.0), *vertical)
        near = torch.maximum((b - root) * inverse, near_y)
        hits.offer(near, torch.minimum(b.add_(root).mul_(inverse), far_y), (slot + first).int())


def _trace_balls(scenes: Scenes, origin: Tensor, rays: Rays, hits: Hits) -> None:
    order, count = _packed(scenes.ball_valid)
    if count == 0:
        return
    dx, dy, dz = rays
    a = dx * dx + dy * dy + dz * dz
    inverse = a.reciprocal()
    first = len(scenes.box_object) + len(scenes.cylinder_object)
    for k in range(count):
        slot = order[:, k : k + 1]
        row = scenes.balls.gather(1, slot[..., None].expand(-1, -1, 4))[:, 0, :, None]
        x, y, z, radius = row.unbind(1)
        ox, oy, oz = x - origin[:, :1], y - origin[:, 1:2], z - origin[:, 2:]
        gap = ox * ox + oy * oy + oz * oz - radius * radius
        gap = torch.where(scenes.ball_valid.gather(1, slot), gap, float("inf"))
        b = ox * dx + oy * dy + oz * dz
        root = (b * b - a * gap).clamp_(min=0.0).sqrt_()
        near = (b - root) * inverse
        hits.offer(near, b.add_(root).mul_(inverse), (slot + first).int())
