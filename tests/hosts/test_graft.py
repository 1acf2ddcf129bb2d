"""What is bound to a model stays with it, and what replaces it has its own, as with `copy.deepcopy`."""

import copy
import functools
import types

import pytest
import torch
from adaptive_family import ADAPTIVE
from family import ACCEL
from test_vit import ViTTester
from transformers import ViTForImageClassification

import hf_tokaccel as ta

VIT = ViTTester()
COMPILE = functools.partial(torch.compile, backend="eager")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ViTForImageClassification(VIT.config()).eval()


@pytest.fixture
def images():
    return VIT.images()


def equal(actual, expected):
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def whole(model):
    model.compile(backend="eager")


def part(model):
    model.vit.compile(backend="eager")


def every_block(model):
    for block in model.vit.layers:
        block.compile(backend="eager")


def wrapped_blocks(model):
    layers = model.vit.layers
    for index, block in enumerate(layers):
        layers[index] = COMPILE(block)


def wrapped_head(model):
    model.classifier = COMPILE(model.classifier)


@pytest.mark.graph
@pytest.mark.parametrize("how", [whole, part, every_block, wrapped_blocks, wrapped_head], ids=lambda how: how.__name__)
def test_what_was_compiled_does_not_run_the_model_that_it_was_made_from(model, images, how):
    torch._dynamo.reset()
    dense, fast = VIT.run(model, images), ta.accelerate(model, ADAPTIVE)
    clustered, names = VIT.run(fast, images), [name for name, _ in model.named_parameters()]
    how(model)
    how(fast)
    for same in (copy.deepcopy(model), ta.to_native(fast), ta.accelerate(fast, None), model):
        assert equal(VIT.run(same, images), dense)
    for same in (copy.deepcopy(fast), ta.accelerate(model, ADAPTIVE), ta.accelerate(fast, ADAPTIVE), fast):
        assert equal(VIT.run(same, images), clustered)
    taken = ta.accelerate(model, ADAPTIVE).named_parameters()
    assert [name.replace("_orig_mod.", "") for name, _ in taken] == names


def test_methods_and_hooks_of_a_part_are_those_of_its_counterpart(model, images):
    attention, seen = model.vit.layers[2].attention, []

    def doubled(self, states, *args, **kwargs):
        output, weights = type(self).forward(self, states, *args, **kwargs)
        return 2 * output, weights

    def note(self, module, *args):
        seen.append((self, module))

    attention.forward = types.MethodType(doubled, attention)
    attention.note = types.MethodType(note, attention)
    attention.register_forward_pre_hook(attention.note)
    attention.register_forward_hook(functools.partial(note, attention))
    copies = [copy.deepcopy(model), ta.accelerate(model, None), ta.accelerate(model, ADAPTIVE)]
    copies.append(ta.to_native(copies[-1]))
    for other in copies:
        seen.clear()
        output = VIT.run(other, images)
        mine = other.vit.layers[2].attention
        assert mine is not attention
        assert mine.forward.__self__ is mine
        assert seen == [(mine, mine)] * 2
        del mine.forward
        VIT.assert_differs(VIT.run(other, images), output)
    assert attention.forward.__self__ is attention


def test_a_patched_attention_weighs_the_sizes_of_its_own_clusters(model, images):
    """Those of the source's configuration are none."""
    expected = VIT.run(ta.accelerate(model, ADAPTIVE), images)
    for layer in model.vit.layers:
        layer.attention.forward = types.MethodType(type(layer.attention).forward, layer.attention)
    fast = ta.accelerate(model, ADAPTIVE)
    assert all("forward" in vars(layer.attention) for layer in fast.vit.layers)
    assert all(torch.equal(a, b) for a, b in zip(VIT.run(fast, images), expected, strict=True))


@pytest.mark.parametrize("path", ["", "vit", "vit.layers.1", "vit.layers.1.attention"])
def test_a_forward_that_cannot_move_is_refused(model, images, path):
    fast = ta.accelerate(model, ADAPTIVE)
    for given in (model, fast):
        module = given.get_submodule(path)
        module.forward = COMPILE(module.forward)
        for setting in (ADAPTIVE, ACCEL):
            with pytest.raises(ValueError, match=r"has a forward that was set on the object.*del module.forward"):
                ta.accelerate(given, setting)
        del module.forward
    assert equal(VIT.run(ta.accelerate(model, ADAPTIVE), images), VIT.run(fast, images))


def test_a_forward_set_on_a_block_after_acceleration_runs_on_its_clusters(model, images):
    fast = ta.accelerate(model, ADAPTIVE)
    expected = VIT.run(fast, images)
    for block in fast.vit.layers:
        block.forward = functools.partial(type(block).forward, block)
    assert equal(VIT.run(fast, images), expected)
