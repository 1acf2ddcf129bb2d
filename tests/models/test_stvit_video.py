import copy

import pytest
import torch
from semantic import SemanticTester
from transformers import AutoModelForVideoClassification, VivitConfig, VivitForVideoClassification

from hf_tokaccel.models.stvit_video import TokAccelSTViTForVideoClassification, TokAccelSTViTVideoConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is experimental")


class TestSTViTForVideoClassification(SemanticTester):
    secondary = True  # its layers are those of test_stvit.py
    native, ours = VivitForVideoClassification, TokAccelSTViTForVideoClassification
    auto = AutoModelForVideoClassification
    accel = {"method": "semantic_tokens", "token_grid": [2, 3]}
    image_size = (16, 24)
    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "layers.0.attention.q_proj.weight"
    untrained = ("pooling.", "global_centers.")
    misfits = (
        ({"token_grid": [5, 2]}, r"token_grid=\(5, 2\) does not fit.*4 x 6 tokens.*for example token_grid=\("),
        ({"base_layers": 2}, "base_layers=2 .*at most 1"),
    )

    def config(self):
        return VivitConfig(
            image_size=self.image_size,
            num_frames=4,
            tubelet_size=[2, 4, 4],
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.2,
            num_labels=5,
        )

    def images(self, batch=2, size=None, seed=1):
        return super().images(batch * 4, size, seed).unflatten(0, (batch, 4))

    def test_tokens_are_generated_per_slice_and_joined_after(self, fast):
        eager = copy.deepcopy(fast)
        eager.set_attn_implementation("eager")
        with torch.no_grad():
            output = eager(self.images(), output_hidden_states=True, output_attentions=True)
        shapes = [tuple(state.shape[:2]) for state in output.hidden_states]
        assert shapes == [(2, 48), (2, 48), (4, 6), (4, 6), (2, 12)]
        shapes = [(weights.shape[0], *weights.shape[2:]) for weights in output.attentions]
        assert shapes == [(2, 48, 48), (4, 6, 24), (4, 6, 6 + 24), (2, 12, 12)]

    def test_slices_meet_in_base_and_semantic_layers(self, fast):
        changed = self.images()
        changed[:, 2:] += 1
        with torch.no_grad():
            a, b = (fast.vivit(x, output_hidden_states=True).hidden_states for x in (self.images(), changed))
        for index in (1, 4):  # first half: the first slice
            half = a[index].shape[1] // 2
            assert (a[index][:, :half] - b[index][:, :half]).abs().max() > 1e-3

    def test_one_base_layer_without_attention_keeps_slices_apart(self, fast):
        """Generation reads its own slice only: where base layers do not mix slices, another one changes nothing."""
        apart = copy.deepcopy(fast)
        torch.nn.init.zeros_(apart.vivit.layers[0].attention.o_proj.weight)
        changed = self.images()
        changed[:, 2:] += 1
        with torch.no_grad():
            a, b = (apart.vivit(x, output_hidden_states=True).hidden_states for x in (self.images(), changed))
        assert torch.equal(a[3][::2], b[3][::2])
        assert not torch.equal(a[3][1::2], b[3][1::2])
        assert not torch.equal(a[4][:, :6], b[4][:, :6])

    def test_other_sizes_are_refused(self, fast):
        with pytest.raises(ValueError, match=r"2 frames of size \(16, 24\) is not valid.*4 frames of size \(16, 24\)"):
            fast(self.images()[:, :2])
        with pytest.raises(ValueError, match=r"4 frames of size \(16, 20\) is not valid"):
            fast(self.images()[..., :20])
        with pytest.raises(ValueError, match="interpolate_pos_encoding=True is not valid"):
            fast(self.images(), interpolate_pos_encoding=True)


@pytest.mark.filterwarnings("default:.*is experimental")
def test_it_says_that_it_is_experimental():
    config = TestSTViTForVideoClassification().config().to_dict() | {"accel": {"method": "semantic_tokens"}}
    config["accel"]["token_grid"] = 2
    with pytest.warns(UserWarning, match=r"TokAccelSTViTVideoModel is experimental: .*only numbers"):
        TokAccelSTViTForVideoClassification(TokAccelSTViTVideoConfig(**config))
