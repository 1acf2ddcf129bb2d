import copy

import pytest
import torch
from family import keys_of
from test_mask2former import BACKBONE
from test_swin import ACCEL, awaken
from transformers import (
    AutoModel,
    AutoModelForUniversalSegmentation,
    DinatConfig,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerModel,
)

import hf_tokaccel as ta


def tensors_of(values):
    """Tensors of nested outputs, in order."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    return [] if values is None else [tensor for value in values for tensor in tensors_of(value)]


class ConditionedTester:
    """Heads on a Swin backbone whose forward needs more than images; blocks are tested with the backbone.

    Attributes:
        native, auto, legacy_key, new_key: as in `FamilyTester`.
    """

    native = None
    auto = None
    legacy_key = "layers.0.blocks.0.attention.self.query"
    new_key = "layers.0.blocks.0.attention.q_proj"

    def inputs(self):
        """What a call takes besides the images."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        torch.manual_seed(0)
        return awaken(cls.native(cls().config())).eval()

    @pytest.fixture(scope="class")
    @classmethod
    def fast(cls, model):
        return ta.accelerate(model, ACCEL)

    def run(self, model, **kwargs):
        images = torch.randn(2, 3, 75, 90, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            output = model(pixel_values=images.to(model.dtype), **self.inputs(), **kwargs)
        return tensors_of(output.to_tuple())

    def assert_equal(self, actual, expected):
        assert len(actual) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))

    def test_acts_on_the_windows_of_one_stage_and_can_be_switched_off(self, model, fast):
        native = self.run(model, output_hidden_states=True)
        with ta.observe_clusters() as seen:
            actual = self.run(fast, output_hidden_states=True)
        assert [(s.grid, s.cluster_grid, len(s.keys)) for s in seen] == [((4, 4), (2, 2), 18)]
        assert [a.shape for a in actual] == [b.shape for b in native]
        assert any((a - b).abs().max() > 1e-3 * b.abs().max() for a, b in zip(actual, native, strict=True))
        for off in (ta.accelerate(fast, None), ta.to_native(fast)):
            self.assert_equal(self.run(off, output_hidden_states=True), native)
        assert {p.data_ptr() for p in model.parameters()} == {p.data_ptr() for p in fast.parameters()}

    @pytest.mark.parametrize("legacy", [True, False], ids=["legacy_keys", "new_keys"])
    def test_checkpoints_load(self, model, fast, tmp_path, legacy):
        model.save_pretrained(tmp_path / "native", save_original_format=legacy)
        assert any((self.legacy_key if legacy else self.new_key) in key for key in keys_of(tmp_path / "native"))
        config = ta.accelerate_config(type(model.config).from_pretrained(tmp_path / "native"), ACCEL)
        loaded, info = self.auto.from_pretrained(tmp_path / "native", config=config, output_loading_info=True)
        assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
        assert type(loaded) is type(fast)
        expected = self.run(copy.deepcopy(fast))
        for a, b in zip(self.run(copy.deepcopy(loaded).eval()), expected, strict=True):
            real = b.isfinite()  # Grounding DINO's logits of padded text are -inf
            assert torch.equal(a[~real], b[~real])
            assert (a - b)[real].abs().max() <= 1e-5 * b[real].abs().max() + 1e-12

    def test_saves_native_names_and_plain_transformers_loads_them(self, model, fast, tmp_path):
        model.save_pretrained(tmp_path / "native")
        fast.save_pretrained(tmp_path / "fast")
        assert keys_of(tmp_path / "fast") == keys_of(tmp_path / "native")
        assert self.auto.from_pretrained(tmp_path / "fast").config.accel == fast.config.accel
        fast.save_pretrained(tmp_path / "plain", native=True)
        plain, info = self.native.from_pretrained(tmp_path / "plain", output_loading_info=True)
        assert not info["missing_keys"] | info["unexpected_keys"]
        self.assert_equal(self.run(copy.deepcopy(plain).eval()), self.run(copy.deepcopy(model)))

    def test_gradients_reach_the_first_block(self, fast):
        fast = copy.deepcopy(fast)
        images = torch.randn(1, 3, 75, 90)
        inputs = {name: value[:1] for name, value in self.inputs().items()}
        output = tensors_of(fast(pixel_values=images, **inputs).to_tuple())
        sum(value.float().square().mean() for value in output if value.requires_grad).backward()
        name = next(n for n, _ in fast.named_parameters() if n.endswith("layers.0.blocks.0.layernorm_before.weight"))
        assert fast.get_parameter(name).grad.abs().max() > 0


class OneFormerTester(ConditionedTester):
    def config(self):
        return OneFormerConfig(
            backbone_config=BACKBONE,
            conv_dim=32,
            mask_dim=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            dim_feedforward=32,
            num_queries=6,
            num_labels=5,
            task_seq_len=7,
        )

    def inputs(self):
        return {"task_inputs": torch.arange(14).view(2, 7)}


class TestOneFormerModel(OneFormerTester):
    native, auto = OneFormerModel, AutoModel


class TestOneFormerForUniversalSegmentation(OneFormerTester):
    native, auto = OneFormerForUniversalSegmentation, AutoModelForUniversalSegmentation


def test_dinat_is_refused():
    config = OneFormerConfig(backbone_config=DinatConfig(out_features=["stage1", "stage4"]))
    with pytest.raises(ValueError, match="'oneformer' on a 'dinat' backbone cannot be accelerated"):
        ta.accelerate_config(config, ACCEL)
