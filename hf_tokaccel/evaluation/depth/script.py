"""What the evaluation of depth estimation loads."""

import torch

from ...checkpoint import load_checkpoint
from ...images import input_size
from ...measure.metrics.depth import DepthProtocol
from ...reference import reference_model_path
from ..script import Loaded
from .data import open_depth_dataset
from .options import DepthOptions
from .task import DEPTH_MODELS, DepthTask, choose_alignment


def load(options: DepthOptions, device: torch.device) -> Loaded:
    folder = options.model or reference_model_path("depth")
    checkpoint = load_checkpoint(folder, kind=DEPTH_MODELS, dtype=options.dtype, device=device)
    dense, processor = checkpoint.model, checkpoint.processor
    alignment, inverse = choose_alignment(dense.config, options.alignment)
    dataset, protocol = None, DepthProtocol(alignment=alignment, inverse=inverse)
    if options.images is None:
        dataset = open_depth_dataset(
            options.dataset,
            split=options.split or "test",
            limit=options.limit,
            seed=options.seed,
            size=input_size(processor),
            columns=(options.image_column, options.depth_column),
            depth_scale=options.depth_scale,
            max_depth=options.max_depth,
        )
        protocol = dataset.protocol(alignment, inverse)
    return Loaded(
        options.model or "reference depth model", dense, checkpoint.accel, DepthTask(processor, protocol), dataset
    )
