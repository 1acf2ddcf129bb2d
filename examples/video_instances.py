"""A clip through Mask2Former: clusters of each frame, or of all frames together, beside the dense model.

python examples/video_instances.py
python examples/video_instances.py --frames FOLDER --model facebook/mask2former-swin-tiny-coco-instance
python examples/video_instances.py --length 12 --shared 4 --accel cluster_after=2,cluster_grid=4x4,expansion=delta
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import hf_tokaccel as ta
from hf_tokaccel.checkpoint import load_checkpoint
from hf_tokaccel.checks import UserError
from hf_tokaccel.evaluation import count_gflops, make_accelerator, time_interleaved
from hf_tokaccel.evaluation.panoptic import task as panoptic_task
from hf_tokaccel.evaluation.panoptic.pictures import show_segments
from hf_tokaccel.evaluation.pictures import Panel, empty_grid
from hf_tokaccel.evaluation.queries import give_task_input
from hf_tokaccel.evaluation.script import exit_status
from hf_tokaccel.evaluation.segmentation.pictures import class_colours
from hf_tokaccel.images import input_size, open_photographs
from hf_tokaccel.measure.metrics import panoptic
from hf_tokaccel.reference import reference_model_path
from hf_tokaccel.rivals.build import Subject, clusters, dense
from hf_tokaccel.rivals.settings import default_settings
from hf_tokaccel.scenes import SceneDataset
from hf_tokaccel.settings.naming import setting_name
from hf_tokaccel.tuning.text import parse_accel, resolve_accels

LEAST = {"length": 2, "shared": 2, "rounds": 1, "seed": 0}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="Hub id or folder of a Mask2Former or its like (default: the reference model of this package)")
    add("--frames", type=Path, help="folder of PNG or JPEG files, in order of name (default: a pan over a scene)")
    add("--length", type=int, default=8, help="frames at most; they make one batch")
    add("--shared", type=int, help="frames that share a plan, a divisor of their number (default: all)")
    add("--accel", help="JSON, key=value,... or preset (default: that of the model, or a careful one)")
    add("--threshold", type=float, help="score from which a query counts (default: the image processor's)")
    add("--overlap", type=float, help="share of its mask that a segment must keep (default: the image processor's)")
    add("--rounds", type=int, default=10, help="timed rounds")
    add("--cpu", action="store_true", help="run on the CPU even where there is a GPU")
    add("--seed", type=int, default=0, help="picks the scene")
    add("--output", type=Path, default=Path("outputs/video_instances"), help="folder for the picture")
    return parser


def pan(size: tuple[int, int], length: int, seed: int) -> list[np.ndarray]:
    """Frames, uint8 (H, W, 3): a window that moves to the right by half its width over a rendered scene."""
    height, width = size
    scenes = SceneDataset("test", 1, (height, width + width // 2), seed, materials="typical", channels_last=True)
    scene = scenes[0]["image"]
    starts = np.linspace(0, width // 2, length).round().astype(int)
    return [scene[:, start : start + width].copy() for start in starts]


def read_frames(folder: Path, length: int) -> list[np.ndarray]:
    """The first frames of a folder, uint8 (H, W, 3).

    Raises:
        ValueError: Fewer than two images, one that cannot be read, or images of several sizes.
    """
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in found if path.suffix.lower() in (".png", ".jpg", ".jpeg")][:length]
    if len(paths) < 2:
        raise UserError(f"--frames {folder} must be a folder of at least 2 PNG or JPEG files, such as 00001.jpg")
    frames = open_photographs(paths)
    sizes = {image.shape[:2]: name for name, image in frames.items()}
    if len(sizes) > 1:
        said = ", ".join(f"{name} of {height}x{width}" for (height, width), name in sizes.items())
        raise UserError(f"the frames of a clip must have one size, but there are {said}; give those of one clip")
    return list(frames.values())


def compare_clip(
    found: list[Tensor], dense: list[Tensor], things: tuple[bool, ...]
) -> tuple[list[float], list[float]]:
    """PQ against the dense model's segments, and share of pixels of the same segment: of each frame, then of all."""
    pairs = list(zip(found, dense, strict=True))
    sums = torch.stack([panoptic.image_sums(*pair, len(things)) for pair in pairs])
    quality = panoptic.metrics_from_sums(torch.cat([sums, sums.sum(0, keepdim=True)]), things)["pq"]
    alike = [(panoptic.align(a, b) == b).double().mean().item() for a, b in pairs]
    return quality.tolist(), [*alike, sum(alike) / len(alike)]


