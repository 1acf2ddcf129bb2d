import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from adaptive_family import ADAPTIVE, AdaptiveInFull
from family import ACCEL, FamilyTester
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

import hf_tokaccel as ta
from hf_tokaccel.convert.segmenter_keys import to_original_names, to_our_names
from hf_tokaccel.hosts import clusters
from hf_tokaccel.measure.flops import flop_counter
from hf_tokaccel.models.segmenter import (
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterModel,
    segmenter_image_processor,
)

GOLDENS = Path(__file__).parents[1] / "goldens"
EXPEDIT = GOLDENS / "expedit_segmenter_vit_8x8_4x4.safetensors"
ORIGINAL = GOLDENS / "expedit_segmenter_rstrudel_tiny.safetensors"
TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_num_attention_heads": 2,
    "num_labels": 5,
    "initializer_range": 0.2,
}


def tiny_model(**fields):
    torch.manual_seed(0)
    return SegmenterForSemanticSegmentation(SegmenterConfig(**{**TINY, **fields})).eval()


def golden_model(path, prefixes, **fields):
    """The golden's model under our names; `prefixes` maps what its parameters start with to the original's name."""
    with safe_open(path, "pt") as file:
        sizes = json.loads(file.metadata()["config"])
    state = {}
    for name, value in load_file(path).items():
        for prefix, original in prefixes.items():
            if name.startswith(prefix):
                state[original + name.removeprefix(prefix)] = value
    config = SegmenterConfig(
        image_size=sizes["image"],
        patch_size=sizes["patch"],
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * sizes["dim"],
        decoder_num_attention_heads=sizes["heads"],
        num_labels=sizes["n_cls"],
        **fields,
    )
    model = SegmenterForSemanticSegmentation(config).eval()
    state, _ = to_our_names(to_original_names(state))
    model.load_state_dict(state)
    return model


def assert_near(actual, expected, tolerance=1e-4):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


# The original, as rstrudel/segmenter computes it.


@pytest.mark.parametrize("decoder", ["mask_transformer", "linear"])
@pytest.mark.parametrize("case", ["square", "padded_interp"])
def test_agrees_with_the_original(decoder, case):
    golden = load_file(ORIGINAL)
    heads = {"mask_transformer": ("model.decoder.", "masks_grid"), "linear": ("linear_decoder.", "linear_masks_grid")}
    prefix, output = heads[decoder]
    model = golden_model(ORIGINAL, {"model.encoder.": "encoder.", prefix: "decoder."}, decoder_type=decoder)
    image = golden[f"{case}/image"]
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % 4, 0, -height % 4))
    with torch.no_grad():
        logits, tokens = model(padded).logits, model.segmenter(padded).last_hidden_state
    assert_near(tokens, golden[f"{case}/encoder_tokens"])
    assert_near(logits, golden[f"{case}/{output}"])
    if decoder == "mask_transformer":
        resized = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear")[..., :height, :width]
        assert_near(resized, golden[f"{case}/masks"])


# What Transformers expects of a model.


def test_loss_is_that_of_the_resized_logits_without_ignored_pixels():
    model, images = tiny_model(), torch.randn(2, 3, 32, 32)
    labels = torch.randint(0, 5, (2, 20, 24))
    labels[:, :7] = 255
    output = model(images, labels=labels)
    logits = F.interpolate(output.logits, size=(20, 24), mode="bilinear", align_corners=False)
    expected = -logits.log_softmax(1).gather(1, labels.clamp(max=4)[:, None])[:, 0][labels != 255].mean()
    torch.testing.assert_close(output.loss, expected)
    labels[:, :7] = 0
    assert not torch.allclose(model(images, labels=labels).loss, expected)


def test_loss_of_one_class_is_binary():
    model, images = tiny_model(num_labels=1, decoder_type="linear"), torch.randn(1, 3, 32, 32)
    labels = torch.randint(0, 2, (1, 32, 32))
    labels[:, 20:] = 255
    output = model(images, labels=labels)
    logits = F.interpolate(output.logits, size=(32, 32), mode="bilinear")[:, 0]
    probability = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(output.loss, -probability.log()[labels != 255].mean())


