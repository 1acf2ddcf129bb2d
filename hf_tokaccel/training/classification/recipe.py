"""The training recipe of DeiT, Swin and STViT as plain settings, and what they do to images, rates and parameters."""

import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode, v2

from ...checks import UserError

NO_DECAY = ("relative_position_bias", "position_embeddings", "cls_token", "distillation_token")
# Of the published models by name; 0.1 is DeiT's, whatever its size.
DROP_PATH = {"swin-tiny": 0.2, "swin-small": 0.3, "swin-base": 0.5}
# What images that fill their frame need, and what can be trained on a CPU; chosen for the plain model, by its
# accuracy on the validation split.
_SMALL: dict[str, Any] = {"epochs": 30, "batch_size": 64, "lr": 1.6e-2, "min_lr": 1.6e-4, "warmup_epochs": 2}
_SMALL |= {"eval_crop": 1.0, "crop_scale": 0.8, "flip": 0.0, "randaugment": 0, "color_jitter": 0.0, "erasing": 0.0}
_SMALL |= {"mixup": 0.0, "cutmix": 0.0, "drop_path": 0.0}
# What differs for the data sets that come with the package.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": _SMALL,
    "scenes": _SMALL | {"epochs": 12, "crop_scale": 0.6, "flip": 0.5},
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained; the defaults are those of STViT-R's released logs for ImageNet (section 4.1).

    Args:
        epochs: passes over the training images.
        batch_size: images of one step, over all processes and accumulated parts.
        lr: highest learning rate at a batch of 512, to which the three rates are scaled.
        min_lr: rate that the cosine ends at, likewise.
        warmup_lr: rate that the linear warm-up starts from, likewise.
        warmup_epochs: epochs of warm-up.
        weight_decay: of AdamW, for matrices; never for biases, norms, LayerScale and position tables.
        beta1: of AdamW.
        beta2: of AdamW.
        clip_grad: largest norm of all gradients; 0 for no limit.
        layer_decay: rates of layers shrink by this factor from the head to the embeddings; 1 for off.
        ema_decay: of the averaged weights that are then evaluated and saved; 0 for off.
        label_smoothing: share of the target that is spread over all classes.
        crop_scale: smallest share of the image's area that a training crop covers; 1 takes the whole image.
        flip: probability of a horizontal flip.
        randaugment: operations of RandAugment per image; 0 for off.
        magnitude: of RandAugment, 0 to 10.
        color_jitter: strength of changes of brightness, contrast and saturation. None: 0.4 without RandAugment and
            none with it, as in the published code.
        erasing: probability of random erasing, by noise.
        mixup: alpha of mixup; 0 for off.
        cutmix: alpha of cutmix; 0 for off.
        mix_probability: share of batches that mixup or cutmix changes; where both are on, each in half of these.
        drop_path: stochastic depth of the last layer, from 0 at the first. None: the published rate of a named size,
            or 0.1.
        distill_weight: share of the loss that comes from a teacher, if there is one.
        distill_temperature: that both logits are divided by in that share.
        eval_crop: share of the shorter side that evaluation crops from the centre.

    Raises:
        ValueError: on a value outside of what is written above; the message names a value that works.
    """

    epochs: int = 300
    batch_size: int = 1024
    lr: float = 5e-4
    min_lr: float = 5e-6
    warmup_lr: float = 5e-7
    warmup_epochs: float = 20
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    clip_grad: float = 5.0
    layer_decay: float = 1.0
    ema_decay: float = 0.0
    label_smoothing: float = 0.1
    crop_scale: float = 0.08
    flip: float = 0.5
    randaugment: int = 2
    magnitude: int = 9
    color_jitter: float | None = None
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_probability: float = 1.0
    drop_path: float | None = None
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    eval_crop: float = 0.875

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            self._check(name, self._is(name, int) and getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("flip", "erasing", "mix_probability", "label_smoothing", "distill_weight"):
            self._between(name, 0, 1, "from 0 to 1")
        for name in ("beta1", "beta2", "ema_decay"):
            valid = self._is(name, int, float) and 0 <= getattr(self, name) < 1
            self._check(name, valid, "a number from 0 to below 1")
        for name in ("crop_scale", "eval_crop", "layer_decay"):
            valid = self._is(name, int, float) and 0 < getattr(self, name) <= 1
            self._check(name, valid, "a number above 0, at most 1")
        for name in ("min_lr", "warmup_lr", "warmup_epochs", "weight_decay", "clip_grad", "mixup", "cutmix"):
            self._between(name, 0, math.inf, "of at least 0")
        for name in ("lr", "distill_temperature"):
            valid = self._is(name, int, float) and 0 < getattr(self, name) < math.inf
            self._check(name, valid, "a number above 0")
        self._check("randaugment", self._is("randaugment", int) and self.randaugment >= 0, "a whole number, 0 for off")
        self._check("magnitude", self._is("magnitude", int) and 0 <= self.magnitude <= 10, "a whole number up to 10")
        if self.color_jitter is not None:
            self._between("color_jitter", 0, 1, "from 0 to 1, or None")
        if self.drop_path is not None:
            valid = self._is("drop_path", int, float) and 0 <= self.drop_path < 1
            self._check("drop_path", valid, "a number from 0 to below 1, or None")
        whole = "a number of epochs below those of the training"
        self._check("warmup_epochs", self.warmup_epochs < self.epochs, f"{whole}, {self.epochs}", 0)

    def _is(self, name: str, *types: type) -> bool:
        value = getattr(self, name)
        return isinstance(value, types) and not isinstance(value, bool) and value == value

    def _between(self, name: str, low: float, high: float, allowed: str) -> None:
        valid = self._is(name, int, float) and low <= getattr(self, name) <= high
        self._check(name, valid and getattr(self, name) < math.inf, f"a number {allowed}")

    def _check(self, name: str, valid: bool, allowed: str, example: Any = None) -> None:
        if not valid:
            default = next(field.default for field in fields(self) if field.name == name)
            example = default if example is None else example
            raise UserError(f"{name}={getattr(self, name)!r} must be {allowed}; for example {name}={example}")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step: linear warm-up, then cosine per step."""
        scale, warmup = self.batch_size / 512, round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return scale * (self.warmup_lr + (self.lr - self.warmup_lr) * step / warmup)
        share = (step - warmup) / max(1, self.epochs * steps_per_epoch - warmup)
        return scale * (self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * share)))

    def mixes(self, num_classes: int) -> list[v2.Transform]:
        """Those of mixup and cutmix that are on."""
        kinds = ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
        return [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha and self.mix_probability]


