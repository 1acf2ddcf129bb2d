import copy
import json
from pathlib import Path

import gpu
import numpy as np
import pytest
import torch
from family import FamilyTester, flatten
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskGeneration,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    SamVisionConfig,
    SamVisionModel,
    pipeline,
)

import hf_tokaccel as ta
from hf_tokaccel.models.sam import TokAccelSamModel, TokAccelSamVisionModel

GOLDEN = Path(__file__).parents[1] / "goldens" / "expedit_sam_g16_w6c4_loc1.safetensors"
# 8 x 8 tokens in windows of 5 x 5, padded to 10 x 10; windowed and global blocks run on clusters.
TINY_VISION = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "output_channels": 16,
    "window_size": 5,
    "global_attn_indexes": [0, 2],
    "num_pos_feats": 8,
    "initializer_range": 0.2,
}
TINY = {
    "vision_config": TINY_VISION,
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 32, "patch_size": 4, "mask_input_channels": 4},
    "mask_decoder_config": {
        "hidden_size": 16,
        "mlp_dim": 32,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    },
    "initializer_range": 0.2,
}
ACCEL = {"cluster_after": 1, "cluster_grid": [2, 2], "window": 3, "neighbors": 2, "inverse_temperature": "auto"}


def awaken(model):
    """Position embeddings start at zero, which would hide that they are resized."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos_embed" in name or "rel_pos" in name:
                parameter.normal_(0, 0.5, generator=generator)
    return model


class WindowTester(FamilyTester):
    """Clusters of 2 x 2 in windows of 5 x 5: 2 x 2 windows, so a map of 4 x 4 clusters."""

    takes_adaptive = False
    grid, other_size = (5, 5), None
    accel = ACCEL
    states = "hidden_states"  # the name of that output

    def build(self):
        return awaken(super().build())

    def test_hidden_states_have_native_shapes_and_order(self, model, fast):
        expected, actual = (m(self.images(), output_hidden_states=True) for m in (model, fast))
        assert list(actual.keys()) == list(expected.keys())
        assert [h.shape for h in actual[self.states]] == [h.shape for h in expected[self.states]]
        assert len(actual[self.states]) == self.depth + 1
        for index in (0, 1):  # still at full resolution
            assert torch.equal(actual[self.states][index], expected[self.states][index])
        self.assert_differs([actual[self.states][-1]], [expected[self.states][-1]])
        in_order = fast(self.images(), output_hidden_states=True, return_dict=False)
        assert all(torch.equal(a, b) for a, b in zip(flatten(in_order), flatten(actual.to_tuple()), strict=True))

    def test_reading_hidden_states_does_not_change_the_output(self, fast):
        with torch.no_grad():
            output = fast(self.images(), output_hidden_states=True)
        kept = flatten(tuple(value for key, value in output.items() if key != self.states))
        self.assert_close(kept, self.run(fast, self.images()))

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, model):
        # SAM picks its attention when it is built.
        eager = type(model)._from_config(model.config, attn_implementation="eager")
        eager.load_state_dict(model.state_dict())
        name = self.states.replace("hidden_states", "attentions")
        with torch.no_grad():
            expected = eager.eval()(self.images(), output_attentions=True)[name]
            attentions = ta.accelerate(eager, ACCEL)(self.images(), output_attentions=True)[name]
        assert torch.equal(attentions[0], expected[0])
        # 2 images of 2 x 2 windows with 2 heads.
        shapes = [(4, 64, 64), (16, 4, 4), (4, 16, 16), (16, 4, 4)]
        assert [a.reshape(-1, *a.shape[-2:]).shape for a in attentions] == shapes

    def count(self, module):
        # The counter cannot follow modules that return expanded parameters, as the native prompt encoder does.
        return super().count(copy.deepcopy(module).requires_grad_(False))

    @pytest.mark.parametrize("grid", [[6, 6], [5, 5], [2, 3]])
    def test_more_clusters_than_tokens_are_refused(self, model, grid):
        with pytest.raises(ValueError, match=r"cluster_grid=\(.*square smaller than the 5 x 5 tokens.*for example"):
            ta.accelerate(model, {**ACCEL, "cluster_grid": grid})
        with pytest.raises(ValueError, match="cluster_grid"):
            ta.accelerate_config(model.config, {**ACCEL, "cluster_grid": grid})


class TestSamVisionModel(WindowTester):
    native, auto = SamVisionModel, AutoModel
    legacy_key = new_key = "vision_encoder.layers.0.attn.qkv.weight"  # never renamed

    def config(self):
        return SamVisionConfig(**TINY_VISION)

    def test_window_sizes_and_tables_are_those_of_the_setting_and_of_the_checkpoint(self, model):
        fast = ta.accelerate(model, {**ACCEL, "reconstruct_after": 2})
        assert [layer.window_size for layer in fast.vision_encoder.layers.children()] == [0, 2, 0, 5]
        fast = ta.accelerate(fast, ACCEL)
        assert [layer.window_size for layer in fast.vision_encoder.layers.children()] == [0, 2, 0, 2]
        tables = [layer.attn.rel_pos_h.shape for layer in fast.vision_encoder.layers.children()]
        assert tables == [(15, 16), (9, 16), (15, 16), (9, 16)]
        for plain in (model, ta.accelerate(fast, None), ta.to_native(fast)):
            assert [layer.window_size for layer in plain.vision_encoder.layers] == [0, 5, 0, 5]


class TestSamModel(WindowTester):
    secondary = True
    native, auto = SamModel, AutoModelForMaskGeneration
    states = "vision_hidden_states"
    legacy_key = new_key = "vision_encoder.layers.0.attn.qkv.weight"

    def config(self):
        return SamConfig(**TINY)


class TestSamWithoutWindows(FamilyTester):
    """Only global blocks: the whole map is clustered."""

    takes_adaptive = False
    secondary = True
    native, auto = SamVisionModel, AutoModel
    other_size = None
    accel = {**ACCEL, "cluster_grid": [4, 4]}
    legacy_key = new_key = "vision_encoder.layers.0.attn.qkv.weight"
    test_attentions_inside_the_span_are_those_of_the_clusters = None

    def config(self):
        return SamVisionConfig(**{**TINY_VISION, "window_size": 0})

    def build(self):
        return awaken(super().build())

    def test_more_clusters_than_tokens_are_refused(self, model):
        with pytest.raises(ValueError, match=r"cluster_grid=\(.*square smaller than the 8 x 8 tokens.*for example"):
            ta.accelerate(model, {**ACCEL, "cluster_grid": [9, 9]})


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        return load_file(GOLDEN), json.loads(file.metadata()["config"])


def golden_model(tensors, settings):
    """The golden's weights, named as in the original repository, in a `SamVisionModel`."""
    config = SamVisionConfig(
        image_size=settings["image"],
        patch_size=settings["patch"],
        hidden_size=settings["dim"],
        num_hidden_layers=settings["depth"],
        num_attention_heads=settings["heads"],
        mlp_ratio=float(settings["mlp_ratio"]),
        output_channels=settings["out_chans"],
        window_size=settings["window"],
        global_attn_indexes=settings["global_attn_indexes"],
        layer_norm_eps=settings["ln_eps"],
    )
    renames = {
        "model.": "vision_encoder.",
        "blocks.": "layers.",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "patch_embed.proj": "patch_embed.projection",
        "neck.0": "neck.conv1",
        "neck.1": "neck.layer_norm1",
        "neck.2": "neck.conv2",
        "neck.3": "neck.layer_norm2",
    }
    weights = {}
    for name, value in tensors.items():
        if name.startswith("model."):
            for old, new in renames.items():
                name = name.replace(old, new)
            weights[name] = value
    model = SamVisionModel(config).eval()
    model.load_state_dict(weights)
    return model