def test_position_embeddings_follow_the_image():
    model = tiny_model(image_size=[32, 48])
    for size, grid in (((32, 48), (8, 12)), ((48, 32), (12, 8)), ((8, 100), (2, 25))):
        assert model(torch.randn(1, 3, *size)).logits.shape == (1, 5, *grid)
    with pytest.raises(ValueError, match=r"interpolate_pos_encoding=False.*\(12, 8\).*\(8, 12\)"):
        model(torch.randn(1, 3, 48, 32), interpolate_pos_encoding=False)
    with pytest.raises(ValueError, match=r"image size \(33, 48\).*multiples of the patch size.*\(32, 48\)"):
        model(torch.randn(1, 3, 33, 48))


@pytest.mark.parametrize("decoder", ["mask_transformer", "linear"])
def test_trains_with_checkpointing_in_every_attention(decoder):
    gradients = []
    for implementation, checkpointing in (("eager", False), ("sdpa", False), ("sdpa", True)):
        model = tiny_model(decoder_type=decoder, decoder_dropout_prob=0.0).train()
        model.set_attn_implementation(implementation)
        if checkpointing:
            model.gradient_checkpointing_enable()
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 5, (2, 32, 32), generator=generator)
        model(torch.randn(2, 3, 32, 32, generator=generator), labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for others in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-5)


def test_distillation_token_comes_second_and_takes_part():
    model, images = tiny_model(distilled=True), torch.randn(1, 3, 32, 48)
    tokens = model.segmenter(images).last_hidden_state
    assert tokens.shape == (1, 2 + 8 * 12, 32)
    before = model(images).logits
    with torch.no_grad():
        model.segmenter.embeddings.distillation_token += 1
    assert not torch.allclose(model(images).logits, before)


def test_bad_fields_are_named_with_what_works():
    with pytest.raises(ValueError, match=r"decoder_type='fcn'.*linear"):
        SegmenterConfig(decoder_type="fcn")
    with pytest.raises(ValueError, match=r"num_attention_heads=5.*hidden_size=768"):
        SegmenterConfig(num_attention_heads=5)
    with pytest.raises(ValueError, match=r"decoder_num_attention_heads=0.*decoder_hidden_size=768"):
        SegmenterConfig(decoder_num_attention_heads=0)


def test_folder_loads_with_auto_classes_and_keeps_the_original_normalisation(tmp_path):
    model = tiny_model(image_size=[32, 48])
    model.save_pretrained(tmp_path)
    segmenter_image_processor(model.config).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    pixels = processor(image, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 48)
    expected = processor(image, do_resize=False, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(expected, (image.float() - 127.5) / 127.5)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)
    maps = processor.post_process_semantic_segmentation(loaded(pixels), target_sizes=[(64, 64)])
    assert maps[0].shape == (64, 64)


# Accelerated.


class SegmenterTester(FamilyTester):
    def config(self):
        return SegmenterConfig(**TINY)


class TestSegmenterForSemanticSegmentation(SegmenterTester):
    native, auto = SegmenterForSemanticSegmentation, AutoModelForSemanticSegmentation


class TestSegmenterAdaptive(AdaptiveInFull, TestSegmenterForSemanticSegmentation):
    pass


class TestSegmenterWithFeaturesReconstructed(SegmenterTester):
    secondary = True
    native, auto = SegmenterForSemanticSegmentation, AutoModelForSemanticSegmentation
    accel = {**ACCEL, "decode_clusters": False}


class TestSegmenterWithLinearDecoder(SegmenterTester):
    secondary = True
    native, auto = SegmenterForSemanticSegmentation, AutoModelForSemanticSegmentation

    def config(self):
        return SegmenterConfig(**TINY, decoder_type="linear")


class TestSegmenterModel(SegmenterTester):
    secondary = True
    native, auto = SegmenterModel, AutoModel

    def config(self):
        return SegmenterConfig(**TINY, distilled=True)


RELEASED = {
    "cluster_after": 1,
    "cluster_grid": 4,
    "inverse_temperature": 0.02,
    "window": 5,
    "neighbors": 6,
    "expansion": "soft",
    "normalization": "l2",
}


def expedit_model():
    return golden_model(EXPEDIT, {"backbone.": "backbone.", "decode_head.": "decode_head."}, layer_norm_eps=1e-6)


