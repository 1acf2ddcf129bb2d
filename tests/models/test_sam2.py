import copy

import numpy as np
import pytest
import torch
from family import FamilyTester, flatten
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForMaskGeneration,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2HieraDetModel,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    Sam2VisionModel,
    Sam3Config,
    pipeline,
)
from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoMaskDecoderConfig

import hf_tokaccel as ta
from hf_tokaccel.models.sam2 import TokAccelSam2Model

# 32 x 32 tokens, 8 x 8 in the third stage, in windows of 6 x 6, padded to 12 x 12; its last block is a global one.
TINY_HIERA = {
    "hidden_size": 8,
    "image_size": [64, 64],
    "blocks_per_stage": [1, 1, 4, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 4],
    "window_size_per_stage": [4, 2, 6, 3],
    "global_attention_blocks": [5],
    "window_positional_embedding_background_size": [3, 3],
    "patch_stride": [2, 2],
    "initializer_range": 0.2,
}
TINY_VISION = {
    "backbone_config": {"model_type": "sam2_hiera_det_model", **TINY_HIERA},
    "backbone_channel_list": [64, 32, 16, 8],
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    "fpn_hidden_size": 16,
    "initializer_range": 0.2,
}
TINY = {
    "vision_config": {"model_type": "sam2_vision_model", **TINY_VISION},
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
    "mask_decoder_config": {
        "hidden_size": 16,
        "mlp_dim": 32,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    },
    "initializer_range": 0.2,
}
ACCEL = {"cluster_after": 3, "cluster_grid": [2, 2], "window": 3, "neighbors": 2, "inverse_temperature": "auto"}


