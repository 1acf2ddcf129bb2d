"""Transformers' mixins for accelerated classes: what deviates from native, and why, is written out here."""

import functools
import math
from unittest import mock

import pytest
import torch
from family import ACCEL
from transformers.testing_utils import torch_device

import hf_tokaccel as ta

from .base import MASKED_CASES, BackboneTests, ModelTests, takes_mask, upstream
from .loading import same_role
from .record import recorded_skips, run_control


@functools.cache
def _skips_natively(control: type, test: str) -> int:
    recorded = recorded_skips(control)
    return recorded.get(test, 0) if recorded is not None else run_control(control, test)[0]


class _Accelerated:
    """`control` is the test class of the native classes, in the same order as `all_model_classes`.

    With `accel` the first of 4 layers sees all tokens and the others see clusters: each test crosses that point.
    """

    control: type
    accel = ACCEL

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.all_model_classes:
            for ours, native in cls.pairs():
                same_role(ours, native)

    @classmethod
    def pairs(cls):
        return list(zip(cls.all_model_classes, cls.control.all_model_classes, strict=True))

    def make_config(self):
        return ta.accelerate_config(self.native_config(), self.accel)

    def control_config(self):
        return self.control().native_config()

    def skipTest(self, reason):  # noqa: N802
        # A test may be skipped where it is for native too, and not because ours looks different to the mixin.
        natively = _skips_natively(self.control, self._testMethodName)
        assert self.skips < natively, f"skipped for the accelerated classes only: {reason}"
        super().skipTest(reason)


class AcceleratedBackboneTests(_Accelerated, BackboneTests):
    """Transformers' BackboneTesterMixin: nothing deviates."""


class AcceleratedModelTests(_Accelerated, ModelTests):
    """Transformers' ModelTesterMixin, and what it leaves open about clustering."""

    def test_acceleration_is_on(self):
        # Without it everything else would hold just as well.
        for model_class in self.all_model_classes:
            on = model_class(self.make_config())
            off = model_class(ta.accelerate_config(self.native_config(), None))
            off.load_state_dict(on.state_dict())
            last, other = (self.outputs(model, output_hidden_states=True).hidden_states[-1] for model in (on, off))
            assert (last - other).norm() > 1e-2 * other.norm(), model_class.__name__

    def test_attention_outputs(self):
        super().test_attention_outputs()
        # Deviation: from the point of clustering on, attention is among clusters. Upstream sees the first layer alone.
        full, clustered = self.model_tester.seq_length, 1 + math.prod(self.accel["cluster_grid"])
        for model_class in self.all_model_classes:
            model = model_class._from_config(self.make_config(), attn_implementation="eager")
            attentions = self.outputs(model, output_attentions=True).attentions
            expected = [(full, full)] + [(clustered, clustered)] * 3
            assert [tuple(attention.shape[-2:]) for attention in attentions] == expected

    def test_hidden_states_output(self):
        super().test_hidden_states_output()
        # No deviation, but upstream sees the first state alone: all are full-size.
        shape = (self.model_tester.batch_size, self.model_tester.seq_length, self.model_tester.hidden_size)
        for model_class in self.all_model_classes:
            states = self.outputs(model_class(self.make_config()), output_hidden_states=True).hidden_states
            assert [tuple(state.shape) for state in states] == [shape] * 5

    def test_can_capture_specific_layers_hidden_states(self):
        # Deviation: upstream asks a model's hooks whether it can, and ours do not record hidden states, since the
        # track does. So: what native gives as None is None, and the rest is as in the full output. Stages that a
        # backbone's feature maps come from are left out of the choice.
        for ours, native in self.pairs():
            model = ours(self.make_config())
            full = self.outputs(model, output_hidden_states=True).hidden_states
            chosen = self.outputs(model, output_hidden_states=[1, -2]).hidden_states
            expected = self.outputs(native(self.control_config()), output_hidden_states=[1, -2]).hidden_states
            assert [state is None for state in chosen] == [state is None for state in expected], ours.__name__
            for state, same in zip(chosen, full, strict=True):
                if state is not None:
                    torch.testing.assert_close(state, same)

    def test_gradients_reach_what_they_reach_natively(self):
        # Where `test_all_params_have_gradient` is off, natively unused parameters are all that may go without.
        for ours, native in self.pairs():
            if native not in self.control.cannot_train:
                unused = self._without_gradient(native, self.control_config())
                assert self._without_gradient(ours, self.make_config()) <= unused

    def _without_gradient(self, model_class, config):
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = model_class(config).to(torch_device)
        output = model(**self._prepare_for_class(inputs, model_class, return_labels=True))
        # A model without a loss returns a tensor first, a backbone a tuple of feature maps.
        parts = [output.loss] if "loss" in output else output[0] if isinstance(output[0], tuple) else [output[0]]
        sum(part.sum() for part in parts).backward()
        return {name for name, parameter in model.named_parameters() if parameter.grad is None}

    def test_attention_mask_is_refused(self):
        # Deviation: clusters mix masked and unmasked tokens.
        mask = torch.ones(self.model_tester.batch_size, self.model_tester.seq_length)
        for model_class in filter(takes_mask, self.all_model_classes):
            with pytest.raises(ValueError, match="attention_mask"):
                self.outputs(model_class(self.make_config()), attention_mask=mask)

    def run_masked_case(self, upstream_case):
        # Deviation, as above: a class that takes a mask takes it as native does, with acceleration off.
        for classes, accel in (
            ([model_class for model_class in self.all_model_classes if takes_mask(model_class)], None),
            ([model_class for model_class in self.all_model_classes if not takes_mask(model_class)], self.accel),
        ):
            if classes:
                with self.only(classes), mock.patch.object(self, "accel", accel):
                    upstream_case(self)


def _masked_case(name):
    upstream_case = getattr(upstream.modeling.ModelTesterMixin, name)

    def test(self):
        self.run_masked_case(upstream_case)

    return test


# Earlier versions take no list of hidden states.
if not hasattr(upstream.modeling.ModelTesterMixin, "test_can_capture_specific_layers_hidden_states"):
    AcceleratedModelTests.test_can_capture_specific_layers_hidden_states = None
for _name in MASKED_CASES:
    setattr(AcceleratedModelTests, _name, _masked_case(_name))
