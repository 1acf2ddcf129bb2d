"""Import Transformers' own test modules under a private package name, because `tests` is our name as well."""

import functools
import importlib
import os
import sys
import types
import warnings
from unittest import mock

import pytest

from .sdist import UpstreamError, sources

PACKAGE = "transformers_upstream_tests"

# What the sdist lacks but its modules import, with as much content as they read.
STUBS = {
    "exporters": {},
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation": {},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils": {},
    "utils.test_configuration_utils": {
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "output_attentions": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 3,
            "architectures": ["SomeModel"],
            "id2label": {0: "label"},
            "label2id": {"label": 0},
            "problem_type": "regression",
        }
    },
}


class _UpstreamMarks:
    """`pytest.mark` that ignores marks nobody declared: upstream's are declared in its configuration, not in ours."""

    def __init__(self, declared):
        self._declared = declared

    def __getattr__(self, name):
        try:
            return getattr(self._declared, name)
        except pytest.fail.Exception:  # --strict-markers
            return lambda *test: test[0] if test else self._declared.usefixtures()


@functools.cache
def _import_all() -> types.SimpleNamespace:
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(sources())]
    sys.modules[PACKAGE] = package
    for name, content in STUBS.items():
        stub = types.ModuleType(f"{PACKAGE}.{name}")
        stub.__path__ = []
        vars(stub).update(content)
        sys.modules[stub.__name__] = stub
    names = ("modeling", "backbone", "configuration")
    with warnings.catch_warnings(), mock.patch.object(pytest, "mark", _UpstreamMarks(pytest.mark)):
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        modules = {name: importlib.import_module(f"{PACKAGE}.test_{name}_common") for name in names}
    return types.SimpleNamespace(**modules)


def load() -> types.SimpleNamespace:
    """Upstream's test modules `modeling`, `backbone` and `configuration`; without them the calling module skips."""
    if importlib.util.find_spec("parameterized") is None:
        reason = "Transformers' tests need the package `parameterized`: pip install parameterized"
    else:
        try:
            return _import_all()
        except UpstreamError as error:
            reason = f"Transformers' own tests are not available: {error}"
    if os.environ.get("HF_TOKACCEL_REQUIRE_UPSTREAM") == "1":
        raise RuntimeError(reason)
    pytest.skip(reason, allow_module_level=True)


def same_role(ours: type, native: type) -> None:
    """Enter our class in each class-name list that holds the native one: by these the mixin decides what to train."""
    modeling = load().modeling
    model_type = ours.config_class.model_type
    for list_name, names in list(vars(modeling).items()):
        if list_name.endswith("_MAPPING_NAMES") and native.__name__ in modeling.get_values(names):
            own = names.get(model_type, (native.__name__,))
            # A new mapping in upstream's test module only: the real one belongs to Transformers' Auto classes.
            setattr(modeling, list_name, {**names, model_type: tuple(dict.fromkeys((*own, ours.__name__)))})
