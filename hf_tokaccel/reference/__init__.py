"""Small reference models that come with the library, so that it can be tried without a network."""

from pathlib import Path

_MODELS = {"depth": "dpt-scenes"}


def reference_model_path(name: str) -> Path:
    """Return the folder of a reference model, to be passed to `from_pretrained`.

    Args:
        name: "depth" for the monocular depth model trained on `hf_tokaccel.scenes`.

    Raises:
        ValueError: If there is no reference model of that name.
    """
    if name not in _MODELS:
        known = ", ".join(repr(known) for known in _MODELS)
        raise ValueError(f"Unknown reference model {name!r}: it must be one of {known}; for example 'depth'.")
    return Path(__file__).parent / _MODELS[name]
