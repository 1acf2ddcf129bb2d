import copy

import torch
from family import flatten
from test_swin import TINY, StagedTester, awaken, golden, golden_model, golden_setting  # noqa: F401  a fixture
from transformers import AutoModel, MaskFormerSwinBackbone, MaskFormerSwinConfig
from transformers.models.maskformer.modeling_maskformer_swin import MaskFormerSwinModel

import hf_tokaccel as ta
from hf_tokaccel.models.maskformer_swin import TokAccelMaskFormerSwinBackbone


class MaskFormerSwinTester(StagedTester):
    legacy_key = new_key = "attention.self.query"  # never renamed

    def config(self):
        return MaskFormerSwinConfig(**TINY)

    def build(self):
        return awaken(super().build())

    @staticmethod
    def run(model, images, **kwargs):
        """The sizes of its maps are no tensors."""
        with torch.no_grad():
            output = model(images, **kwargs)
        return flatten([value for key, value in output.items() if key != "hidden_states_spatial_dimensions"])

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, model, fast):
        """What this host calls attentions are hidden states: here its shapes stay."""
        with torch.no_grad():
            expected, actual = (
                m(self.images(), output_hidden_states=True, output_attentions=True) for m in (model, fast)
            )
        assert [a.shape for a in actual.attentions] == [a.shape for a in expected.attentions]
        with ta.observe_clusters() as seen:
            self.run(fast, self.images())
        assert [(s.grid, s.cluster_grid, len(s.keys)) for s in seen] == [((4, 4), (2, 2), self.windows)]

    def test_hidden_states_have_native_shapes_and_order(self, model, fast):
        with torch.no_grad():
            expected, actual = (m(self.images(), output_hidden_states=True) for m in (model, fast))
        assert list(actual.keys()) == list(expected.keys())
        shapes = [[h.shape for h in flatten(output.hidden_states)] for output in (actual, expected)]
        assert shapes[0] == shapes[1]
        # Embeddings, the first stage, then each block's input and output in the second.
        start = [flatten(output.hidden_states[:2]) for output in (actual, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*start, strict=True))
        stages = actual.hidden_states[2], expected.hidden_states[2]
        assert all(torch.equal(stages[0][index], stages[1][index]) for index in range(3))
        self.assert_differs(stages[0][3:4], stages[1][3:4])
        for index in (2, 4, 6):
            assert torch.equal(stages[0][index], stages[0][index - 1])


class TestMaskFormerSwinModel(MaskFormerSwinTester):
    secondary = True
    native, auto = MaskFormerSwinModel, AutoModel


class TestMaskFormerSwinBackbone(MaskFormerSwinTester):
    secondary = True
    native, auto = MaskFormerSwinBackbone, TokAccelMaskFormerSwinBackbone

    def config(self):
        return MaskFormerSwinConfig(**TINY, out_features=["stage1", "stage2", "stage3"])

    def test_states_that_nobody_reads_are_not_rebuilt(self, fast, monkeypatch):
        import hf_tokaccel.hosts.clusters as clusters

        rebuilt = []
        native = clusters.reconstruct_tokens
        monkeypatch.setattr(clusters, "reconstruct_tokens", lambda *args: rebuilt.append(args) or native(*args))
        self.run(fast, self.images())
        assert len(rebuilt) == 1
        self.run(fast, self.images(), output_hidden_states=True)
        assert len(rebuilt) == 1 + 3  # after two blocks inside the span, and at its end


def test_golden(golden):  # noqa: F811
    """The same weights under the names of this host."""
    tensors, settings = golden
    swin = golden_model(tensors, settings)
    kept = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")
    config = MaskFormerSwinConfig(
        **{name: getattr(swin.config, name) for name in kept},
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    renames = {
        "attention.q_proj": "attention.self.query",
        "attention.k_proj": "attention.self.key",
        "attention.v_proj": "attention.self.value",
        "attention.o_proj": "attention.output.dense",
        "attention.relative_position_bias.": "attention.self.",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renames |= {f"hidden_states_norms.stage{level + 1}": f"hidden_states_norms.{level}" for level in range(4)}
    model = MaskFormerSwinBackbone(config).eval()
    weights = {}
    for name, value in swin.state_dict().items():
        for old, new in renames.items():
            name = name.replace(old, new)
        weights[name.replace("swin.", "model.", 1)] = copy.deepcopy(value)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing)
    for kind, shift in (("released", "released"), ("fixed_mask", "corrected")):
        fast = ta.accelerate(model, golden_setting(settings, mask_shift=shift))
        with torch.no_grad():
            maps = fast(tensors["image"]).feature_maps
        for level, actual in zip((2, 3, 4, 5), maps, strict=True):
            expected = tensors[f"{kind}/res{level}"]
            assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