def golden_accel(settings):
    return {
        "cluster_after": settings["clustering_location"],
        "cluster_grid": int(settings["num_cluster"] ** 0.5),
        "inverse_temperature": settings["temperature"],
        "window": settings["cluster_window"],
        "iterations": settings["n_iters"],
        "neighbors": settings["k"],
    }


def test_golden(golden):
    tensors, settings = golden
    model = golden_model(tensors, settings)
    fast = ta.accelerate(model, golden_accel(settings))
    blocks = {}
    for index, layer in enumerate(fast.vision_encoder.layers.children()):
        layer.register_forward_hook(lambda module, args, output, index=index: blocks.update({index: output}))
    with torch.no_grad(), ta.observe_clusters() as seen:
        output = fast(tensors["image"], output_hidden_states=True)
        baseline = model(tensors["image"])
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(baseline.last_hidden_state, tensors["baseline/output"], **close)
    torch.testing.assert_close(seen[0].keys, tensors["released/feat_before_pooling"], **close)
    torch.testing.assert_close(seen[0].clusters.centroids, tensors["released/feat_after_pooling"], **close)
    assert torch.equal(seen[0].labels().flatten(1), tensors["released/hard_labels"])
    for index in range(5):
        torch.testing.assert_close(blocks[index], tensors[f"released/block{index}_out"], **close)
    torch.testing.assert_close(output.hidden_states[-1], tensors["released/reconstructed_grid"], **close)
    torch.testing.assert_close(output.last_hidden_state, tensors["released/output"], **close)


