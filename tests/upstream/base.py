"""Transformers' mixins as bases for tests of native classes, which are the control of those in `accelerated`."""

import contextlib
import functools
import inspect
import re
import unittest
from unittest import mock

import pytest
import torch
from transformers.testing_utils import torch_device

from .loading import load
from .record import recorded_skips

upstream = load()


class VisionModelTester:
    """What the mixins want to know of a family: a config, and square images."""

    batch_size = 3
    num_hidden_layers = 4
    num_attention_heads = 4
    hidden_size = 32
    is_training = True

    def __init__(self, make_config, image_size: int, patch_size: int) -> None:
        self.get_config = make_config
        self.image_size, self.patch_size = image_size, patch_size
        patches = (image_size // patch_size) ** 2
        self.seq_length = 1 + patches
        # Of masked image modelling: the patches, and how many of them are masked.
        self.mask_length, self.num_masks = patches, patches // 2

    def prepare_config_and_inputs_for_common(self):
        # Random pixels: no two tokens are alike, so that no clusters tie.
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(self.batch_size, 3, self.image_size, self.image_size, generator=generator)
        return self.get_config(), {"pixel_values": pixels.to(torch_device)}


class FamilyTests:
    """What all test classes share. A family gives `native_config()`: tiny, and as `VisionModelTester` says."""

    image_size = 32
    patch_size = 4
    control = None
    skips = 0

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # What is recorded need not be run again.
        if is_control(cls) and "__test__" not in vars(cls):
            cls.__test__ = recorded_skips(cls) is None

    def setUp(self):
        super().setUp()
        self.model_tester = VisionModelTester(self.make_config, self.image_size, self.patch_size)

    def make_config(self):
        return self.native_config()

    def skipTest(self, reason):  # noqa: N802
        self.skips += 1
        super().skipTest(reason)

    @contextlib.contextmanager
    def subTest(self, msg="", **params):  # noqa: N802
        # Upstream opens one for each parameter of each model; reporting 10000 of them takes longer than testing.
        try:
            yield
        except unittest.SkipTest:
            pass
        except Exception as error:
            error.add_note(f"in subtest {msg} {params}")
            raise


def is_control(case: type) -> bool:
    """Whether a test class is one of native classes."""
    return bool(case.all_model_classes) and case.control is None


def controls(base: type = FamilyTests) -> list[type]:
    """All of them."""
    return [case for cls in base.__subclasses__() for case in ([cls] * is_control(cls) + controls(cls))]


def takes_mask(model_class) -> bool:
    return "attention_mask" in inspect.signature(model_class.forward).parameters


def sdpa_cases(pattern: str) -> list[str]:
    """Names of the mixin's cases that compare eager attention with SDPA."""
    matching = re.compile(r"test_eager_matches_sdpa_inference_\d+_" + pattern)
    return [name for name in dir(upstream.modeling.ModelTesterMixin) if matching.match(name)]


MASKED_CASES = sdpa_cases("(?!.*no_attn_mask)")


class ModelTests(FamilyTests, upstream.modeling.ModelTesterMixin):
    """Transformers' ModelTesterMixin. A family may say:

    - `cannot_train`: the classes that refuse labels natively.
    - `same_layers_as_another`: the slow comparisons of attention and of dtypes are left to that other family.
    """

    test_resize_embeddings = False
    # Upstream allows 2 layers. Full ones, clustered ones and the four taps of a depth head need 4.
    test_num_layers_is_small = None
    if hasattr(upstream.modeling.ModelTesterMixin, "test_can_init_all_missing_weights_before_2023"):
        # Upstream asks this only of models since 2023, by the year in their files' headers: ask it of all.
        test_can_init_all_missing_weights_before_2023 = True
    else:
        # Earlier versions cannot be told to, and ours have no such header.
        test_can_init_all_missing_weights = None
    cannot_train = ()
    same_layers_as_another = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # Patches attend to both sides: which side is padded is the same, and so is all the mask where none is taken.
        repeated = sdpa_cases(".*pad_right")
        if not any(map(takes_mask, cls.all_model_classes)):
            repeated += [name for name in MASKED_CASES if not name.endswith("output_attentions")]
        if cls.same_layers_as_another:
            repeated += [*sdpa_cases(""), "test_bc_torch_dtype"]
        for name in repeated:
            setattr(cls, name, None)

    def outputs(self, model, **kwargs):
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        with torch.no_grad():
            return model.to(torch_device).eval()(**self._prepare_for_class(inputs, type(model)), **kwargs)

    def only(self, classes):
        """Within this context the mixin sees these model classes alone."""
        return mock.patch.object(self, "all_model_classes", tuple(classes))

    def test_config(self):
        config = self.make_config()
        fields = {"fusion_hidden_size": 48} if config.sub_configs else {"hidden_size": 48, "num_hidden_layers": 3}
        if getattr(config, "accel", None):
            fields["accel"] = config.accel
        tester = upstream.configuration.ConfigTester(self, type(config), has_text_modality=False, **fields)
        tester.run_common_tests()

    def test_bc_torch_dtype(self):
        # A matter of from_pretrained, the same for all classes, and slow: one of them tells. Upstream also prints each
        # pair of parameters, equal or not.
        with (
            self.only(self.all_model_classes[-1:]),
            mock.patch.object(torch.nn.Parameter, "__repr__", object.__repr__),
        ):
            super().test_bc_torch_dtype()

    def test_model_get_set_embeddings(self):
        # Upstream means an embedding of words; here it is the module that embeds patches, where the model tells it.
        for model_class in self.all_model_classes:
            model = model_class(self.make_config())
            assert model.get_output_embeddings() is None
            try:
                embeddings = model.get_input_embeddings()
            except NotImplementedError:
                assert model_class in self.cannot_train, f"{model_class.__name__} should tell its patch embeddings"
            else:
                assert any(isinstance(module, torch.nn.Conv2d) for module in embeddings.modules())

    def test_training(self):
        with self.only(self._trainable()):
            super().test_training()
        for model_class in self.all_model_classes:
            # Upstream's own tests of these families leave such a class out. It has no loss, and has to say so.
            if model_class in self.cannot_train:
                with pytest.raises(NotImplementedError):
                    self.outputs(model_class(self.make_config()), labels=torch.zeros(1))

    def check_training_gradient_checkpointing(self, *args, **kwargs):
        with self.only(self._trainable()):
            super().check_training_gradient_checkpointing(*args, **kwargs)

    def _trainable(self):
        return [model_class for model_class in self.all_model_classes if model_class not in self.cannot_train]


class BackboneTests(FamilyTests, upstream.backbone.BackboneTesterMixin):
    """Transformers' BackboneTesterMixin."""

    @functools.cached_property
    def config_class(self):
        return type(self.make_config())
