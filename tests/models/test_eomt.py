import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from PIL import Image
from transformers import (
    AutoModelForUniversalSegmentation,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    pipeline,
)

import hf_tokaccel as ta


class Given(torch.nn.Module):
    """Takes the place of a block and returns what it was given before."""

    def __init__(self, states=None):
        super().__init__()
        self.states = states

    def forward(self, states, *args, **kwargs):
        return states if self.states is None else self.states


class QueryBlocksTester(FamilyTester):
    """What EoMT and EoMT-DINOv3 share: two of six blocks run with the queries."""

    auto = AutoModelForUniversalSegmentation
    depth = 6
    other_size = None
    flop_ratio = 0.95
    single_graph = False
    reads_values = True

    sizes = {
        "image_size": 32,
        "patch_size": 4,
        "hidden_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "num_blocks": 2,
        "num_queries": 5,
        "num_register_tokens": 2,
        "num_upscale_blocks": 1,
        "train_num_points": 16,
        "num_labels": 3,
        "initializer_range": 0.2,
    }

    def labels(self):
        generator = torch.Generator().manual_seed(3)
        masks = [(torch.rand(count, 32, 32, generator=generator) > 0.5).float() for count in (1, 3)]
        return {"mask_labels": masks, "class_labels": [torch.tensor([2]), torch.tensor([0, 1, 2])]}

    def loss(self, model, **kwargs):
        torch.manual_seed(0)  # points of the loss, queries whose mask is dropped
        return model(self.images(), **self.labels(), **kwargs).loss

    def test_span_ends_before_the_queries(self, model, fast):
        assert fast.config.accel["reconstruct_after"] == 4
        with torch.no_grad():
            states = fast(self.images(), output_hidden_states=True).hidden_states
        assert [h.shape[1] for h in states] == [67] * 5 + [72] * 2
        earlier = ta.accelerate(model, {**self.accel, "reconstruct_after": 2})
        assert earlier.config.accel["reconstruct_after"] == 2
        for bad in ({"reconstruct_after": 5}, {"reconstruct_after": 6}, {"cluster_after": 4}):
            with pytest.raises(ValueError, match=r"is not valid.*queries join the last num_blocks=2.*for example"):
                ta.accelerate(model, {**self.accel, **bad})

    def test_last_hidden_state_is_the_normalized_one(self, model, fast):
        for module in (model, fast):
            output = module(self.images(), output_hidden_states=True)
            assert torch.equal(output.hidden_states[-1], output.last_hidden_state)

    @pytest.mark.parametrize("probability", [1.0, 0.5, 0.0])
    @pytest.mark.parametrize("training", [True, False])
    def test_blocks_after_the_span_are_native(self, model, probability, training):
        """Native blocks, masks and losses after the reconstructed states: with masks annealed to every degree."""
        native = self.build()
        native.load_state_dict(model.state_dict())
        native.attn_mask_probs.fill_(probability)
        fast = ta.accelerate(native, self.accel).train(training)
        torch.manual_seed(0)
        with torch.no_grad():
            states = fast(self.images(), output_hidden_states=True).hidden_states[4]
            loss = self.loss(fast)
            native.train(training)
            native.layers = torch.nn.ModuleList([Given(states), Given(), Given(), Given(), *native.layers[4:]])
            assert torch.equal(loss, self.loss(native))

    def test_training_with_the_identity_plan_is_native(self, model):
        native = self.build()
        native.load_state_dict(model.state_dict())
        native.attn_mask_probs.fill_(0.5)
        same = ta.accelerate(native, self.identity).train()
        assert torch.equal(self.loss(same), self.loss(native.train()))

    def test_pipeline_loads_the_folder(self, fast, tmp_path):
        fast.save_pretrained(tmp_path)
        EomtImageProcessor(size={"shortest_edge": 32, "longest_edge": 32}, do_pad=True).save_pretrained(tmp_path)
        segment = pipeline("image-segmentation", model=str(tmp_path), subtask="panoptic", threshold=0.0)
        assert type(segment.model) is type(fast)
        parts = segment(Image.new("RGB", (60, 40)))
        assert {part["mask"].size for part in parts} == {(60, 40)}

    def test_gradient_of_the_loss_reaches_the_first_block_and_the_queries(self):
        fast = ta.accelerate(self.build(), self.accel).train()
        self.loss(fast).backward()
        for parameter in (fast.layers[0].norm1.weight, fast.layers[2].norm1.weight, fast.query.weight):
            assert parameter.grad.abs().max() > 0


class TestEomt(QueryBlocksTester):
    slow_graphs = True
    native = EomtForUniversalSegmentation
    legacy_key = new_key = "layers.0.attention.q_proj.weight"

    def config(self):
        return EomtConfig(**self.sizes)


class TestEomtAdaptive(Adaptive, TestEomt):
    test_span_ends_before_the_queries = test_pipeline_loads_the_folder = None  # whatever the clusters


def test_model_without_blocks_before_the_queries_is_refused():
    config = EomtConfig(**{**QueryBlocksTester.sizes, "num_blocks": 6})
    with pytest.raises(ValueError, match="without blocks before the queries cannot be accelerated"):
        ta.accelerate_config(config, ACCEL)