def described(cls: type) -> dict[str, str]:
    """What the docstring of a class says about each of its fields, for the help of a script."""
    text = inspect.getdoc(cls).split("Args:\n")[-1].split("Attributes:\n")[-1].split("\n\n")[0]
    return {name: " ".join(said.split()) for name, said in re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", text, re.M)}


def train_transform(recipe: Recipe, size: tuple[int, int], mean: list[float], std: list[float]) -> v2.Compose:
    """Takes an image uint8 (3, h, w) to a normalised, augmented one (3, H, W)."""
    bicubic, steps = InterpolationMode.BICUBIC, []
    if recipe.crop_scale < 1:
        steps.append(v2.RandomResizedCrop(size, (recipe.crop_scale, 1), interpolation=bicubic, antialias=True))
    else:
        steps.append(v2.Resize(size, interpolation=bicubic, antialias=True))
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip(recipe.flip))
    if recipe.randaugment:
        fill = [round(255 * value) for value in mean]
        # 10 steps of magnitude, as the published number counts them; torchvision counts 30.
        grades = {"magnitude": recipe.magnitude, "num_magnitude_bins": 11}
        steps.append(v2.RandAugment(recipe.randaugment, **grades, interpolation=InterpolationMode.BILINEAR, fill=fill))
    jitter = recipe.color_jitter
    jitter = (0.0 if recipe.randaugment else 0.4) if jitter is None else jitter
    if jitter:
        steps.append(v2.ColorJitter(jitter, jitter, jitter))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    if recipe.erasing:
        steps.append(v2.RandomErasing(recipe.erasing, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random"))
    return v2.Compose(steps)


def mix(images: Tensor, labels: Tensor, recipe: Recipe, num_classes: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W), and labels (B,) as they are or, where the batch was mixed, as shares (B, classes)."""
    kinds = recipe.mixes(num_classes)
    if kinds and torch.rand(()) < recipe.mix_probability:
        images, labels = kinds[int(torch.randint(len(kinds), ()))](images, labels)
    return images, labels


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The transformer layers of a model in order, as the modules that hold attention, MLP and a LayerNorm before."""
    parts = ("attention", "mlp", "layernorm_before")
    return [(name, layer) for name, layer in model.named_modules() if all(hasattr(layer, part) for part in parts)]


def _depths(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Parameters with the number of layers up to theirs; what follows the last layer has one more."""
    layers = [name for name, _ in blocks(model)]
    numbers = {name: number for number, name in enumerate(layers, 1)}
    depth = 0
    for name, parameter in model.named_parameters():
        own = next((numbers[layer] for layer in layers if name.startswith(f"{layer}.")), None)
        if own is None and depth == len(layers):
            own = depth + 1
        depth = max(depth, own or 0)
        yield name, parameter, own if own is not None else depth


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups for AdamW with their weight decay and, as `scale`, the factor of their learning rate."""
    groups: dict[tuple, dict[str, Any]] = {}
    last = len(blocks(model)) + 1
    for name, parameter, depth in _depths(model):
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(".bias") or any(word in name for word in NO_DECAY)
        key = (0.0 if plain else recipe.weight_decay, recipe.layer_decay ** (last - depth))
        groups.setdefault(key, {"params": [], "weight_decay": key[0], "scale": key[1]})["params"].append(parameter)
    return list(groups.values())


def collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and labels (B,) of a batch."""
    images, labels = default_collate(items)
    return images.as_subclass(Tensor), labels