def test_normalization_cancels_in_the_neck(golden):
    tensors, settings = golden
    model = golden_model(tensors, settings)
    with torch.no_grad():
        l2, l1 = (
            ta.accelerate(model, {**golden_accel(settings), "normalization": name})(tensors["image"])
            for name in ("l2", "l1")
        )
    torch.testing.assert_close(l1.last_hidden_state, l2.last_hidden_state, rtol=0, atol=1e-4)


# Prompts


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return awaken(SamModel(SamConfig(**TINY))).eval()


@pytest.fixture(scope="module")
def fast(sam):
    return ta.accelerate(sam, ACCEL)


@pytest.fixture(scope="module")
def processor():
    sizes = {
        "size": {"longest_edge": 32},
        "pad_size": {"height": 32, "width": 32},
        "mask_size": {"longest_edge": 32},
        "mask_pad_size": {"height": 32, "width": 32},
    }
    return SamProcessor(SamImageProcessor(**sizes))


@pytest.fixture(scope="module")
def photo():
    """64 x 48, so that the model sees 32 x 24 pixels."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 60, (48, 64, 3))
    image[10:30, 12:40] += 150
    return Image.fromarray(image.astype(np.uint8))


PROMPTS = [
    {"input_points": [[[20.0, 20.0]]]},
    {"input_points": [[[[20.0, 20.0], [50.0, 40.0]], [[5.0, 5.0], [60.0, 3.0]]]], "input_labels": [[[1, 0], [1, 1]]]},
    {"input_boxes": [[[12.0, 10.0, 40.0, 30.0]]]},
]


@pytest.mark.parametrize("prompts", PROMPTS, ids=["point", "points", "box"])
def test_prompts_by_the_native_processor(sam, fast, processor, photo, prompts):
    inputs = processor(photo, **prompts, return_tensors="pt").to(torch.float32)
    with torch.no_grad():
        native, actual = sam(**inputs), fast(**inputs)
        off = ta.accelerate(fast, None)(**inputs)
        embeddings = fast.get_image_embeddings(inputs.pop("pixel_values"))
        embedded = fast(**inputs, image_embeddings=embeddings)
    assert actual.pred_masks.shape == native.pred_masks.shape
    assert (actual.pred_masks - native.pred_masks).abs().max() > 1e-3 * native.pred_masks.abs().max()
    assert torch.equal(off.pred_masks, native.pred_masks)
    assert torch.equal(embedded.pred_masks, actual.pred_masks)
    masks = processor.post_process_masks(actual.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    assert masks[0].shape[-2:] == (48, 64)


def test_embeddings_have_native_shapes(sam, fast):
    images = FamilyTester().images()
    native, actual = sam.get_image_embeddings(images), fast.get_image_embeddings(images)
    assert actual.shape == native.shape == (2, 16, 8, 8)
    assert (actual - native).abs().max() > 1e-3 * native.abs().max()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"input_points": [[[200.0, 20.0]]]}, r"input_points\[0, 0, 0\] .*\(100.0, 10.0\).*24 x 32.*\(16.0, 12.0\)"),
        ({"input_points": [[[20.0, 60.0]]]}, r"input_points\[0, 0, 0\] .*\(10.0, 30.0\)"),  # in the padding
        ({"input_points": [[[-9.0, 5.0]]]}, r"input_points\[0, 0, 0\] "),
        ({"input_boxes": [[[1.0, 1.0, 9.0, 9.0], [70.0, 0.0, 80.0, 9.0]]]}, r"input_boxes\[0, 1\] .*touch its image"),
    ],
)
def test_prompts_outside_the_image_are_refused(fast, processor, photo, prompts, message):
    inputs = processor(photo, **prompts, return_tensors="pt").to(torch.float32)
    with pytest.raises(ValueError, match=message):
        fast(**inputs)


def test_prompts_at_the_border_and_padded_ones_are_accepted(fast, processor, photo):
    points = [[[0.0, 0.0], [64.0, 48.0]]]
    fast(**processor(photo, input_points=points, return_tensors="pt").to(torch.float32))
    fast(**processor(photo, input_boxes=[[[-5.0, -5.0, 70.0, 50.0]]], return_tensors="pt").to(torch.float32))
    fast(FamilyTester().images(1), torch.tensor([[[[4.0, 4.0], [-10.0, -10.0]]]]), torch.tensor([[[1, -10]]]))
    with pytest.raises(ValueError, match=r"input_points\[0, 0, 0\] .*32 x 32"):
        fast(FamilyTester().images(1), torch.tensor([[[[40.0, 4.0]]]]))
    with pytest.raises(ValueError, match="must be a 4D tensor"):
        fast(FamilyTester().images(1), torch.tensor([[40.0, 4.0]]))


def test_prompts_on_a_gpu_are_not_waited_for(fast):
    def run(model, images):
        points = torch.empty(1, 1, 1, 2, dtype=images.dtype, device="cuda")
        labels = torch.ones(1, 1, 1, dtype=torch.int64, device="cuda")
        sizes = torch.empty(1, 2, dtype=torch.int64, device="cuda")
        with torch.no_grad():
            return [model(images, points, labels, reshaped_input_sizes=sizes).pred_masks]

    assert not gpu.waits(fast, run, FamilyTester().images(1), "bfloat16")


def test_mask_generation_pipeline(sam, fast, processor, photo, tmp_path):
    fast.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options = {"points_per_crop": 4, "pred_iou_thresh": -100.0, "stability_score_thresh": 0.0}
    generator = pipeline("mask-generation", model=str(tmp_path))
    assert type(generator.model) is TokAccelSamModel
    actual = generator(photo, **options)
    expected = pipeline("mask-generation", model=fast, image_processor=processor.image_processor)(photo, **options)
    native = pipeline("mask-generation", model=sam, image_processor=processor.image_processor)(photo, **options)
    assert actual["masks"]
    assert all(mask.shape == (48, 64) for mask in actual["masks"])
    assert torch.allclose(actual["scores"], expected["scores"], atol=1e-4)
    assert actual["scores"].shape != native["scores"].shape or not torch.allclose(
        actual["scores"], native["scores"], atol=1e-4
    )


@pytest.mark.slow
def test_prompted_model_compiles_without_graph_break(fast):
    torch._dynamo.reset()
    inputs = {"pixel_values": FamilyTester().images(1), "input_points": torch.tensor([[[[4.0, 4.0]]]])}
    with torch.no_grad():
        actual = torch.compile(fast, fullgraph=True, backend="aot_eager")(**inputs)
        assert torch.allclose(actual.pred_masks, fast(**inputs).pred_masks, atol=1e-4)


def test_the_encoder_of_a_whole_checkpoint_loads(fast, tmp_path):
    """As native: `SamVisionModel` reads the folder of a `SamModel`."""
    ta.to_native(fast).save_pretrained(tmp_path)
    loaded, info = TokAccelSamVisionModel.from_pretrained(tmp_path, accel=ACCEL, output_loading_info=True)
    assert not info["missing_keys"]
    images = FamilyTester().images()
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images).last_hidden_state, fast.get_image_embeddings(images))
