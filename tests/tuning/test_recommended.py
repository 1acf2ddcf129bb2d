"""The main guarantees of every family at its recommended setting: `make test-slow`, or -m slow on this file.

Each family's tester is taken as it is, with another `accel`, and only with the tests that suit any setting.
"""

import importlib
import inspect
from pathlib import Path

import pytest
from family import FamilyTester, recommend

GUARANTEES = {
    "test_off_is_bitwise_native",
    "test_batch_equals_singles_and_history_does_not_matter",
    "test_consumes_no_random_numbers",
    "test_native_checkpoint_loads",
    "test_saves_native_names_and_plain_transformers_loads_them",
    "test_setting_is_saved_and_can_be_switched_off",
    "test_accelerate_shares_parameters_and_leaves_the_model_alone",
    "test_compiles_without_graph_break",
    "test_exports",
    "test_gradients_flow_and_checkpointing_changes_nothing",
    "test_reading_hidden_states_does_not_change_the_output",
    "test_other_image_sizes",
    "test_half_precision_is_finite",
}


class _Recommended:
    """Found when a test runs, not when tests are collected."""

    def __get__(self, tester, cls):
        return recommend(cls).to_dict()


def family_classes():
    """The test classes of all families, but for those that repeat the blocks of another class."""
    for path in sorted((Path(__file__).parents[1] / "models").glob("test_*.py")):
        if "Tester)" not in path.read_text():
            continue
        for name, cls in vars(importlib.import_module(path.stem)).items():
            own = inspect.isclass(cls) and cls.__module__ == path.stem and name.startswith("Test")
            if own and issubclass(cls, FamilyTester) and not cls.secondary:
                yield cls


# Where float32 itself is 1.5e-5 of the largest output from float64, so that compiled and eager float32 may differ by
# twice that.
TOLERANCES = {"TestDinov2Backbone": 3e-5}


def at_recommended(cls):
    others = {name: None for name in dir(cls) if name.startswith("test_") and name not in GUARANTEES}
    values = {"accel": _Recommended(), "tolerance": TOLERANCES.get(cls.__name__, cls.tolerance)}
    return type(f"{cls.__name__}Recommended", (cls,), {**others, **values})


for _cls in family_classes():
    globals()[f"{_cls.__name__}Recommended"] = pytest.mark.slow(at_recommended(_cls))
del _cls
