from adaptive_family import Adaptive
from family import FamilyTester
from test_owlvit import TINY, OwlDetectorTester
from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2VisionConfig, Owlv2VisionModel

from hf_tokaccel.models.owlv2 import TokAccelOwlv2VisionModel


class TestOwlv2VisionModel(FamilyTester):
    secondary = True
    native, auto = Owlv2VisionModel, TokAccelOwlv2VisionModel
    legacy_key = new_key = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    other_size = None

    def config(self):
        return Owlv2VisionConfig(**TINY)


class TestOwlv2VisionAdaptive(Adaptive, TestOwlv2VisionModel):
    pass


class TestOwlv2ForObjectDetection(OwlDetectorTester):
    config, native, model_type = Owlv2Config, Owlv2ForObjectDetection, "owlv2"
