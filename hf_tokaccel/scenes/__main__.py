"""Measures how fast scenes render and draws a contact sheet: python -m hf_tokaccel.scenes --sheet scenes.png."""

import argparse
import colorsys
import time

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from . import CLASS_NAMES, SceneBatch, SceneDataset, render_scenes


def _palette(count: int, shift: float) -> Tensor:
    return torch.tensor([colorsys.hsv_to_rgb((i * 0.381966 + shift) % 1.0, 0.75, 0.95) for i in range(count)])


def contact_sheet(batch: SceneBatch, columns: int) -> Tensor:
    """Return (H', W', 3) uint8: per scene its image, depth (near is bright), labels and instances side by side."""
    near, far = 0.3, 10.0
    shade = (batch.depth.clamp(near, far).log() - torch.tensor(far).log()) / torch.tensor(near / far).log()
    depth = torch.stack([shade, 1.0 - (shade - 0.5).abs() * 2, 1.0 - shade], dim=-1).clamp(0.0, 1.0)
    labels = _palette(len(CLASS_NAMES), 0.0)[batch.labels]
    colours = _palette(int(batch.instances.max()) + 1, 0.1)
    colours[0] = 0.15
    tiles = torch.cat([batch.image.permute(0, 2, 3, 1), depth, labels, colours[batch.instances]], dim=2)
    rows = [torch.cat(list(group), dim=1) for group in tiles.split(columns) if len(group) == columns]
    return (torch.cat(rows) * 255).round().to(torch.uint8)


def _measure(args: argparse.Namespace, options: dict) -> str:
    """Return a line on how many images a second are rendered, in this process or by the workers of a loader."""
    if args.workers:
        data = SceneDataset(args.split, args.images, options["size"], args.seed, args.materials)
        start = time.perf_counter()
        count = sum(len(b["image"]) for b in DataLoader(data, args.batch, num_workers=args.workers))
        where = f"cpu ({args.workers} loader workers, their start included)"
    else:
        render_scenes(range(args.batch), **options)  # warm-up
        sync = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
        sync()
        start, count = time.perf_counter(), args.images
        for first in range(0, count, args.batch):
            render_scenes(range(first, min(first + args.batch, count)), **options)
        sync()
        where = f"{args.device} ({torch.get_num_threads()} CPU threads)"
    return f"{count / (time.perf_counter() - start):.0f} images/s at {args.size}x{args.size} on {where}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hf_tokaccel.scenes", description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=512, help="images to time")
    parser.add_argument("--batch", type=int, default=32, help="images per call")
    parser.add_argument("--workers", type=int, default=0, help="render in so many processes, as training does")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--split", default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--materials", default="any", help="any, or typical: a colour of its own for each class")
    parser.add_argument("--sheet", default="scenes.png", help="where to write the contact sheet; empty for none")
    args = parser.parse_args()
    options = {
        "size": (args.size, args.size),
        "split": args.split,
        "seed": args.seed,
        "device": args.device,
        "materials": args.materials,
    }
    print(_measure(args, options))
    if args.sheet:
        from PIL import Image

        batch = SceneBatch(*(maps.cpu() for maps in render_scenes(range(16), **options)))
        Image.fromarray(contact_sheet(batch, 2).numpy()).save(args.sheet)
        print(f"contact sheet written to {args.sheet}")


if __name__ == "__main__":
    main()
