"""A run that trains a classifier: its settings, its evaluation, and what the loop has to know of it.

Everything that is drawn depends on the seed and the place (epoch, image, step) alone, see `seed_of`.
"""

import json
import math
import os
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ...checks import UserError
from ..loop import Loop
from .data import STEP, Drawn, LabelledImages, Prepared, Steps, seed_of
from .drop_path import DropPath
from .models import Teacher, input_size
from .recipe import Recipe, collate, mix, parameter_groups, train_transform


@dataclass
class Settings:
    """How a run goes, beside its recipe.

    Attributes:
        work: folder for checkpoint, best weights and log.
        seed: of what is drawn while training; the model was drawn before.
        accumulate: parts that each step is cut into.
        workers: processes that load data, per process.
        eval_every: epochs between two evaluations; the last epoch is always evaluated.
        eval_batch: images of a batch of the evaluation, per process.
        keep: `"best"` or `"last"`: the weights that remain.
        log_every: steps between two lines of the log.
        save_every: steps between two checkpoints; there is always one when the run ends or stops.
        stop_at: step to stop at before the end, with a checkpoint.
        resume: whether to continue from the checkpoint in `work`.
        identity: what a run must have in common with the checkpoint it resumes from, beside recipe and seed.
    """

    work: Path
    seed: int = 0
    accumulate: int = 1
    workers: int = 0
    eval_every: int = 1
    eval_batch: int = 256
    keep: str = "best"
    log_every: int = 50
    save_every: int = 1000
    stop_at: int | None = None
    resume: bool = False
    identity: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("accumulate", "eval_every", "eval_batch", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1, for example {name}=1")
        if self.stop_at is not None and self.stop_at < 1:
            raise UserError(f"stop_at={self.stop_at} must be at least 1, for example stop_at=100")
        if self.keep not in ("best", "last"):
            raise UserError(f"keep={self.keep!r} must be one of best, last; for example keep='best'")


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    images: LabelledImages,
    processor: Any,
    accelerator: Accelerator,
    *,
    batch_size: int = 256,
    workers: int = 0,
) -> dict[str, float]:
    """Accuracy, top-5 accuracy (with more than 5 classes) and loss; each image counts once on any number of processes.

    Args:
        model: on the accelerator's device, without the wrapper of several processes.
        images: what is told apart.
        processor: image processor of the model.
        accelerator: with `even_batches=False`; all of its processes must call this.
        batch_size: images per batch and process.
        workers: processes that load data, per process.
    """
    training = model.training
    model.eval()
    loader = DataLoader(Prepared(images, processor), batch_size=batch_size, num_workers=workers, collate_fn=collate)
    hits = torch.zeros(2, dtype=torch.int64, device=accelerator.device)
    loss = torch.zeros((), dtype=torch.float32, device=accelerator.device)
    ranks = 5 if len(images.classes) > 5 else 1
    for pixels, labels in accelerator.prepare(loader):
        logits = model(pixel_values=pixels).logits.float()
        right = logits.topk(ranks).indices == labels[:, None]
        hits += torch.stack((right[:, 0].sum(), right.sum()))
        loss += F.cross_entropy(logits, labels, reduction="sum")
    if accelerator.num_processes > 1:
        hits, loss = accelerator.reduce(hits, "sum"), accelerator.reduce(loss, "sum")
    model.train(training)
    top1, top5 = (hits.double() / len(images)).tolist()
    return {"accuracy": top1, **({"top5": top5} if ranks == 5 else {}), "loss": loss.item() / len(images)}


