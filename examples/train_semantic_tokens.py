"""Train an image classifier on semantic tokens (STViT), or the plain model by the same recipe.

accelerate launch examples/train_semantic_tokens.py --dataset ILSVRC/imagenet-1k --output stvit-deit-small
accelerate launch --cpu --num_processes 1 examples/train_semantic_tokens.py --dataset digits --output digits-16-tokens
python examples/train_semantic_tokens.py --dataset digits --evaluate digits-16-tokens
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import get_type_hints

import torch
from accelerate.utils import set_seed
from transformers import AutoModelForImageClassification

from hf_tokaccel.evaluation import make_accelerator
from hf_tokaccel.evaluation.script import exit_status
from hf_tokaccel.semantic import SemanticTokenConfig
from hf_tokaccel.training.classification import (
    SIZES,
    LabelledImages,
    Recipe,
    Run,
    Settings,
    Teacher,
    build_model,
    build_processor,
    evaluate,
    load_images,
)
from hf_tokaccel.training.classification.card import write_card
from hf_tokaccel.training.classification.data import BUILT_IN, SPECIFICATIONS
from hf_tokaccel.training.classification.models import check_classes, input_size
from hf_tokaccel.training.classification.recipe import DROP_PATH, PRESETS, described
from hf_tokaccel.tuning.text import parse_accel


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="digits", help=SPECIFICATIONS)
    add("--train-split", default="train")
    add("--val-split", default="validation")
    add("--val-share", type=float, help="hold this share of the training split out instead of --val-split")
    add("--test-split", help="scored in the end and by --evaluate (default: test of a built-in data set)")
    add("--image-column", default="image")
    add("--label-column", default="label")
    add("--limit", type=int, help="images of a split at most; of scenes how many to render")
    add(
        "--model", help=f"{', '.join(SIZES)}, or a folder or Hub id (default: deit-micro, or deit-small for your data)"
    )
    add("--accel", help="semantic tokens as JSON or key=value,..., such as token_grid=4x4,base_layers=4")
    add("--dense", action="store_true", help="train the plain model")
    add("--image-size", type=int, help="in pixels, of a named size")
    add("--distill", metavar="TEACHER", help="folder or Hub id of a classifier of the same classes to learn from")
    add("--output", type=Path, default=Path("outputs/train_semantic_tokens"), help="folder of the trained model")
    add("--work", type=Path, help="folder of checkpoint and log (default: OUTPUT-work)")
    add("--resume", action="store_true", help="continue from the checkpoint in --work")
    add("--evaluate", metavar="DIR", help="print the scores of a trained model on --test-split")
    add("--mixed-precision", choices=("no", "bf16", "fp16"))
    add("--cpu", action="store_true", help="run on the CPU even where there is a GPU")
    meanings = described(Settings)
    for field in dataclasses.fields(Settings):
        if field.name not in ("work", "resume", "identity"):
            kind, text = str if field.name == "keep" else int, f"{meanings[field.name]} (default: {field.default})"
            add(option(field.name), type=kind, default=field.default, help=text)
    recipe = parser.add_argument_group("recipe", "built-in data sets have other defaults, which the model card tells")
    meanings = described(Recipe)
    for field in dataclasses.fields(Recipe):
        kind = int if get_type_hints(Recipe)[field.name] is int else float
        recipe.add_argument(option(field.name), type=kind, help=f"{meanings[field.name]} (default: {field.default})")
    return parser


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read_recipe(args: argparse.Namespace, model: str) -> Recipe:
    """The published recipe, or that of a built-in data set, with the options that were given."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe) if getattr(args, f.name) is not None}
    recipe = Recipe(**{**PRESETS.get(args.dataset, {}), **given})
    return recipe if recipe.drop_path is not None else dataclasses.replace(recipe, drop_path=DROP_PATH.get(model, 0.1))


