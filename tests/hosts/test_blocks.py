"""Blocks are modules while accelerated: what is done to them every day does what it does to native ones."""

import functools
from pathlib import Path

import fresh
import pytest
import torch
from accelerate.utils import compile_regions, has_compiled_regions
from adaptive_family import ADAPTIVE
from family import ACCEL
from test_vit import ViTTester
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import ViTForImageClassification

import hf_tokaccel as ta

run = ViTTester.run

# Two processes by `fork`, which the fresh one does itself.
SHARDED = """
import os, sys
sys.path[:0] = sys.argv[2].split(os.pathsep)
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from test_blocks import build, step
folder = sys.argv[1]
rank = int(os.fork() == 0)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for name in ("grid", "adaptive"):
    model = build(name)
    for block in model.vit.layers:
        fully_shard(block)
    fully_shard(model)
    assert type(model.vit.layers[1]).__name__ == "FSDPViTLayer"
    step(model, slice(2 * rank, 2 * rank + 2))
    whole = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
    if rank == 0:
        torch.save(whole, f"{folder}/{name}.pt")
dist.barrier()
dist.destroy_process_group()
if rank == 0:
    assert os.wait()[1] == 0
"""


def build(name=None):
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTTester().config()).eval()
    return model if name is None else ta.accelerate(model, {"grid": ACCEL, "adaptive": ADAPTIVE}[name])


def step(model, part):
    """One step of gradient descent on a part of four images."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.tensor([0, 3, 1, 2])[part]
    nn.functional.cross_entropy(model(ViTTester().images(4)[part]).logits, labels).backward()
    optimizer.step()


@pytest.fixture(params=["grid", "adaptive"])
def name(request):
    return request.param


@pytest.mark.process
def test_a_step_of_two_processes_that_share_each_block_is_that_of_one(tmp_path):
    paths = map(str, (Path(__file__).parent, Path(__file__).parents[1], Path(__file__).parents[1] / "models"))
    done = fresh.run(["-c", SHARDED, tmp_path, ":".join(paths)], env={"GLOO_SOCKET_IFNAME": "lo"})
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("grid", "adaptive"):
        before, model = build(name).state_dict(), build(name)
        step(model, slice(4))
        sharded, after = torch.load(tmp_path / f"{name}.pt"), model.state_dict()
        assert sharded.keys() == after.keys()
        for key, value in after.items():
            torch.testing.assert_close(sharded[key], value, rtol=1e-4, atol=1e-5)
        assert max((after[key] - before[key]).abs().max() for key in after) > 1e-2


def test_they_are_printed_indexed_sliced_and_run_as_native_ones_are(name):
    native, fast = build(), build(name)
    assert str(fast).replace("TokAccel", "") == str(native)
    layers = fast.vit.layers
    assert all(isinstance(block, nn.Module) and isinstance(block, type(native.vit.layers[0])) for block in layers)
    assert [id(block) for block in layers] == [id(layers[index]) for index in range(4)]
    assert isinstance(layers[:3], nn.ModuleList)
    with torch.no_grad():
        states = native.vit.embeddings(ViTTester().images())
        expected = nn.Sequential(*native.vit.layers)(states)
        assert torch.equal(nn.Sequential(*layers)(states), expected)


def test_a_list_that_was_shortened_is_an_error_that_says_what_to_do(name):
    fast = build(name)
    fast.vit.layers = fast.vit.layers[:3]
    with pytest.raises(RuntimeError, match=r"3 of 4 blocks ran.*before hf_tokaccel\.accelerate.*num_hidden_layers"):
        run(fast, ViTTester().images())
    native = build()
    native.vit.layers, native.config.num_hidden_layers = native.vit.layers[:3], 3
    native.vit.config.num_hidden_layers = 3
    shorter = ta.accelerate(native, ACCEL)
    assert len(shorter.vit.layers) == 3
    assert run(shorter, ViTTester().images())[0].isfinite().all()


def test_blocks_that_are_checkpointed_one_by_one_run_again_and_give_the_same_gradients(name):
    gradients, calls = [], []
    for chosen in ((), (1, 3)):
        model, seen = build(name).train(), []
        for index, block in enumerate(model.vit.layers):
            block.mlp.register_forward_pre_hook(lambda m, i, index=index, seen=seen: seen.append(index))
            if index in chosen:
                block.gradient_checkpointing = True
                block._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
        model(ViTTester().images()).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        calls.append([seen.count(index) for index in range(4)])
    assert calls == [[1, 1, 1, 1], [1, 2, 1, 2]]
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.graph
def test_regions_are_compiled_block_by_block():
    torch._dynamo.reset()
    fast, images = build("adaptive"), ViTTester().images()
    expected = run(fast, images)
    compiled = compile_regions(fast, backend="eager")
    assert has_compiled_regions(compiled)
    assert ["_orig_mod" in vars(block)["_modules"] for block in compiled.vit.layers] == [True] * 4
    assert all(torch.equal(a, b) for a, b in zip(run(compiled, images), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(run(fast, images), expected, strict=True))