class Run(Loop):
    """One run of the training loop.

    Args:
        model: to be trained, on the CPU.
        processor: its image processor.
        train: images.
        validation: images.
        recipe: with no value left open.
        accelerator: from `make_accelerator`.
        settings: how the run goes.
        teacher: to learn from.

    Raises:
        ValueError: The batch does not divide among processes and parts or is larger than the data; there is no
            checkpoint to resume from, or one of another recipe; or there is one, and it should not be resumed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        train: LabelledImages,
        validation: LabelledImages,
        recipe: Recipe,
        accelerator: Accelerator,
        settings: Settings,
        teacher: Teacher | None = None,
    ) -> None:
        self.processor, self.train_images, self.validation = processor, train, validation
        self.recipe, self.classes = recipe, len(train.classes)
        self.per_epoch = len(train) // recipe.batch_size
        clip, parts = recipe.clip_grad or math.inf, settings.accumulate
        super().__init__(accelerator, settings, self.per_epoch * recipe.epochs, clip=clip, parts=parts)
        self._check_batch()
        self.state |= {"best": None, "history": []}
        # As JSON gives it back, so that a comparison sees no difference of type.
        everything = {**asdict(recipe), "seed": settings.seed, **settings.identity}
        self.known = {"parts": [accelerator.num_processes, parts], "identity": json.loads(json.dumps(everything))}
        stored = self._stored()
        self.ema = None
        if recipe.ema_decay:
            average = get_ema_multi_avg_fn(recipe.ema_decay)
            self.ema = AveragedModel(model, accelerator.device, multi_avg_fn=average, use_buffers=True)
        self.drop_path = DropPath(model, recipe.drop_path)
        groups = parameter_groups(model, recipe)
        self.prepare(model, torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2)))
        if self.ema is not None:
            accelerator.register_for_checkpointing(self.ema)
        self.teacher = teacher.to(accelerator.device) if teacher else None
        shape = (-1, 1, 1)
        self.mean, self.std = (
            torch.tensor(values, device=accelerator.device).view(shape)
            for values in (processor.image_mean, processor.image_std)
        )
        if stored is not None:
            self.restore(stored)

    def _check_batch(self) -> None:
        recipe, shares = self.recipe, self.accelerator.num_processes * self.settings.accumulate
        if recipe.batch_size % shares:
            raise UserError(
                f"batch_size={recipe.batch_size} must be a multiple of {shares}, processes times accumulated parts; "
                f"for example {shares * max(1, round(recipe.batch_size / shares))}"
            )
        if recipe.batch_size > len(self.train_images):
            raise UserError(
                f"batch_size={recipe.batch_size} must be at most {len(self.train_images)}, as many images as "
                f"{self.train_images.name} has; for example {max(1, len(self.train_images) // 10)}"
            )

    def _stored(self) -> dict[str, Any] | None:
        """What the checkpoint says of its run, when that is to be resumed."""
        if not self.settings.resume:
            self.check_new()
            return None
        stored = self.stored()
        now, then = self.known["identity"], stored["identity"]
        differ = [
            f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(now.keys() | then.keys())
            if now.get(name) != then.get(name)
        ]
        if differ:
            raise UserError(
                f"{self.work} was trained with another recipe: {'; '.join(differ)}. Resume with the same options, or "
                "start anew with another --work"
            )
        if (parts := stored["parts"]) != self.known["parts"]:
            processes, accumulated = self.known["parts"]
            warnings.warn(
                f"the checkpoint is of {parts[0]} processes and {parts[1]} accumulated parts, this run of {processes} "
                f"and {accumulated}: it sees the same images, but mixes others",
                stacklevel=3,
            )
        return stored

    @property
    def evaluated(self) -> PreTrainedModel:
        """The model whose accuracy counts: the averaged one, if there is one."""
        return self.plain if self.ema is None else self.ema.module

    def batches(self, last: int) -> DataLoader:
        recipe, settings, accelerator = self.recipe, self.settings, self.accelerator
        transform = train_transform(
            recipe, input_size(self.processor), list(self.processor.image_mean), list(self.processor.image_std)
        )
        parts = (accelerator.process_index, accelerator.num_processes, settings.accumulate)
        span = (self.step, max(self.step, last))
        steps = Steps(len(self.train_images), recipe.batch_size, parts, span, settings.seed)
        drawn = Drawn(self.train_images, transform, settings.seed)
        options = {"num_workers": settings.workers, "pin_memory": accelerator.device.type == "cuda"}
        return DataLoader(drawn, batch_sampler=steps, collate_fn=collate, **options)

    def loss(self, batch: tuple[Tensor, Tensor], part: int) -> Tensor:
        accelerator = self.accelerator
        torch.manual_seed(seed_of(STEP, self.settings.seed, self.step, part, accelerator.process_index))
        images, labels = (values.to(accelerator.device, non_blocking=True) for values in batch)
        images, labels = mix(images, labels, self.recipe, self.classes)
        logits = self.model(pixel_values=images).logits.float()
        return self._loss(logits, labels, images)

    def _loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        if self.teacher is None:
            return loss
        heat, weight = self.recipe.distill_temperature, self.recipe.distill_weight
        with self.accelerator.autocast():
            target = self.teacher.logits(images, self.mean, self.std)
        target, own = ((values.float() / heat).log_softmax(-1) for values in (target, logits))
        distance = F.kl_div(own, target, reduction="batchmean", log_target=True) * heat**2
        return (1 - weight) * loss + weight * distance

    def rate(self, step: int, optimizer: torch.optim.Optimizer) -> float:
        return self.recipe.rate(step, self.per_epoch)

    def place(self) -> dict[str, Any]:
        return {"epoch": -(-self.step // self.per_epoch)}

    def updated(self) -> None:
        if self.ema is not None:
            self.ema.update_parameters(self.plain)

    def evaluation_due(self) -> bool:
        epoch, rest = divmod(self.step, self.per_epoch)
        return self.step == self.total or (rest == 0 and epoch % self.settings.eval_every == 0)

    def evaluate(self) -> str:
        options = {"batch_size": self.settings.eval_batch, "workers": self.settings.workers}
        scores = evaluate(self.evaluated, self.validation, self.processor, self.accelerator, **options)
        self.log(validation=scores)
        scored = {**self.place(), **scores}
        self.state["history"].append(scored)
        best = self.state["best"]
        if self.settings.keep == "best" and (best is None or scores["accuracy"] > best["accuracy"]):
            self.state["best"] = scored
            if self.accelerator.is_main_process:
                torch.save(self.evaluated.state_dict(), self.work / "best.new")
                os.replace(self.work / "best.new", self.work / "best.pt")
            self.accelerator.wait_for_everyone()
        return f"epoch {scored['epoch']}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())

    def result(self) -> PreTrainedModel:
        """The trained model, the best or the last as `keep` says, without hooks."""
        self.drop_path.remove()
        model = self.accelerator.unwrap_model(self.evaluated, keep_fp32_wrapper=False)
        if self.settings.keep == "best":
            model.load_state_dict(torch.load(self.work / "best.pt", map_location="cpu", weights_only=True))
        return model
