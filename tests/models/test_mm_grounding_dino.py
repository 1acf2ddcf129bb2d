from test_grounding_dino import TEXT, TINY, GroundingTester
from test_mask2former import BACKBONE
from transformers import (
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    MMGroundingDinoModel,
)


class MMGroundingTester(GroundingTester):
    def config(self):
        backbone = {name: value for name, value in BACKBONE.items() if name != "out_features"}
        return MMGroundingDinoConfig(
            backbone_config={**backbone, "out_indices": [2, 3, 4]}, text_config=dict(TEXT), **TINY
        )


class TestMMGroundingDinoModel(MMGroundingTester):
    native, auto = MMGroundingDinoModel, AutoModel


class TestMMGroundingDinoForObjectDetection(MMGroundingTester):
    native, auto = MMGroundingDinoForObjectDetection, AutoModelForZeroShotObjectDetection
