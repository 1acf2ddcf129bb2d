"""Passes on a GPU that is not there: fake tensors know a device, shapes and dtypes, and no values."""

import contextlib
import copy
import sys
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# dtype of the weights, of autocast.
FORMATS = {
    "bfloat16": (torch.bfloat16, None),
    "float32": (torch.float32, None),
    "float16": (torch.float16, None),
    "autocast to bfloat16": (torch.float32, torch.bfloat16),
    "autocast to float16": (torch.float32, torch.float16),
}


class Waits(TorchDispatchMode):
    """Notes each operator of ours that copies between host and GPU, makes a tensor on the host, or asks for values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if name.startswith("prim"):
            return result
        given, made = (
            [x for x in tree_leaves(part) if isinstance(x, torch.Tensor)] for part in ((args, kwargs), result)
        )
        # A number as a tensor goes along with the launch.
        on_host = [x for x in given if x.device.type == "cpu" and x.dim() > 0]
        on_gpu = any(x.device.type == "cuda" for x in given)
        makes = any(x.device.type == "cpu" and x.dim() > 0 for x in made)
        asks = name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.equal"))
        if (on_host and on_gpu) or makes or asks:
            place = our_place()
            if place is not None:
                self.found.append(f"{place}: {name}")
        return result


def our_place():
    """File and line where the innermost of the host's frames and ours is ours."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/transformers/" in name:
            return None
        if "/hf_tokaccel/" in name:
            return f"{name.rpartition('/hf_tokaccel/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def on_a_gpu(model, dtype, mode):
    """A copy whose weights are fake ones on a GPU."""
    model, made = copy.deepcopy(model), {}

    def fake(x):
        return torch.empty(x.shape, dtype=dtype if x.is_floating_point() else x.dtype, device="cuda")

    with mode:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in made:
                        made[id(parameter)] = nn.Parameter(fake(parameter), requires_grad=False)
                    module._parameters[name] = made[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = fake(buffer)
    return model


def every_format():
    """Parameters of a test; the first format by default, the others where graphs are tested, too."""
    return pytest.mark.parametrize(
        "number_format",
        [pytest.param(name, marks=[pytest.mark.graph] if i else []) for i, name in enumerate(FORMATS)],
    )


def waits(model, run, images, form):
    """What of ours waits for a GPU in `run(model, images)`; also checks that what comes out is there."""
    dtype, autocast = FORMATS[form]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = on_a_gpu(model, dtype, mode)
    # A GPU that is not there is asked for less than it could.
    able = (
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
    )
    with contextlib.ExitStack() as stack:
        for context in (*able, mode, watched := Waits()):
            stack.enter_context(context)
        images = torch.empty(images.shape, dtype=dtype, device="cuda")
        if autocast is not None:
            stack.enter_context(torch.autocast("cuda", dtype=autocast))
            assert torch.is_autocast_enabled("cuda")
        output = run(model, images)
    assert {x.device.type for x in output} == {"cuda"}
    return watched.found
