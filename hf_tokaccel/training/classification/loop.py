"""The training loop: any number of processes, evaluation, checkpoints, and exact resuming.

Everything that is drawn depends on the seed and the place (epoch, image, step) alone, see `seed_of`, so that a run
that was interrupted continues as if it had not been.
"""

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
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

from ...measure.progress import progress_bar
from .data import STEP, Drawn, LabelledImages, Prepared, Steps, seed_of
from .drop_path import DropPath
from .models import Teacher, input_size
from .recipe import Recipe, collate, mix, parameter_groups, train_transform

RUN, LOG = "run.json", "training_log.jsonl"


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
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, for example {name}=1")
        if self.stop_at is not None and self.stop_at < 1:
            raise ValueError(f"stop_at={self.stop_at} must be at least 1, for example stop_at=100")
        if self.keep not in ("best", "last"):
            raise ValueError(f"keep={self.keep!r} must be one of best, last; for example keep='best'")


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


class Run:
    """One training run with its checkpoints.

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
        self.recipe, self.accelerator, self.settings = recipe, accelerator, settings
        self.classes = len(train.classes)
        self._check_batch()
        self.per_epoch = len(train) // recipe.batch_size
        self.total = self.per_epoch * recipe.epochs
        self.state: dict[str, Any] = {"step": 0, "best": None, "seconds": 0.0, "history": []}
        self.work, self.began = Path(settings.work), time.perf_counter()
        stored = self._stored()
        self.ema = None
        if recipe.ema_decay:
            average = get_ema_multi_avg_fn(recipe.ema_decay)
            self.ema = AveragedModel(model, accelerator.device, multi_avg_fn=average, use_buffers=True)
        self.drop_path = DropPath(model, recipe.drop_path)
        groups = parameter_groups(model, recipe)
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2))
        self.plain = model
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if self.ema is not None:
            accelerator.register_for_checkpointing(self.ema)
        self.teacher = teacher.to(accelerator.device) if teacher else None
        shape = (-1, 1, 1)
        self.mean, self.std = (
            torch.tensor(values, device=accelerator.device).view(shape)
            for values in (processor.image_mean, processor.image_std)
        )
        if stored is not None:
            accelerator.load_state(str(self.work / "checkpoint"))
            self.state = stored
            self._cut_log()

    def _check_batch(self) -> None:
        recipe, shares = self.recipe, self.accelerator.num_processes * self.settings.accumulate
        if recipe.batch_size % shares:
            raise ValueError(
                f"batch_size={recipe.batch_size} must be a multiple of {shares}, processes times accumulated parts; "
                f"for example {shares * max(1, round(recipe.batch_size / shares))}"
            )
        if recipe.batch_size > len(self.train_images):
            raise ValueError(
                f"batch_size={recipe.batch_size} must be at most {len(self.train_images)}, as many images as "
                f"{self.train_images.name} has; for example {max(1, len(self.train_images) // 10)}"
            )

    # Checkpoints

    def _identity(self) -> dict[str, Any]:
        # As JSON gives it back, so that a comparison sees no difference of type.
        everything = {**asdict(self.recipe), "seed": self.settings.seed, **self.settings.identity}
        return json.loads(json.dumps(everything))

    def _parts(self) -> list[int]:
        return [self.accelerator.num_processes, self.settings.accumulate]

    def _stored(self) -> dict[str, Any] | None:
        """What the checkpoint says of its run, when that is to be resumed."""
        path = self.work / "checkpoint" / RUN
        if not self.settings.resume:
            if path.is_file():
                raise ValueError(
                    f"{self.work} holds a checkpoint: add --resume to continue it, or choose another --work"
                )
            return None
        if not path.is_file():
            raise ValueError(f"there is no checkpoint in {self.work} to resume from: start without --resume")
        stored = json.loads(path.read_text())
        now, then = self._identity(), stored.pop("identity")
        differ = [
            f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(now.keys() | then.keys())
            if now.get(name) != then.get(name)
        ]
        if differ:
            raise ValueError(
                f"{self.work} was trained with another recipe: {'; '.join(differ)}. Resume with the same options, or "
                "start anew with another --work"
            )
        if (parts := stored.pop("parts")) != self._parts():
            warnings.warn(
                f"the checkpoint is of {parts[0]} processes and {parts[1]} accumulated parts, this run of "
                f"{self._parts()[0]} and {self._parts()[1]}: it sees the same images, but mixes others",
                stacklevel=3,
            )
        return stored

    def seconds(self) -> float:
        """Time that the run took so far, with the parts before it was resumed."""
        return self.state["seconds"] + time.perf_counter() - self.began

    def save(self) -> None:
        """Writes a checkpoint beside the last one and swaps them, so that an interruption leaves one intact."""
        fresh, last = self.work / "checkpoint.new", self.work / "checkpoint"
        self.accelerator.save_state(str(fresh))
        if self.accelerator.is_main_process:
            run = {**self.state, "seconds": self.seconds(), "parts": self._parts(), "identity": self._identity()}
            (fresh / RUN).write_text(json.dumps(run, indent=1))
            shutil.rmtree(last, ignore_errors=True)
            os.replace(fresh, last)
        self.accelerator.wait_for_everyone()

    def log(self, **values: Any) -> None:
        if self.accelerator.is_main_process:
            with (self.work / LOG).open("a") as file:
                file.write(json.dumps({"step": self.state["step"], **values}) + "\n")

    def _cut_log(self) -> None:
        if self.accelerator.is_main_process:
            lines = (self.work / LOG).read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= self.state["step"]]
            (self.work / LOG).write_text("".join(f"{line}\n" for line in kept))

    # Training

    @property
    def evaluated(self) -> PreTrainedModel:
        """The model whose accuracy counts: the averaged one, if there is one."""
        return self.plain if self.ema is None else self.ema.module

    def go(self, say: Callable[[str], None] | None = None) -> bool:
        """Trains to the end or to `stop_at`; whether the end was reached.

        Args:
            say: takes one line per evaluation; None prints them above the progress bar.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        last = min(self.total, self.settings.stop_at or self.total)
        with progress_bar(self.accelerator.is_main_process) as bar:
            task = bar.add_task("training", total=self.total, completed=self.state["step"])
            for number, batch in enumerate(self._loader(last)):
                self._part(number, batch)
                if not self.accelerator.sync_gradients:
                    continue
                step = self.state["step"] = self.state["step"] + 1
                if step % self.settings.log_every == 0:
                    bar.update(task, description=self._log_step())
                bar.advance(task)
                self._after(step, last, say or bar.console.print)
        return self.state["step"] == self.total

    def _loader(self, last: int) -> DataLoader:
        recipe, settings, accelerator = self.recipe, self.settings, self.accelerator
        transform = train_transform(
            recipe, input_size(self.processor), list(self.processor.image_mean), list(self.processor.image_std)
        )
        parts = (accelerator.process_index, accelerator.num_processes, settings.accumulate)
        first = self.state["step"]
        steps = Steps(len(self.train_images), recipe.batch_size, parts, (first, max(first, last)), settings.seed)
        drawn = Drawn(self.train_images, transform, settings.seed)
        options = {"num_workers": settings.workers, "pin_memory": accelerator.device.type == "cuda"}
        return DataLoader(drawn, batch_sampler=steps, collate_fn=collate, **options)

    def _part(self, number: int, batch: tuple[Tensor, Tensor]) -> None:
        """Gradients of one part of a step, and the step itself after the last part."""
        accelerator, step = self.accelerator, self.state["step"]
        place = (step, number % self.settings.accumulate, accelerator.process_index)
        torch.manual_seed(seed_of(STEP, self.settings.seed, *place))
        images, labels = (part.to(accelerator.device, non_blocking=True) for part in batch)
        images, labels = mix(images, labels, self.recipe, self.classes)
        self.model.train()
        with accelerator.accumulate(self.model):
            logits = self.model(pixel_values=images).logits.float()
            self.loss = self._loss(logits, labels, images)
            accelerator.backward(self.loss)
            if not accelerator.sync_gradients:
                return
            clip = self.recipe.clip_grad or math.inf
            self.norm = accelerator.clip_grad_norm_(self.model.parameters(), clip)
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.rate(step, self.per_epoch) * group["scale"]
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.plain)

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

    def _log_step(self) -> str:
        loss, step = self.loss.item(), self.state["step"]
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at step {step}: use a lower lr, for example {self.recipe.lr / 2:g}")
        rate = self.recipe.rate(step - 1, self.per_epoch)
        self.log(loss=round(loss, 5), norm=round(float(self.norm), 4), lr=float(f"{rate:.6g}"))
        return f"epoch {(step - 1) // self.per_epoch + 1}, loss {loss:.3f}"

    def _after(self, step: int, last: int, say: Callable[[str], None]) -> None:
        """Evaluation and checkpoint, where they are due."""
        epoch, rest = divmod(step, self.per_epoch)
        if step == self.total or (rest == 0 and epoch % self.settings.eval_every == 0):
            self._validate(epoch, say)
        if step == last or step % self.settings.save_every == 0:
            self.save()

    def _validate(self, epoch: int, say: Callable[[str], None]) -> None:
        options = {"batch_size": self.settings.eval_batch, "workers": self.settings.workers}
        scores = evaluate(self.evaluated, self.validation, self.processor, self.accelerator, **options)
        self.log(epoch=epoch, validation=scores)
        self.state["history"].append({"epoch": epoch, **scores})
        say(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        best = self.state["best"]
        if self.settings.keep == "best" and (best is None or scores["accuracy"] > best["accuracy"]):
            self.state["best"] = {"epoch": epoch, **scores}
            if self.accelerator.is_main_process:
                torch.save(self.evaluated.state_dict(), self.work / "best.new")
                os.replace(self.work / "best.new", self.work / "best.pt")
            self.accelerator.wait_for_everyone()

    def result(self) -> PreTrainedModel:
        """The trained model, the best or the last as `keep` says, without hooks."""
        self.drop_path.remove()
        model = self.accelerator.unwrap_model(self.evaluated, keep_fp32_wrapper=False)
        if self.settings.keep == "best":
            model.load_state_dict(torch.load(self.work / "best.pt", map_location="cpu", weights_only=True))
        return model