def draw(frames: list[np.ndarray], names: list[str], found: list[list[Tensor]], path: Path, heading: str) -> None:
    """A line of each frame: image, and the segments of every variant.

    Those that match the dense ones look alike, and those look like the ones that they overlap in the frame before.
    """
    dense = found[0][:1]
    for number, codes in enumerate(found[0][1:], start=1):
        dense.append(panoptic.align(codes, dense[-1], panoptic.STEP - 1 - 200 * number))  # numbers that are not taken
    aligned = [[panoptic.align(a, b, panoptic.STEP // 2) for a, b in zip(maps, dense, strict=True)] for maps in found]
    present = sorted({int(c) for maps in found for m in maps for c in panoptic.classes_of(m).unique() if c >= 0})
    colours = class_colours(max(present, default=0) + 1, present)
    panels = [Panel(image, codes, codes, codes) for image, codes in zip(frames, dense, strict=True)]
    figure, axes = empty_grid(panels, ["image", *names], heading, foot=0.1)
    for line, image, *maps in zip(axes, frames, *aligned, strict=True):
        line[0].imshow(image)
        for axis, codes in zip(line[1:], maps, strict=True):
            show_segments(axis, codes, colours, image)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


@torch.inference_mode()
def run(args: argparse.Namespace, console: Console) -> None:
    for name, least in LEAST.items():
        if (value := getattr(args, name)) is not None and value < least:
            raise UserError(f"--{name} {value} must be at least {least}, for example {least + 4}")
    device = make_accelerator(args.cpu).device
    folder = args.model or reference_model_path("panoptic")
    checkpoint = load_checkpoint(folder, kind=panoptic_task.PANOPTIC_MODELS, dtype="float32", device=device)
    model, stored, processor = checkpoint.model, checkpoint.accel, checkpoint.processor
    give_task_input(model, checkpoint.source)
    labels = panoptic_task.class_names(model.config)
    things = panoptic_task.things_without_data(labels)
    protocol = panoptic_task.PanopticProtocol(labels, things, threshold=args.threshold, overlap=args.overlap)
    task = panoptic_task.PanopticTask(processor, protocol)
    made = args.frames is None
    frames = pan(input_size(processor), args.length, args.seed) if made else read_frames(args.frames, args.length)
    items = [task.encode({"image": image}) for image in frames]
    clip = torch.stack([item["pixel_values"] for item in items]).to(device)
    size, count = tuple(clip.shape[-2:]), args.shared or len(frames)
    setting = parse_accel(args.accel) if args.accel else ta.TokenClusteringConfig.from_dict(stored) if stored else None
    (setting,) = resolve_accels([setting or default_settings(model, size, task)[0]], model.config, size)
    subject = Subject(model, size)
    rows = [dense(subject)]
    for name, shared in (("clusters of each frame", 1), (f"{count} frames share a plan", count)):
        rows.append(replace(clusters(subject, replace(setting, shared_frames=shared)), name=name))
    variants = [row.variant for row in rows]
    found = [[codes.cpu() for codes in task.decode(task.run(variant, clip), items)] for variant in variants]
    gflops = [count_gflops(partial(task.run, variant), clip) for variant in variants]
    times = time_interleaved([task.timed(variant, clip) for variant in variants], device=device, rounds=args.rounds)

    names = [variant.name for variant in variants]
    resolved = ta.TokenClusteringConfig.from_dict(rows[1].accel)
    heading = f"{args.model or 'reference panoptic model'}: {setting_name(resolved)}"
    table = Table("", *names, title=heading)
    measured = [compare_clip(maps, found[0], things) for maps in found]
    for i, title in enumerate([*(f"frame {i}" for i in range(1, len(frames) + 1)), "clip"]):
        cells = (f"PQ {100 * quality[i]:.1f}, {100 * alike[i]:.1f} % alike" for quality, alike in measured)
        table.add_row(title, *cells, end_section=i >= len(frames) - 1)
    table.add_row("GFLOPs per frame", *(f"{value:.3g}" for value in gflops))
    table.add_row("ms per frame", *(f"{1000 * time.median / len(frames):.1f}" for time in times))
    table.add_row("speed", *(f"{time.speedup:.2f}x" for time in times))
    table.caption = "PQ against the dense model's segments, nan where it finds none; alike: pixels of the same segment"
    console.print(table)
    draw(frames, names, found, args.output / "clip.png", heading)
    console.print(f"the frames are in {args.output / 'clip.png'}")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return exit_status(lambda: run(args, Console(width=None if sys.stdout.isatty() else 120)))


if __name__ == "__main__":
    sys.exit(main())
