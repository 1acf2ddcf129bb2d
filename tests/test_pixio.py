import torch
from family import ACCEL, FamilyTester
from transformers import AutoModel, PixioBackbone, PixioConfig, PixioModel

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
    native, auto = PixioBackbone, TokAccelPixioBackbone
    image_size, grid = (32, 48), (8, 12)