def read_images(
    args: argparse.Namespace, split: str, size: tuple[int, int], part: str | None = None
) -> LabelledImages:
    share = None if args.val_share is None or part is None else (args.val_share, part)
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    return load_images(args.dataset, split, size, share=share, limit=args.limit, **columns)


def train(args: argparse.Namespace) -> None:
    name = args.model or ("deit-micro" if args.dataset in BUILT_IN else "deit-small")
    recipe = read_recipe(args, name)
    accel = parse_accel(args.accel, SemanticTokenConfig, "token_grid=4x4,base_layers=4") if args.accel else None
    settings = Settings(
        **{f.name: getattr(args, f.name) for f in dataclasses.fields(Settings) if f.name in vars(args)}
    )
    options = {"mixed_precision": args.mixed_precision, "gradient_accumulation_steps": args.accumulate}
    accelerator = make_accelerator(args.cpu, **options)
    processor = build_processor(name, recipe.eval_crop, args.image_size)
    size = input_size(processor)
    training = read_images(args, args.train_split, size, "rest")
    validation = read_images(args, args.val_split if args.val_share is None else args.train_split, size, "held out")
    if training.classes != validation.classes:
        raise ValueError(f"{training.name} has the classes {training.classes}, {validation.name} {validation.classes}")
    set_seed(args.seed)
    model = build_model(name, training.classes, accel=accel, dense=args.dense, image_size=args.image_size)
    teacher = Teacher.load(args.distill, training.classes) if args.distill else None
    settings.identity = {
        "model": name,
        "accel": getattr(model.config, "accel", None),
        "image_size": size,
        "dataset": args.dataset,
        "images": len(training),
        "classes": training.classes,
        "teacher": args.distill,
        "mixed_precision": accelerator.mixed_precision,
    }
    run = Run(model, processor, training, validation, recipe, accelerator, settings, teacher)
    parameters = sum(p.numel() for p in model.parameters())
    accelerator.print(f"{type(model).__name__}, {parameters / 1e6:.2f} M parameters, {run.total} steps")
    if run.go():
        finish(args, run, name)
    else:
        accelerator.print(f"stopped at step {run.state['step']} of {run.total}; continue with --resume")
    accelerator.end_training()


def finish(args: argparse.Namespace, run: Run, source: str) -> None:
    """Scores the model that is kept, and writes the folder for the Hub."""
    accelerator, model = run.accelerator, run.result()
    options = {"batch_size": args.eval_batch, "workers": args.workers}
    sets = [run.validation]
    if args.test_split or args.dataset in BUILT_IN:
        sets.append(read_images(args, args.test_split or "test", input_size(run.processor)))
    scores = {images.name: evaluate(model, images, run.processor, accelerator, **options) for images in sets}
    accelerator.print(json.dumps(scores, indent=1))
    if not accelerator.is_main_process:
        return
    model.save_pretrained(args.output)
    run.processor.save_pretrained(args.output)
    write_card(args.output, run, source, scores)
    accelerator.print(f"the model is in {args.output}")


def score(args: argparse.Namespace) -> None:
    """Prints the scores of a trained model."""
    accelerator = make_accelerator(args.cpu, mixed_precision=args.mixed_precision)
    processor = build_processor(args.evaluate, 1.0)
    images = read_images(args, args.test_split or "test", input_size(processor))
    model = AutoModelForImageClassification.from_pretrained(args.evaluate, dtype=torch.float32)
    check_classes(args.evaluate, model.config, images.classes)
    options = {"batch_size": args.eval_batch, "workers": args.workers}
    scores = evaluate(model.to(accelerator.device), images, processor, accelerator, **options)
    accelerator.print(json.dumps({"data": images.name, "images": len(images), **scores}))


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.work = args.work or args.output.with_name(f"{args.output.name}-work")
    return exit_status(lambda: (score if args.evaluate else train)(args))


if __name__ == "__main__":
    sys.exit(main())
