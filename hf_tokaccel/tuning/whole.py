"""FLOPs of a whole model, from its configuration alone: what an encoder saves is a share of them."""

from __future__ import annotations

import inspect
import json
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from transformers import AutoModel, PreTrainedConfig

from ..checks import UserError, first_line
from ..hosts.blocks import Grid
from ..hosts.convert import to_native_config
from ..measure.flops import gflops_of_shape
from ..registry import FAMILIES, native_class
from .images import other_inputs


def whole_flops(config: PreTrainedConfig, image_size: Grid) -> float | None:
    """FLOPs of a dense model for an image (height, width), with heads and decoders.

    The model is the class that `architectures` of the configuration names, else the one without a head, or where
    there is none the family's first; it is built without weights. None for models that need more than images, such as
    texts, which have no one size.
    """
    native = to_native_config(config)
    values = json.dumps(native.to_dict(), sort_keys=True, default=str)
    return _count(type(native), values, tuple(native.architectures or ()), tuple(image_size))


@lru_cache(maxsize=64)
def _count(config_class: type[PreTrainedConfig], values: str, architectures: tuple[str, ...], size: Grid) -> float:
    config = config_class.from_dict(json.loads(values))
    config.architectures = list(architectures)
    with torch.device("meta"):
        make = _model_class(config)
        model = None if make is None else make(config).eval()
    if model is None or _needs_more(model):
        return None
    try:
        return 1e9 * gflops_of_shape(model, size, _inputs)
    except (RuntimeError, ValueError) as error:
        if not isinstance(error, DataDependentOutputException):
            raise UserError(
                f"image_size={size} is not valid: {type(model).__name__} cannot run at it ({first_line(error)}); give "
                "the size that its processor or configuration names."
            ) from error
        # Some hosts look at values: these run for real, whatever the values are.
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.zero_()
        return 1e9 * gflops_of_shape(model, size, _inputs)


def _model_class(config: PreTrainedConfig) -> Any:
    names = config.architectures or ()
    family = FAMILIES.get(config.model_type)
    natives = [native_class(cls) for cls in family.models] if family else []
    own = {cls.__name__: cls for cls in natives if cls is not None}
    for name in names:
        name = name.removeprefix("TokAccel")
        found = own.get(name) or getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    if type(config) in AutoModel._model_mapping:
        return AutoModel.from_config
    return next(iter(own.values()), None)


def _needs_more(model: nn.Module) -> bool:
    """Whether a call needs more than images, and points that we can make up."""
    parameters = inspect.signature(model.forward).parameters
    return "input_ids" in parameters or model.main_input_name != "pixel_values"


def _inputs(model: nn.Module, images: Tensor) -> dict[str, Any]:
    backbone = getattr(model.config, "backbone_config", None) or model.config
    channels, frames = getattr(backbone, "num_channels", 3), getattr(model.config, "num_frames", None)
    images = images[:, :1].expand(-1, channels, -1, -1)
    if frames:
        images = images[:, None].expand(-1, frames, -1, -1, -1)
    return {"pixel_values": images, **other_inputs(model, images)}