@pytest.mark.parametrize(
    ("order", "accel"),
    [
        ("baseline", None),
        ("released", RELEASED),
        ("released", {**RELEASED, "expansion": None, "normalization": None}),
        ("in_backbone", {**RELEASED, "decode_clusters": False}),
        ("in_backbone", {**RELEASED, "reconstruct_after": 4}),
    ],
)
def test_agrees_with_expedit(order, accel):
    golden, model = load_file(EXPEDIT), ta.accelerate(expedit_model(), accel)
    with torch.no_grad():
        logits = model(golden["image"]).logits
        tokens = model.segmenter(golden["image"]).last_hidden_state
    if order == "released":
        assert_near(logits, golden["released/logits_reconstructed"].transpose(1, 2).unflatten(2, (8, 8)))
    else:
        assert_near(logits, golden[f"{order}/logits"])
        assert_near(tokens[:, 1:].transpose(1, 2).unflatten(2, (8, 8)), golden[f"{order}/features"])
    assert_near(F.interpolate(logits, size=32, mode="bilinear"), golden[f"{order}/output"])


def test_expedit_intermediates():
    golden, model = load_file(EXPEDIT), ta.accelerate(expedit_model(), RELEASED)
    seen = {}
    model.segmenter.layernorm.register_forward_hook(lambda module, args, output: seen.update(tokens=output))
    model.decode_head.register_forward_hook(lambda module, args, output: seen.update(logits=output))
    with torch.no_grad(), ta.observe_clusters() as clusterings:
        model(golden["image"])
    assert_near(clusterings[0].clusters.centroids, golden["released/feat_after_pooling"])
    assert_near(seen["tokens"][:, 1:].transpose(1, 2).unflatten(2, (4, 4)), golden["released/features"])
    assert_near(seen["logits"].transpose(1, 2).unflatten(2, (4, 4)), golden["released/logits_clustered"])


def test_linear_decoder_in_both_orders():
    # A linear layer and a weighted sum commute, except for the bias, which weights of the L2 norm scale as well.
    model = tiny_model(decoder_type="linear")
    with torch.no_grad():
        model.decode_head.bias.normal_(generator=torch.Generator().manual_seed(2))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def logits(**fields):
        with torch.no_grad():
            return ta.accelerate(model, {**ACCEL, **fields})(images).logits

    for normalization, same in (("l1", True), ("l2", False)):
        first, second = (logits(normalization=normalization, decode_clusters=choice) for choice in (True, False))
        assert torch.allclose(first, second, atol=1e-4) is same


def test_delta_is_rebuilt_before_the_last_layernorm():
    model = ta.accelerate(tiny_model(), {**ACCEL, "expansion": "delta"})
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        states = model(images, output_hidden_states=True).hidden_states
        tokens = model.segmenter(images).last_hidden_state
    torch.testing.assert_close(tokens, model.segmenter.layernorm(states[-1]))
    assert model.config.accel["decode_clusters"] is False


DECODED = {**ACCEL, "expansion": "delta", "decode_clusters": True}


def test_delta_adds_the_change_in_the_decoders_blocks_too(monkeypatch):
    plans, plan = [], clusters.plan_reconstruction
    monkeypatch.setattr(
        "hf_tokaccel.hosts.clusters.plan_reconstruction", lambda *a, **k: plans.append(plan(*a, **k)) or plans[-1]
    )
    model, images = ta.accelerate(tiny_model(), DECODED), torch.randn(2, 3, 32, 32)
    seen = []
    model.segmenter.layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, 1:]))
    head, norm = model.decode_head, model.segmenter.layernorm
    with torch.no_grad():
        logits = model(images).logits
        refined, (rule,) = seen[0], plans
        weights = torch.zeros(2, 64, refined.shape[1]).scatter_add_(2, rule.indices, rule.weights)
        tokens = norm(rule.tokens + weights @ (refined - rule.centroids))
        before = head.projection(norm(refined))
        states = torch.cat((before, head.class_embeddings.expand(2, -1, -1)), 1)
        for layer in head.layers:
            states = layer(states)
        count = before.shape[1]
        patches = head.projection(tokens) + weights @ (states[:, :count] - before)
        expected = head.compare(patches, states[:, count:])
    assert logits.shape == (2, 5, 8, 8)
    assert_near(logits.flatten(2).transpose(1, 2), expected, 1e-5)
    assert not torch.allclose(
        logits, ta.accelerate(model, {**DECODED, "decode_clusters": False})(images).logits, atol=1e-2
    )