def awaken(model):
    """Position embeddings start at zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos_embed" in name or "no_memory" in name:
                parameter.normal_(0, 0.5, generator=generator)
    return model


class HieraTester(FamilyTester):
    """Clusters of 2 x 2 in windows of 6 x 6 of the third stage, from its second block on."""

    takes_adaptive = False
    image_size, grid, depth, other_size = (64, 64), (6, 6), 7, None
    accel = ACCEL
    forms = {**FamilyTester.forms, "reconstruct_after": (None, 4)}
    flop_ratio = 0.97
    block_tolerance = 0.02  # its attention computes products of heads that nothing reads

    def build(self):
        return awaken(super().build())

    def test_hidden_states_have_native_shapes_and_order(self, model, fast):
        expected, actual = (m(self.images(), output_hidden_states=True) for m in (model, fast))
        assert list(actual.keys()) == list(expected.keys())
        name = self.states(actual)
        assert [h.shape for h in actual[name]] == [h.shape for h in expected[name]]
        for index in range(ACCEL["cluster_after"] + 1):  # still at full resolution
            assert torch.equal(actual[name][index], expected[name][index])
        self.assert_differs([actual[name][-1]], [expected[name][-1]])
        in_order = fast(self.images(), output_hidden_states=True, return_dict=False)
        assert all(torch.equal(a, b) for a, b in zip(flatten(in_order), flatten(actual.to_tuple()), strict=True))

    def states(self, output):
        return next(key for key in output if key.endswith("hidden_states") and len(output[key]) == self.depth + 1)

    def test_reading_hidden_states_does_not_change_the_output(self, fast):
        with torch.no_grad():
            output = fast(self.images(), output_hidden_states=True)
        kept = flatten(tuple(value for key, value in output.items() if key != self.states(output)))
        self.assert_close(kept, self.run(fast, self.images()))

    def count(self, module):
        # The counter cannot follow modules that return expanded parameters, as the native prompt encoder does.
        return super().count(copy.deepcopy(module).requires_grad_(False))

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, fast):
        fast = ta.accelerate(fast, ACCEL)
        fast.set_attn_implementation("eager")
        with torch.no_grad():
            output = fast(self.images(), output_attentions=True)
        attentions = next(value for key, value in output.items() if key in ("attentions", "vision_attentions"))
        # Native records outputs (B, H, W, C) of attentions. 2 x 2 windows of each of 2 images; a global block last.
        assert [tuple(a.shape) for a in attentions[3:6]] == [(8, 2, 2, 32), (8, 2, 2, 32), (2, 4, 4, 32)]

    @pytest.mark.parametrize("grid", [[7, 7], [6, 6], [2, 3]])
    def test_more_clusters_than_tokens_are_refused(self, model, grid):
        with pytest.raises(ValueError, match=r"cluster_grid=\(.*square smaller than the 6 x 6 tokens.*for example"):
            ta.accelerate(model, {**ACCEL, "cluster_grid": grid})

    @pytest.mark.parametrize(("windows", "example"), [([4, 2, 1, 3], "cluster_after=0"), ([1, 2, 1, 3], "accel=None")])
    def test_windows_of_one_token_are_refused(self, model, windows, example):
        config = copy.deepcopy(model.config)
        host = getattr(config, "vision_config", config)
        getattr(host, "backbone_config", host).window_size_per_stage = windows
        with pytest.raises(ValueError, match=rf"cluster_after=3 .*stage 3 .*have one token each.*{example}"):
            ta.accelerate_config(config, {**ACCEL, "cluster_grid": 1})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"cluster_after": 2}, r"cluster_after=2 .*block 2 .*pools .*stage 3 .*cluster_after=3"),
            ({"cluster_after": 1}, r"cluster_after=1 .*stage 2 .*cluster_after=3"),
            ({"reconstruct_after": 7}, r"reconstruct_after=7 .*between 4 and 6"),
            ({"mask_shift": "released"}, "mask_shift='released'"),
        ],
    )
    def test_spans_that_leave_a_stage_are_refused(self, model, change, message):
        with pytest.raises(ValueError, match=message):
            ta.accelerate(model, {**ACCEL, **change})


class TestSam2HieraDetModel(HieraTester):
    secondary = True
    native, auto, other_size = Sam2HieraDetModel, AutoModel, (64, 40)
    legacy_key = new_key = "blocks.0.attn.qkv.weight"

    def config(self):
        return Sam2HieraDetConfig(**TINY_HIERA)

    def test_first_stage(self, model):
        """Whose blocks all run on whole windows."""
        accel = {**ACCEL, "cluster_after": 0}
        fast = ta.accelerate(model, accel)
        assert fast.config.accel["reconstruct_after"] == 1
        native, actual = (self.run(m, self.images(size=(64, 40))) for m in (model, fast))
        assert [a.shape for a in actual] == [b.shape for b in native]
        self.assert_differs(actual, native)


class TestSam2VisionModel(HieraTester):
    slow_graphs = True
    native, auto = Sam2VisionModel, AutoModel
    legacy_key = new_key = "backbone.blocks.0.attn.qkv.weight"

    def config(self):
        return Sam2VisionConfig(**TINY_VISION)


class TestSam2Model(HieraTester):
    secondary = True
    native, auto = Sam2Model, AutoModelForMaskGeneration
    legacy_key = new_key = "vision_encoder.backbone.blocks.0.attn.qkv.weight"
    flop_ratio = 0.99

    def config(self):
        return Sam2Config(**TINY)


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return awaken(Sam2Model(Sam2Config(**TINY))).eval()


@pytest.fixture(scope="module")
def fast(sam):
    return ta.accelerate(sam, ACCEL)


@pytest.fixture(scope="module")
def processor():
    size = {"height": 64, "width": 64}
    return Sam2Processor(Sam2ImageProcessor(size=size, mask_size=size), target_size=64)


@pytest.fixture(scope="module")
def photo():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 60, (48, 64, 3))
    image[10:30, 12:40] += 150
    return Image.fromarray(image.astype(np.uint8))


@pytest.mark.parametrize(
    "prompts",
    [{"input_points": [[[[20.0, 20.0]]]], "input_labels": [[[1]]]}, {"input_boxes": [[[12.0, 10.0, 40.0, 30.0]]]}],
    ids=["point", "box"],
)
def test_prompts_by_the_native_processor(sam, fast, processor, photo, prompts):
    inputs = processor(photo, **prompts, return_tensors="pt")
    with torch.no_grad():
        native, actual = sam(**inputs).pred_masks, fast(**inputs).pred_masks
        embeddings = fast.get_image_embeddings(inputs.pop("pixel_values"))
        embedded = fast(**inputs, image_embeddings=embeddings).pred_masks
    assert actual.shape == native.shape
    assert (actual - native).abs().max() > 1e-3 * native.abs().max()
    assert torch.equal(embedded, actual)


def test_prompts_outside_the_image_are_refused(fast, processor, photo):
    prompts = {"input_points": [[[[80.0, 20.0]]]], "input_labels": [[[1]]]}
    with pytest.raises(ValueError, match=r"input_points\[0, 0, 0\] .*64 x 64"):
        fast(**processor(photo, **prompts, return_tensors="pt"))


def test_mask_generation_pipeline(sam, fast, processor, photo, tmp_path):
    fast.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options = {"points_per_crop": 4, "pred_iou_thresh": -100.0, "stability_score_thresh": 0.0}
    generator = pipeline("mask-generation", model=str(tmp_path))
    assert type(generator.model) is TokAccelSam2Model
    actual = generator(photo, **options)
    native = pipeline("mask-generation", model=sam, image_processor=processor.image_processor)(photo, **options)
    assert actual["masks"]
    assert all(mask.shape == (48, 64) for mask in actual["masks"])
    assert actual["scores"].shape != native["scores"].shape or not torch.allclose(
        actual["scores"], native["scores"], atol=1e-4
    )


def test_other_backbones_are_refused():
    config = Sam2VisionConfig(backbone_config={"model_type": "vit"})
    with pytest.raises(ValueError, match=r"on a 'vit' backbone instead of .* cannot be accelerated"):
        ta.accelerate_config(config, ACCEL)


@pytest.fixture(scope="module")
def video():
    """The published checkpoints are those of the video model, from which `Sam2Model` takes its part."""
    torch.manual_seed(0)
    sizes = {
        "memory_attention_hidden_size": 16,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_encoder_hidden_size": 16,
        "memory_encoder_output_channels": 8,
        "memory_fuser_embed_dim": 16,
        "memory_fuser_intermediate_dim": 32,
        "mask_downsampler_embed_dim": 16,
        "image_size": 64,
    }
    # Transformers 5.14 makes a prompt encoder's configuration of a dict here.
    decoder = Sam2VideoMaskDecoderConfig(**TINY["mask_decoder_config"])
    return awaken(Sam2VideoModel(Sam2VideoConfig(**{**TINY, "mask_decoder_config": decoder}, **sizes))).eval()


def test_checkpoint_of_the_video_model_loads(video, tmp_path):
    video.save_pretrained(tmp_path / "video")
    fast = ta.accelerate(Sam2Model.from_pretrained(tmp_path / "video"), ACCEL)
    loaded, info = TokAccelSam2Model.from_pretrained(tmp_path / "video", accel=ACCEL, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    fast.save_pretrained(tmp_path / "fast")
    again = AutoModelForMaskGeneration.from_pretrained(tmp_path / "fast")
    assert type(again) is TokAccelSam2Model
    images = FamilyTester().images(1, (64, 64))
    for model in (loaded, again):
        FamilyTester().assert_close(FamilyTester.run(model, images), FamilyTester.run(fast, images))


def test_the_video_model_and_sam_3_are_refused(video):
    with pytest.raises(ValueError, match="model type 'sam2_video' cannot be accelerated"):
        ta.accelerate(video, ACCEL)
    with pytest.raises(ValueError, match="model type 'sam3' cannot be accelerated"):
        ta.accelerate_config(Sam3Config(), ACCEL)
