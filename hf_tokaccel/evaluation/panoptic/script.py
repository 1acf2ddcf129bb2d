"""What the evaluation of panoptic segmentation loads."""

import torch

from ...checkpoint import load_checkpoint
from ...images import input_size
from ...reference import reference_model_path
from ..queries import give_task_input
from ..script import Loaded
from .data import open_panoptic_dataset
from .options import PanopticOptions
from .task import PANOPTIC_MODELS, PanopticProtocol, PanopticTask, class_names, things_without_data


def load(options: PanopticOptions, device: torch.device) -> Loaded:
    folder = options.model or reference_model_path("panoptic")
    checkpoint = load_checkpoint(folder, kind=PANOPTIC_MODELS, dtype=options.dtype, device=device)
    dense, processor = checkpoint.model, checkpoint.processor
    give_task_input(dense, checkpoint.source)
    labels = class_names(dense.config)
    dataset = None
    if options.images is None:
        dataset = open_panoptic_dataset(
            options.dataset,
            labels=labels,
            split=options.split,
            limit=options.limit,
            seed=options.seed,
            size=input_size(processor),
            match=options.match,
        )
    protocol = PanopticProtocol(
        class_names=labels,
        things=things_without_data(labels) if dataset is None else dataset.things,
        threshold=options.threshold,
        overlap=options.overlap,
        match=options.match,
        void="none" if dataset is None else dataset.void,
        seed=options.seed,
    )
    return Loaded(
        options.model or "reference panoptic model",
        dense,
        checkpoint.accel,
        PanopticTask(processor, protocol),
        dataset,
    )
