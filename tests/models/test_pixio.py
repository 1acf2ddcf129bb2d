import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    PixioBackbone,
    PixioConfig,
    PixioModel,
)

import hf_tokaccel as ta
from hf_tokaccel.models.pixio import TokAccelPixioBackbone


class PixioTester(FamilyTester):
    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "layers.0.attention.q_proj.weight"

    def config(self):
        return PixioConfig(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            mlp_ratio=2,
            n_cls_tokens=3,
            initializer_range=0.2,
            out_indices=[1, 2, 4],
        )


class TestPixioModel(PixioTester):
    secondary = True
    native, auto = PixioModel, AutoModel

    def test_all_class_tokens_bypass_clustering(self, fast):
        with ta.observe_clusters() as seen:
            states = fast(self.images(), output_hidden_states=True).hidden_states[ACCEL["cluster_after"]]
        assert torch.equal(seen[0].keys, states[:, 3:])


class TestPixioBackbone(PixioTester):
    secondary = True
    native, auto = PixioBackbone, TokAccelPixioBackbone
    image_size, grid = (32, 48), (8, 12)


class TestPixioAdaptive(Adaptive, PixioTester):
    native, auto = PixioBackbone, TokAccelPixioBackbone


def test_dpt_on_it_loads_a_native_checkpoint(tmp_path):
    torch.manual_seed(0)
    values = {"n_cls_tokens": 1, "out_features": None, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
    backbone = PixioConfig(**{**PixioTester().config().to_dict(), **values})
    sizes = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
    head = DPTForDepthEstimation(DPTConfig(backbone_config=backbone, **sizes)).eval()
    head.save_pretrained(tmp_path)
    loaded, info = AutoModelForDepthEstimation.from_pretrained(
        tmp_path, model_type="tokaccel_dpt", accel=ACCEL, output_loading_info=True
    )
    assert type(loaded.backbone) is TokAccelPixioBackbone
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    images = PixioTester().images()
    expected = ta.accelerate(head, ACCEL)(images).predicted_depth
    assert torch.equal(loaded.eval()(images).predicted_depth, expected)
    assert (expected - head(images).predicted_depth).abs().max() > 1e-3 * expected.abs().max()
