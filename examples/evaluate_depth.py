"""Depth estimation, dense against accelerated: quality, speed and cost in one table, as JSON, and as pictures.

accelerate launch examples/evaluate_depth.py
accelerate launch examples/evaluate_depth.py --model Intel/dpt-large --dataset nyuv2:/data/nyu --dtype bfloat16
accelerate launch examples/evaluate_depth.py --accel cluster_after=4,cluster_grid=12x12,expansion=delta --images
accelerate launch --multi_gpu --num_processes 2 examples/evaluate_depth.py --cpu
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from accelerate.utils import set_seed
from rich.console import Console

from hf_tokaccel import TokenClusteringConfig
from hf_tokaccel.evaluation import DepthProtocol, Result, describe_environment, make_accelerator, to_markdown, to_table
from hf_tokaccel.evaluation.compare import compare, compile_model, first_batch
from hf_tokaccel.evaluation.datasets import DepthDataset, open_depth_dataset, open_photographs
from hf_tokaccel.evaluation.depth_model import DTYPES, DepthTask, choose_alignment, input_size, load_depth_model
from hf_tokaccel.evaluation.pictures import draw_photographs, draw_scenes, relative_difference
from hf_tokaccel.evaluation.rivals import default_settings, entries_for, parse_accels

PHOTOGRAPH_SETTING = slice(5, 6)  # of the default settings: the middle one with delta expansion


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="Hub id or folder of a depth model (default: the reference model of this package)")
    add("--dataset", default="scenes", help="scenes, nyuv2:DIR, kitti:DIR, a folder for `datasets`, or a Hub name")
    add("--split", default="test", help="of scenes and of `datasets`")
    add("--image-column", default="image", help="of a `datasets` table")
    add("--depth-column", default="depth", help="of a `datasets` table")
    add("--depth-scale", type=float, help="stored units per metre in the depth column, such as 1000 for millimetres")
    add(
        "--max-depth", type=float, help="largest true depth that counts in a `datasets` table, in metres (default: 80)"
    )
    add("--accel", action="append", metavar="SETTING", help="JSON or key=value,...; repeatable; none: only dense")
    add("--alignment", default="auto", help="auto, none, scale or scale_shift; auto aligns relative models only")
    add("--limit", type=int, help="number of images at most (default: all, or 200 scenes)")
    add("--batch-size", type=int, default=8)
    add("--num-workers", type=int, default=0, help="processes that load data")
    add("--dtype", default="float32", help=", ".join(DTYPES))
    add("--compile", nargs="?", const="inductor", metavar="BACKEND", help="use torch.compile")
    add("--cpu", action="store_true", help="run on the CPU even where there is a GPU")
    add("--rounds", type=int, default=10, help="timed rounds")
    add("--pictures", type=int, default=4, help="scenes in the picture")
    add("--images", nargs="*", metavar="PATH", help="show these photographs instead (default: some of scikit-image)")
    add("--seed", type=int, default=0, help="picks the scenes")
    add("--output", type=Path, default=Path("outputs/evaluate_depth"), help="folder for JSON, Markdown and pictures")
    return parser


class Job:
    """The options, checked and loaded; the user's mistakes show here, before any work."""

    def __init__(self, args: argparse.Namespace):
        for name, least in (("batch_size", 1), ("rounds", 1), ("limit", 1), ("pictures", 0), ("num_workers", 0)):
            if (value := getattr(args, name)) is not None and value < least:
                raise ValueError(
                    f"--{name.replace('_', '-')} {value} must be at least {least}, for example {least + 4}"
                )
        self.args = args
        settings = None if args.accel is None else parse_accels(args.accel)
        self.accelerator = make_accelerator(args.cpu)
        set_seed(args.seed)
        self.name = args.model or "reference depth model"
        folder = args.model or _reference_model()
        self.dense, stored, processor = load_depth_model(folder, dtype=args.dtype, device=self.accelerator.device)
        alignment, inverse = choose_alignment(self.dense.config, args.alignment)
        if args.images is None:
            self.dataset = _open_dataset(args, input_size(processor))
            self.samples, protocol = self.dataset.samples, self.dataset.protocol(alignment, inverse)
        else:
            self.photographs = open_photographs(args.images)
            self.samples = [{"image": image} for image in self.photographs.values()]
            protocol = DepthProtocol(alignment=alignment, inverse=inverse)
        self.task = DepthTask(processor, protocol)
        pixel_values = first_batch(self.samples, self.task, 1).to(self.accelerator.device)
        if settings is None and stored is not None:
            settings = [TokenClusteringConfig.from_dict(stored)]
        elif settings is None:
            settings = default_settings(self.dense, pixel_values.shape[-2:])
            settings = settings if args.images is None else settings[PHOTOGRAPH_SETTING]
        elif not settings and args.images is not None:
            raise ValueError("--images compares with an accelerated model: leave out --accel none, or name a setting")
        prepare = partial(compile_model, backend=args.compile) if args.compile else lambda model: model
        rivals = args.images is None
        self.entries, self.notes = entries_for(self.dense, settings, pixel_values, prepare=prepare, rivals=rivals)


