import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForVideoClassification,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)

import hf_tokaccel as ta


class VideoMAETester(FamilyTester):
    slices = 3
    other_size = None
    legacy_key = new_key = "encoder.layer.0.attention.attention.query.weight"

    def config(self, **changes):
        return VideoMAEConfig(
            image_size=32,
            patch_size=4,
            num_frames=6,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.2,
            num_labels=5,
            **changes,
        )

    def images(self, batch=2, size=None, seed=1):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, 6, 3, *(size or self.image_size), generator=generator)


class TestVideoMAEModel(VideoMAETester):
    native, auto = VideoMAEModel, AutoModel

    def test_masked_tokens_are_refused_while_accelerated(self, model, fast):
        masked = torch.arange(3 * 64).expand(2, -1) % 2 == 0
        with pytest.raises(ValueError, match="bool_masked_pos is not valid while acceleration is on"):
            fast(self.images(), bool_masked_pos=masked)
        off = ta.accelerate(fast, None)
        assert torch.equal(
            off(self.images(), bool_masked_pos=masked)[0], model(self.images(), bool_masked_pos=masked)[0]
        )

    def test_every_slice_is_clustered_on_its_own(self, fast):
        with ta.observe_clusters() as seen:
            self.run(fast, self.images())
        assert len(seen) == 1
        assert seen[0].clusters.centroids.shape == (2 * 3, 16, 32)
        assert seen[0].labels().shape == (2 * 3, 8, 8)


class TestVideoMAEForVideoClassification(VideoMAETester):
    secondary = True
    native, auto = VideoMAEForVideoClassification, AutoModelForVideoClassification

    @pytest.mark.parametrize("use_mean_pooling", [True, False])
    def test_what_the_head_reads_is_reconstructed(self, use_mean_pooling):
        model = VideoMAEForVideoClassification(self.config(use_mean_pooling=use_mean_pooling)).eval()
        fast = ta.accelerate(model, ACCEL)
        with torch.no_grad():
            states = fast.videomae(self.images()).last_hidden_state
            assert states.shape == (2, 3 * 64, 32)
            read = model.fc_norm(states.mean(1)) if use_mean_pooling else states[:, 0]
            expected = model.classifier(read)
        self.assert_close(self.run(fast, self.images()), [expected])


class TestVideoMAEAdaptive(Adaptive, VideoMAETester):
    native, auto = VideoMAEModel, AutoModel


def test_pretraining_is_refused():
    model = VideoMAEForPreTraining(VideoMAETester().config())
    message = "VideoMAEForPreTraining cannot be accelerated: .*masked.*accelerate the VideoMAEForVideoClassification"
    with pytest.raises(ValueError, match=message):
        ta.accelerate(model, ACCEL)
