"""Original Segmenter checkpoints (rstrudel/segmenter, and the Expedit port's names) to folders of Transformers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..checks import as_pair, is_count
from ..models.segmenter.configuration import SegmenterConfig
from ..models.segmenter.modeling import SegmenterForSemanticSegmentation, segmenter_image_processor
from .base import Conversion, ConversionError, fill_model, read_checkpoint, some
from .segmenter_classes import CLASS_NAMES
from .segmenter_keys import is_expedit, to_original_names, to_our_names

NORMALIZATIONS = {
    "vit": {},
    "deit": {"image_mean": list(IMAGENET_DEFAULT_MEAN), "image_std": list(IMAGENET_DEFAULT_STD)},
}
_ALWAYS = ("encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed.proj.weight", "encoder.norm.weight")


class _VariantLoader(yaml.SafeLoader):
    """variant.yml is written by `yaml.dump` and holds Python tuples, which the safe loader alone refuses."""


_VariantLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node))
)


def convert(checkpoint: Path, variant: Path) -> Conversion:
    """Reads a checkpoint with its variant.yml.

    Raises:
        ConversionError: when one of them is not what the original writes, or they do not belong together.
    """
    state = read_checkpoint(checkpoint)
    settings = read_variant(variant)
    expedit = is_expedit(state)
    state = to_original_names(state)
    _check_is_segmenter(checkpoint, state)
    net = _Fields(variant, "net_kwargs", settings["net_kwargs"])
    _check_agreement(net, state)
    conversion = _build(net, settings, layer_norm_eps=1e-6 if expedit else 1e-5)
    if expedit:
        conversion.notes.append("names of the Expedit port: its encoder's LayerNorm eps of 1e-6 is taken over")
    unused = _load(checkpoint, conversion.model, state)
    if unused:
        conversion.notes.append(f"dropped, since Segmenter never uses it: {', '.join(unused)}")
    return conversion


def read_variant(path: Path) -> dict[str, Any]:
    """The settings that the original writes beside a checkpoint.

    Raises:
        ConversionError: when the file is no YAML mapping with `net_kwargs` and a decoder in it.
    """
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_VariantLoader)
    except FileNotFoundError:
        raise
    except Exception as error:  # Values such as dates have errors of their own, and so have thousands of brackets.
        raise ConversionError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}") from error
    net = settings.get("net_kwargs") if isinstance(settings, dict) else None
    if not isinstance(net, dict) or not isinstance(net.get("decoder"), dict):
        raise ConversionError(
            f"{path} is not a variant.yml of Segmenter: it needs net_kwargs, with decoder in it. Give the file that "
            "lies beside the checkpoint."
        )
    return settings


class _Fields:
    """Typed access to one mapping of variant.yml, with errors that say where the value stands."""

    def __init__(self, path: Path, where: str, values: Mapping[str, Any]) -> None:
        self.path = path
        self.where = where
        self.values = values

    def integer(self, name: str) -> int:
        value = self.values.get(name)
        if not is_count(value):
            self.refuse(name, "a number above 0")
        return value

    def probability(self, name: str) -> float:
        value = self.values.get(name, 0.0)
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            self.refuse(name, "a number from 0 to 1")
        return float(value)

    def sides(self, name: str) -> tuple[int, int]:
        value = as_pair(self.values.get(name))
        if not isinstance(value, tuple) or len(value) != 2 or not all(map(is_count, value)):
            self.refuse(name, "one or two numbers above 0, for example [512, 512]")
        return value

    def choice(self, name: str, allowed: Iterable[str]) -> str:
        value = self.values.get(name)
        if value not in tuple(allowed):
            self.refuse(name, f"one of {', '.join(allowed)}")
        return value

    def part(self, name: str) -> "_Fields":
        return _Fields(self.path, f"{self.where}.{name}", self.values[name])

    def refuse(self, name: str, allowed: str) -> None:
        given = f"{self.values[name]!r} is not valid" if name in self.values else "is missing"
        raise ConversionError(f"{self.path}: {self.where}.{name} {given}: it must be {allowed}.")


def _check_is_segmenter(path: Path, state: Mapping[str, Tensor]) -> None:
    missing = [name for name in _ALWAYS if name not in state]
    if not missing and not any(name.startswith("decoder.") for name in state):
        missing = ["decoder.*"]
    if missing:
        raise ConversionError(
            f"{path} is not a checkpoint of Segmenter: it lacks {some(missing)} and has, for example, "
            f"{some(list(state))}."
        )


def _decoder_name(net: _Fields) -> str:
    return net.part("decoder").choice("name", ("mask_transformer", "linear"))


def _check_agreement(net: _Fields, state: Mapping[str, Tensor]) -> None:
    """Compares what variant.yml says with what the shapes of the weights tell."""
    name = _decoder_name(net)
    patch, sides = net.integer("patch_size"), net.sides("image_size")
    distilled = bool(net.values.get("distilled", False))
    if any(side % patch for side in sides):
        net.refuse("image_size", f"multiples of patch_size={patch}")
    found_decoder = "mask_transformer" if "decoder.cls_emb" in state else "linear"
    facts = [
        ("d_model", net.integer("d_model"), state["encoder.cls_token"].shape[-1]),
        ("n_layers", net.integer("n_layers"), _count_blocks(state, "encoder")),
        ("patch_size", patch, state["encoder.patch_embed.proj.weight"].shape[-1]),
        ("distilled", distilled, "encoder.dist_token" in state),
        ("decoder.name", name, found_decoder),
    ]
    classes = state.get("decoder.cls_emb" if found_decoder == "mask_transformer" else "decoder.head.weight")
    if classes is not None:
        facts.append(("n_cls", net.integer("n_cls"), classes.shape[-2]))
    if name == "mask_transformer":
        facts.append(("decoder.n_layers", net.part("decoder").integer("n_layers"), _count_blocks(state, "decoder")))
    tokens = (sides[0] // patch) * (sides[1] // patch)
    stored = state["encoder.pos_embed"].shape[-2] - (2 if distilled else 1)
    facts.append((f"image_size {list(sides)}, so the number of patches", tokens, stored))
    wrong = [f"{what} is {said}, in the checkpoint {found}" for what, said, found in facts if said != found]
    if wrong:
        raise ConversionError(f"{net.path} does not belong to this checkpoint: there {'; '.join(wrong)}.")


def _count_blocks(state: Mapping[str, Tensor], part: str) -> int:
    return len({name.split(".")[2] for name in state if name.startswith(f"{part}.blocks.")})


def _build(net: _Fields, settings: Mapping[str, Any], *, layer_norm_eps: float) -> Conversion:
    """A model with random weights, its image processor, and what there is to say about the settings."""
    notes = []
    decoder, name = net.part("decoder"), _decoder_name(net)
    fields: dict[str, Any] = {}
    if name == "mask_transformer":
        fields["decoder_num_hidden_layers"] = decoder.integer("n_layers")
        fields["decoder_dropout_prob"] = decoder.probability("dropout")
    if any(part.values.get("drop_path_rate") for part in (net, decoder)):
        notes.append("drop_path_rate only matters in training and is left out: the blocks of Transformers have none")
    names, reduce_labels = _classes(settings, net.integer("n_cls"), notes)
    window = _window(net.path, settings, notes)
    config = SegmenterConfig(
        hidden_size=net.integer("d_model"),
        num_hidden_layers=net.integer("n_layers"),
        num_attention_heads=net.integer("n_heads"),
        # Not in variant.yml: the original fixes it.
        intermediate_size=4 * net.integer("d_model"),
        hidden_dropout_prob=net.probability("dropout"),
        attention_probs_dropout_prob=net.probability("dropout"),
        layer_norm_eps=layer_norm_eps,
        image_size=list(net.sides("image_size")),
        patch_size=net.integer("patch_size"),
        distilled=bool(net.values.get("distilled", False)),
        decoder_type=name,
        id2label=dict(enumerate(names)),
        label2id={label: index for index, label in enumerate(names)},
        **fields,
        **window,
    )
    normalization = NORMALIZATIONS[net.choice("normalization", NORMALIZATIONS)]
    processor = segmenter_image_processor(config, do_reduce_labels=reduce_labels, **normalization)
    return Conversion(SegmenterForSemanticSegmentation(config).eval(), processor, notes)


def _classes(settings: Mapping[str, Any], count: int, notes: list[str]) -> tuple[list[str], bool]:
    """Class names, and whether label images count from 1 with 0 for what is ignored."""
    dataset = (settings.get("dataset_kwargs") or {}).get("dataset")
    names = CLASS_NAMES.get(dataset)
    if names is None or len(names) != count:
        known = ", ".join(f"{name} ({len(names)})" for name, names in CLASS_NAMES.items())
        notes.append(f"no class names for {dataset!r} with {count} classes (known: {known}): LABEL_0, LABEL_1, ...")
        names = [f"LABEL_{index}" for index in range(count)]
    return list(names), dataset == "ade20k"


def _window(path: Path, settings: Mapping[str, Any], notes: list[str]) -> dict[str, int]:
    """Crop and stride of the sliding window that the checkpoint was evaluated with."""
    values = settings.get("inference_kwargs")
    if not isinstance(values, dict):
        notes.append("variant.yml has no inference_kwargs: the size and stride of its sliding window are unknown")
        return {}
    fields = _Fields(path, "inference_kwargs", values)
    size, stride = fields.integer("window_size"), fields.integer("window_stride")
    if stride > size:
        fields.refuse("window_stride", f"at most window_size={size}, or pixels between windows would be left out")
    return {"inference_window_size": size, "inference_window_stride": stride}


def _load(path: Path, model: SegmenterForSemanticSegmentation, state: Mapping[str, Tensor]) -> list[str]:
    """Fills the model; gives the names that it has no use for."""
    ours, unused = to_our_names(state)
    fill_model(model, ours, f"{path} does not match its variant.yml", "variant.yml")
    return unused
