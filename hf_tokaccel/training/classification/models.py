"""Models to train, named sizes or stored ones, plain or with semantic tokens, and their image processors."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    SwinConfig,
    ViTConfig,
    ViTImageProcessor,
)

from ...auto import accelerate, accelerate_config
from ...checks import UserError, first_line
from ...semantic.modeling import SemanticConfig
from ...settings.methods import as_accel
from ...settings.semantic import SemanticTokenConfig
from ...upstream import auto_models

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def _vit(width: int, heads: int, **others: Any) -> tuple[type, dict[str, Any]]:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    # DeiT's, which differs from the default of Transformers.
    return ViTConfig, {**sizes, "num_hidden_layers": 12, "layer_norm_eps": 1e-6, **others}


def _swin(width: int, depths: Sequence[int], heads: Sequence[int], **others: Any) -> tuple[type, dict[str, Any]]:
    return SwinConfig, {"embed_dim": width, "depths": list(depths), "num_heads": list(heads), **others}


# Narrow matrices that start at the usual 0.02 learn much more slowly.
_MICRO = {"image_size": 64, "initializer_range": 0.1}
# DeiT without distillation token is a ViT, also on the Hub. The micro ones are for CPUs.
SIZES: dict[str, tuple[type, dict[str, Any]]] = {
    "deit-tiny": _vit(192, 3),
    "deit-small": _vit(384, 6),
    "deit-base": _vit(768, 12),
    "deit-micro": _vit(64, 2, patch_size=8, **_MICRO),
    "swin-tiny": _swin(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin-small": _swin(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin-base": _swin(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin-micro": _swin(24, (1, 1, 6, 1), (1, 2, 4, 8), patch_size=2, window_size=4, **_MICRO),
}


def build_model(
    name: str,
    classes: Sequence[str],
    *,
    accel: SemanticTokenConfig | dict | None = None,
    dense: bool = False,
    image_size: int | None = None,
) -> PreTrainedModel:
    """A classifier to be trained.

    Args:
        name: one of `SIZES`, random from the current state of torch; else a folder or Hub id.
        classes: their names.
        accel: the setting of semantic tokens; None for the family's defaults, or what is stored.
        dense: whether the plain model is meant.
        image_size: in pixels, of a named size.

    Raises:
        ValueError: There is no such model, it is no classifier, or the setting does not fit it.
    """
    setting = as_accel(accel)
    if setting is not None and not isinstance(setting, SemanticTokenConfig):
        raise UserError(f"method={setting.method!r} needs no training: give a setting with method='semantic_tokens'")
    if dense and setting is not None:
        raise UserError("a dense model has no semantic tokens: leave out either --dense or --accel")
    labels = {"id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}
    if name in SIZES:
        return _from_size(name, labels, setting, dense, image_size)
    config = _stored_config(name)
    if image_size not in (None, config.image_size):
        raise UserError(
            f"model {name!r} is for images of {config.image_size} pixels: leave out image_size={image_size}"
        )
    stored = isinstance(config, SemanticConfig)
    if stored and dense:
        raise UserError(f"model {name!r} was trained with semantic tokens: --dense needs a plain one")
    if stored and setting is not None and config.resolve_accel(setting).to_dict() != config.accel:
        raise UserError(f"model {name!r} has semantic tokens already, with another setting: leave out --accel")
    model = _load(name, config, labels)
    return model if dense or stored else accelerate(model, setting or SemanticTokenConfig())


def _from_size(
    name: str, labels: dict, setting: SemanticTokenConfig | None, dense: bool, image_size: int | None
) -> PreTrainedModel:
    cls, values = SIZES[name]
    if image_size is not None:
        values = values | {"image_size": image_size}
    # Stochastic depth is a part of the recipe, see `DropPath`.
    config = cls(**values, **labels, **({"drop_path_rate": 0.0} if cls is SwinConfig else {}))
    patch = config.patch_size
    if config.image_size % patch:
        whole = max(1, round(config.image_size / patch)) * patch
        raise UserError(
            f"image_size={config.image_size} must be a multiple of {name}'s patch size {patch}; for example {whole}"
        )
    if not dense:
        config = accelerate_config(config, setting or SemanticTokenConfig())
    return AutoModelForImageClassification.from_config(config)


def _stored_config(name: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {name!r} is neither a known size ({', '.join(SIZES)}) nor can it be loaded: {first_line(error)}"
        ) from error
    if not auto_models(AutoModelForImageClassification, type(config)):
        raise UserError(f"model {name!r} is of type {config.model_type!r}, which classifies no images")
    return config


def _load(name: str, config: PreTrainedConfig, labels: dict) -> PreTrainedModel:
    same = list(config.id2label.values()) == list(labels["id2label"].values())
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    if not same:
        options |= {**labels, "ignore_mismatched_sizes": True}
    if hasattr(config, "drop_path_rate"):
        options["drop_path_rate"] = 0.0
    model, info = AutoModelForImageClassification.from_pretrained(name, **options)
    if not same:
        _fresh_head(model)
    fresh = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if fresh or not same:
        what = ", ".join(fresh) or "the head, whose classes are others,"
        warnings.warn(f"model {name!r}: {what} starts untrained", stacklevel=3)
    return model


def _fresh_head(model: PreTrainedModel) -> None:
    """Other classes are other rows, also where there happen to be as many."""
    with torch.no_grad():
        for module in model.classifier.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=model.config.initializer_range)
                nn.init.zeros_(module.bias)


def build_processor(name: str, eval_crop: float, image_size: int | None = None) -> Any:
    """The image processor of a stored model; of a named size one that crops the share `eval_crop` of the shorter side.

    Raises:
        ValueError: There is none.
    """
    if name not in SIZES:
        _stored_config(name)
        try:
            return AutoImageProcessor.from_pretrained(name)
        except OSError as error:
            raise UserError(f"model {name!r} has no image processor: {first_line(error)}") from error
    side = SIZES[name][1].get("image_size", 224) if image_size is None else image_size
    whole = {"height": side, "width": side}
    if eval_crop == 1:
        return ViTImageProcessor(size=whole, resample=3, **IMAGENET)
    shorter = {"shortest_edge": int(side / eval_crop)}
    return ViTImageProcessor(size=shorter, resample=3, do_center_crop=True, crop_size=whole, **IMAGENET)


def input_size(processor: Any) -> tuple[int, int]:
    """(height, width) in pixels of what an image processor gives."""
    size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
    side = size.get("shortest_edge")
    return (int(side), int(side)) if side else (int(size["height"]), int(size["width"]))


def check_classes(name: str, config: PreTrainedConfig, classes: Sequence[str]) -> None:
    """ValueError where a trained model tells other classes apart than a data set."""
    theirs = [config.id2label[i] for i in range(config.num_labels)]
    if theirs != list(classes):
        raise UserError(
            f"model {name!r} tells other classes apart ({', '.join(theirs[:5])}; {len(theirs)} in all) than the data "
            f"({', '.join(classes[:5])}; {len(classes)} in all): use one that was trained on the same data"
        )


@dataclass
class Teacher:
    """A trained classifier whose logits a student learns from, and how its images are normalised.

    Attributes:
        model: the classifier.
        mean: of its image processor.
        std: likewise.
        size: of its input, (height, width) in pixels.
    """

    model: nn.Module
    mean: Tensor
    std: Tensor
    size: tuple[int, int]

    @classmethod
    def load(cls, name: str, classes: Sequence[str]) -> "Teacher":
        """A teacher from a folder or Hub id.

        Raises:
            ValueError: It cannot be loaded, or tells other classes apart.
        """
        config = _stored_config(name)
        check_classes(name, config, classes)
        model = AutoModelForImageClassification.from_pretrained(name, dtype=torch.float32).eval().requires_grad_(False)
        processor = AutoImageProcessor.from_pretrained(name)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (processor.image_mean, processor.image_std))
        return cls(model, mean, std, input_size(processor))

    @torch.no_grad()
    def logits(self, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) that are normalised by another mean and deviation (3, 1, 1)."""
        images = images * (std / self.std) + (mean - self.mean) / self.std
        if tuple(images.shape[-2:]) != self.size:
            images = nn.functional.interpolate(images, self.size, mode="bicubic", antialias=True)
        return self.model(pixel_values=images).logits

    def to(self, device: torch.device) -> "Teacher":
        return Teacher(self.model.to(device), self.mean.to(device), self.std.to(device), self.size)