@pytest.mark.parametrize("fields", [{"decoder_type": "linear"}, {"decoder_num_hidden_layers": 0}])
def test_a_decoder_without_blocks_cannot_run_on_clusters_of_delta(fields):
    model = tiny_model(**fields)
    with pytest.raises(ValueError, match=r"decode_clusters=True .*decoder has no blocks.*decode_clusters=False"):
        ta.accelerate(model, DECODED)
    fastest = ta.recommended(model.config, 32, 1.8)
    assert ta.accelerate(model, fastest).config.accel["decode_clusters"] is False


def test_frames_share_a_plan_in_the_decoder_too():
    model, frame = tiny_model(), torch.randn(1, 3, 32, 32)
    clip = torch.cat((frame, torch.randn(1, 3, 32, 32)))
    with torch.no_grad():
        shared, single = (ta.accelerate(model, {**DECODED, "shared_frames": n}) for n in (2, 1))
        twice = frame.expand(2, -1, -1, -1)
        torch.testing.assert_close(shared(twice).logits, single(twice).logits, rtol=1e-4, atol=1e-4)
        logits = shared(clip).logits
        torch.testing.assert_close(shared(clip.flip(0)).logits.flip(0), logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(logits, single(clip).logits, atol=1e-2)


@pytest.mark.parametrize("expansion", ["delta", "nearest"])
def test_the_decoder_weighs_clusters_by_their_sizes_and_classes_by_one(expansion):
    model = tiny_model()
    setting = {**ADAPTIVE, "expansion": expansion, "decode_clusters": True}
    fast, images, seen = ta.accelerate(model, setting), torch.randn(2, 3, 32, 32), {}
    fast.set_attn_implementation("eager")
    attention = fast.decode_head.layers[0].attention
    for part in ("q_proj", "k_proj", "v_proj"):
        getattr(attention, part).register_forward_hook(lambda m, i, o, part=part: seen.update({part: o}))
    attention.o_proj.register_forward_pre_hook(lambda m, i: seen.update(o_proj=i[0]))
    with ta.observe_clusters() as observed, torch.no_grad():
        fast(images)
    query, key, value = (seen[part].unflatten(2, (2, 16)).transpose(1, 2) for part in ("q_proj", "k_proj", "v_proj"))
    sizes = F.pad(observed[-1].clusters.sizes(), (0, 5), value=1.0)
    expected = ((query @ key.transpose(2, 3) / 4) + sizes.log()[:, None, None]).softmax(-1) @ value
    torch.testing.assert_close(seen["o_proj"], expected.transpose(1, 2).flatten(2))
    assert sizes.shape == (2, 16 + 5)


@pytest.mark.graph
def test_delta_in_the_decoder_compiles_and_exports():
    model, images = ta.accelerate(tiny_model(), DECODED), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(images).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images).logits
        exported = torch.export.export(model, (), {"pixel_values": images}).module()(pixel_values=images).logits
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-5)


def test_soft_is_rebuilt_after_the_last_layernorm():
    model = ta.accelerate(tiny_model(), {**ACCEL, "decode_clusters": False})
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        states = model(images, output_hidden_states=True).hidden_states
        tokens = model.segmenter(images).last_hidden_state
    assert not torch.allclose(tokens, model.segmenter.layernorm(states[-1]), atol=1e-2)


def test_one_plan_per_pass(monkeypatch):
    calls, original = [], clusters.plan_reconstruction
    monkeypatch.setattr(
        "hf_tokaccel.hosts.clusters.plan_reconstruction", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    model = ta.accelerate(tiny_model(), ACCEL)
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32), output_hidden_states=True)
    assert len(calls) == 1


def test_decoder_on_clusters_costs_less():
    flops = []
    for choice in (True, False):
        model = ta.accelerate(tiny_model(), {**ACCEL, "decode_clusters": choice})
        with flop_counter() as counter, torch.no_grad():
            model(torch.randn(1, 3, 32, 32))
        flops.append(counter.get_total_flops())
    assert flops[0] < flops[1]
