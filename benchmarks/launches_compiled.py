"""The kernels that torch.compile makes for a GPU, on a machine without one: the code is generated and not run.

Inductor asks the driver for what it has; here an H100 is said to be there. It reaches into PyTorch's internals, so it
is written for the version that the project is developed with and used by nothing but `benchmarks.launches`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest import mock

import torch
import torch._inductor.config
from torch import Tensor, fx
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes, view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    L2_cache_size=50 << 20,
    gcnArchName="",
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
)


def compiled(functions: dict[str, Callable[[Tensor], Tensor]], shape: tuple[int, ...]) -> dict[str, int]:
    """Kernels of each function of one bfloat16 tensor; a graph makes its index tables anew, so they are counted."""
    modes = {name: FakeTensorMode() for name in functions}
    graphs = {name: _trace(function, shape, modes[name]) for name, function in functions.items()}
    with _as_on_an_h100():
        return {name: _count(_generate(*graphs[name], modes[name])) for name in functions}


def _trace(function: Callable, shape: tuple[int, ...], mode: FakeTensorMode) -> tuple[fx.GraphModule, list[Tensor]]:
    with mode, torch.no_grad(), mock.patch("torch.compiler.is_compiling", return_value=True):
        x = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        graph = make_fx(lambda x: function(x), decomposition_table=select_decomp_table())(x)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, [x]


def _generate(graph: fx.GraphModule, inputs: list[Tensor], mode: FakeTensorMode) -> str:
    tracing = torch._guards.tracing(torch._guards.TracingContext(mode))
    with tracing, V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        view_to_reshape(graph)
        post_grad_passes(graph, True)
        lowering = GraphLowering(graph, example_inputs=inputs, is_inference=True)
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            code = lowering.codegen()[0]
    return getattr(code, "value", code)


def _count(code: str) -> int:
    total = len(re.findall(r"^\s+triton_\w+\.run\(", code, re.M))
    for name in re.findall(r"(?:extern_kernels|torch\.ops\.aten)\.(\w+)(?:\.\w+)?\(", code):
        total += {"sort": 3, "baddbmm": 2}.get(name, 1)
    return total


@contextlib.contextmanager
def _as_on_an_h100() -> Iterator[None]:
    import triton
    from torch._dynamo.device_interface import CudaInterface
    from triton.backends.compiler import GPUTarget

    def says(value):
        return lambda *args, **kwargs: value

    driver = SimpleNamespace(
        get_current_target=says(GPUTarget("cuda", 90, 32)),
        get_current_device=says(0),
        get_current_stream=says(0),
        get_active_torch_device=says(torch.device("cuda", 0)),
        map_python_to_cpp_type=lambda name: name,
    )
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": H100,
        "get_device_capability": (9, 0),
        "get_device_name": H100.name,
        "is_bf16_supported": True,
        "synchronize": None,
        "set_device": None,
        "_lazy_init": None,
    }
    interface = {
        "is_available": True,
        "current_device": 0,
        "device_count": 1,
        "get_compute_capability": 90,
        "get_device_properties": H100,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
    }
    with contextlib.ExitStack() as stack:
        for name, value in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, says(value)))
        for name, value in interface.items():
            stack.enter_context(mock.patch.object(CudaInterface, name, staticmethod(says(value))))
        for name, value in (("get_device_properties", H100), ("current_device", 0)):
            stack.enter_context(mock.patch.object(CudaInterface.Worker, name, staticmethod(says(value))))
        stack.enter_context(mock.patch.object(torch.cuda, "_initialized", True))
        # Whoever compiled before in this process has been told that there is none.
        stack.enter_context(mock.patch("torch._inductor.scheduler.has_triton", return_value=True))
        stack.enter_context(torch._inductor.config.patch(compile_threads=1, fx_graph_cache=False))
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", driver))
        yield