def _open_dataset(args: argparse.Namespace, size: tuple[int, int]) -> DepthDataset:
    return open_depth_dataset(
        args.dataset,
        split=args.split,
        limit=args.limit,
        seed=args.seed,
        size=size,
        columns=(args.image_column, args.depth_column),
        depth_scale=args.depth_scale,
        max_depth=args.max_depth,
    )


def _reference_model() -> Path:
    from hf_tokaccel.reference import reference_model_path

    return reference_model_path("depth")


def evaluate_dataset(job: Job, console: Console) -> None:
    """Fill the table on all processes; the first one writes and draws."""
    args, dataset = job.args, job.dataset
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "rounds": args.rounds}
    rows = compare(job.entries, dataset.samples, job.task, job.accelerator, **options)
    if rows is None:
        return
    result = Result(
        task="depth-estimation",
        model=job.name,
        dataset=dataset.name,
        num_images=len(dataset.samples),
        num_processes=job.accelerator.num_processes,
        protocol=job.task.protocol.to_dict(),
        options=options | {"dtype": args.dtype, "compile": args.compile, "seed": args.seed},
        environment=describe_environment(job.accelerator.device),
        rows=rows,
        notes=job.notes,
    )
    result.save(args.output / "result.json")
    (args.output / "result.md").write_text(to_markdown(result), encoding="utf-8")
    console.print(to_table(result))
    shown = result.row_to_show()
    if args.pictures and shown is not None:
        samples = [dataset.samples[i] for i in range(min(args.pictures, len(dataset.samples)))]
        variants = job.entries[0].variant, job.entries[shown].variant
        panels = [job.task.panel(*variants, sample) for sample in samples]
        draw_scenes(panels, args.output / "scenes.png", heading=result.heading(shown))


def show_photographs(job: Job, console: Console) -> None:
    """One figure per accelerated setting, and how far its maps are from the dense ones."""
    dense, *fast = (entry.variant for entry in job.entries)
    for number, variant in enumerate(fast):
        panels = [job.task.panel(dense, variant, sample) for sample in job.samples]
        path = job.args.output / ("photographs.png" if len(fast) == 1 else f"photographs-{number + 1}.png")
        heading = f"{job.name}: dense against {variant.name}"
        inverse = job.task.protocol.inverse
        draw_photographs(panels, path, heading=heading, inverse=inverse)
        for name, panel in zip(job.photographs, panels, strict=True):
            difference = relative_difference(panel.dense.numpy(), panel.accelerated.numpy(), inverse).mean()
            console.print(f"{variant.name}, {name}: mean relative difference {difference:.4f}")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    start = time.perf_counter()
    try:
        job = Job(args)
        console = Console(width=None if sys.stdout.isatty() else 150)
        if job.accelerator.is_main_process:
            args.output.mkdir(parents=True, exist_ok=True)
        if args.images is None:
            evaluate_dataset(job, console)
        elif job.accelerator.is_main_process:
            show_photographs(job, console)
    except ValueError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    if job.accelerator.is_main_process:
        console.print(f"{time.perf_counter() - start:.0f} s; results are in {args.output}")
    job.accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(main())
