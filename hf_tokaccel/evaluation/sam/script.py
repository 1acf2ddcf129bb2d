"""What the evaluation of SAM loads."""

import torch

from ...checkpoint import load_checkpoint
from ...checks import UserError
from ...images import open_photographs
from ..script import Loaded
from .data import open_images, read_prompts
from .options import SamOptions
from .task import SAM_MODELS, SamProtocol, SamTask


def load(options: SamOptions, device: torch.device) -> Loaded:
    if options.model is None:
        raise UserError(f"--model is missing: no SAM comes with this package; give one, such as {SAM_MODELS.example}")
    if options.compile is not None:
        raise UserError("--compile is not for SAM here: only its encoder is measured, which it would not compile")
    if options.points_per_side is not None and options.prompts is not None:
        raise UserError("--points-per-side and --prompts exclude each other: a file names all prompts")
    side = 6 if options.points_per_side is None else options.points_per_side
    if side < 1:
        raise UserError(f"--points-per-side {side} must be at least 1, for example 6")
    checkpoint = load_checkpoint(options.model, kind=SAM_MODELS, dtype=options.dtype, device=device)
    dense, processor = checkpoint.model, checkpoint.processor
    dataset = open_images(options.dataset, options.limit) if options.images is None else None
    names = tuple(open_photographs(options.images)) if dataset is None else dataset.names
    prompts = read_prompts(options.prompts, names) if options.prompts else {}
    task = SamTask(dense, processor, SamProtocol(side, prompts, seed=options.seed))
    return Loaded(options.model, dense, checkpoint.accel, task, dataset)
