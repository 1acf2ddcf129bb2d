"""Small reference models that come with the library, so that it can be tried without a network."""

from pathlib import Path

from ..checks import UserError, did_you_mean

_MODELS = {"depth": "dpt-scenes", "segmentation": "segmenter-scenes", "panoptic": "mask2former-scenes"}
REFERENCE_MODELS = tuple(_MODELS)


def reference_model_path(name: str) -> Path:
    """Return the folder of a reference model, to be passed to `from_pretrained`.

    Args:
        name: "depth", "segmentation" or "panoptic", for the models trained on `hf_tokaccel.scenes`.

    Raises:
        ValueError: If there is no reference model of that name, or this copy of the package lacks its folder.
    """
    if name not in _MODELS:
        known = ", ".join(repr(known) for known in _MODELS)
        near = did_you_mean(name, _MODELS)
        raise UserError(f"Unknown reference model {name!r}: it must be one of {known}; for example 'depth'{near}.")
    folder = Path(__file__).parent / _MODELS[name]
    if not folder.is_dir():
        raise UserError(
            f"The reference model {name!r} is missing: there is no folder {folder}. Install the package as a whole, "
            "or give a model of your own."
        )
    return folder
