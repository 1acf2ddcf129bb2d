"""What the evaluation of semantic segmentation loads."""

import torch

from ...checkpoint import load_checkpoint
from ...checks import UserError
from ...images import input_size
from ...reference import reference_model_path
from ..queries import give_task_input
from ..script import Loaded
from .data import open_segmentation_dataset
from .options import SegmentationOptions
from .task import (
    QUERY_MODELS,
    QUERY_PREDICTION,
    SEGMENTATION_MODELS,
    QuerySegmentationTask,
    SegmentationProtocol,
    SegmentationTask,
    choose_windows,
    class_names,
)


def load(options: SegmentationOptions, device: torch.device) -> Loaded:
    folder = options.model or reference_model_path("segmentation")
    checkpoint = load_checkpoint(folder, kind=SEGMENTATION_MODELS, dtype=options.dtype, device=device)
    dense, processor = checkpoint.model, checkpoint.processor
    queries = type(dense.config) in QUERY_MODELS
    if queries:
        give_task_input(dense, checkpoint.source, "semantic")
    windows = choose_windows(dense.config, options.inference, options.crop, options.stride)
    if queries and windows is not None:
        raise UserError(
            f"sliding windows of {windows.crop} do not go with {options.model}, whose queries see whole images: leave "
            "out --crop, --stride and --inference"
        )
    dataset = None
    if options.images is None:
        dataset = open_segmentation_dataset(
            options.dataset,
            num_classes=dense.config.num_labels,
            split=options.split,
            limit=options.limit,
            seed=options.seed,
            size=input_size(processor),
            columns=(options.image_column, options.label_column),
            ignored=options.ignore_label,
            first_ignored=options.reduce_labels,
        )
    protocol = SegmentationProtocol(
        class_names=class_names(dense.config, dataset),
        windows=windows,
        resizes=dataset is not None and dataset.resizes,
        ignored="none" if dataset is None else dataset.ignored,
        seed=options.seed,
        **({"prediction": QUERY_PREDICTION} if queries else {}),
    )
    task = (QuerySegmentationTask if queries else SegmentationTask)(processor, protocol, options.batch_size)
    return Loaded(options.model or "reference segmentation model", dense, checkpoint.accel, task, dataset)
