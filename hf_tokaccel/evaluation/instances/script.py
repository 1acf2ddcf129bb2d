"""What the evaluation of objects loads."""

import torch

from ...checkpoint import load_checkpoint
from ...images import input_size
from ...reference import reference_model_path
from ..queries import give_task_input
from ..script import Loaded
from .data import match_categories, open_instance_dataset
from .options import InstanceOptions
from .task import INSTANCE_MODELS, InstanceProtocol, InstanceTask


def load(options: InstanceOptions, device: torch.device) -> Loaded:
    folder = options.model or reference_model_path("panoptic")
    checkpoint = load_checkpoint(folder, kind=INSTANCE_MODELS, dtype=options.dtype, device=device)
    dense, processor = checkpoint.model, checkpoint.processor
    give_task_input(dense, checkpoint.source, "instance")
    id2label, dataset = dense.config.id2label, None
    categories, labels = dict(id2label), {label: label for label in id2label}
    if options.images is None:
        dataset = open_instance_dataset(
            options.dataset,
            split=options.split,
            limit=options.limit,
            seed=options.seed,
            size=input_size(processor),
            image_folder=options.image_folder,
        )
        categories, labels = dataset.categories, match_categories(id2label, dataset.categories)
    task = InstanceTask(dense, processor, InstanceProtocol(categories, labels))
    if dataset is not None:
        task.check_dataset(dataset)
    return Loaded(options.model or "reference panoptic model", dense, checkpoint.accel, task, dataset)
