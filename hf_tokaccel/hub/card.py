"""Model cards of accelerated models, built from what an evaluation measured (`evaluation.Result`)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from ..checks import UserError
from ..registry import auto_models_of, holds_setting
from ..results.report import markdown_table

if TYPE_CHECKING:
    from ..results.rows import Result, Row

RESULT_NAME = "result.json"
NOT_MEASURED = "Not measured."

PIPELINE_TAGS = {  # by Auto class, and by task of a result
    "AutoModelForDepthEstimation": "depth-estimation",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModelForUniversalSegmentation": "image-segmentation",
    "AutoModelForInstanceSegmentation": "image-segmentation",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModelForZeroShotObjectDetection": "zero-shot-object-detection",
    "AutoModelForMaskGeneration": "mask-generation",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForVideoClassification": "video-classification",
    "panoptic-segmentation": "image-segmentation",
    "instance-segmentation": "image-segmentation",
}

_EXPEDIT = """@inproceedings{liang2022expediting,
  title = {Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning},
  author = {Liang, Weicong and Yuan, Yuhui and Ding, Henghui and Luo, Xiao and Lin, Weihong and Jia, Ding and
            Zhang, Zheng and Zhang, Chao and Hu, Han},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2022}
}"""
_STVIT = """@inproceedings{chang2023making,
  title = {Making Vision Transformers Efficient from A Token Sparsification View},
  author = {Chang, Shuning and Wang, Pichao and Lin, Ming and Wang, Fan and Zhang, David Junhao and Jin, Rong and
            Shou, Mike Zheng},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2023}
}"""
_ADAPTIVE = (
    "with adaptive token clustering: after some blocks the patch tokens that are alike become clusters of free shape, "
    "the next blocks run on these, with attention that knows how many tokens each stands for, and all are rebuilt "
    "wherever a head reads features. No weight was changed or retrained."
)
_METHODS = {
    "token_clustering": (
        "token-clustering",
        "with token clustering: after some blocks the patch tokens are clustered, the next blocks run on the "
        "clusters, and full resolution is rebuilt wherever a head reads features. No weight was changed or retrained.",
        _EXPEDIT,
    ),
    "semantic_tokens": (
        "semantic-tokens",
        "on semantic tokens: its layers run on a few learned cluster centres, and its weights are trained so.",
        _STVIT,
    ),
}

TEXT = """
# {title}

{introduction}

## Load it

```python
import hf_tokaccel  # registers the model type with Transformers
from transformers import {processor}, {auto_class}

model = {auto_class}.from_pretrained("{name}")
processor = {processor}.from_pretrained("{name}")
```

The package hf_tokaccel must be installed. With `trust_remote_code=True` the import can be left out.{switch_off}

## Results

{results}

## Limits

{limits}

## Citation

```bibtex
{citation}
```
"""


def build_card(
    config: PreTrainedConfig,
    name: str,
    result: Result | None,
    *,
    base_model: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    processor: str = "AutoImageProcessor",
) -> ModelCard:
    """The card of one accelerated model.

    Args:
        config: Of the model, as saved.
        name: Hub id or folder that the card tells readers to load.
        result: What was measured; None writes "Not measured." in its place.
        base_model: Hub id that the weights come from, if they come from the Hub.
        license: Of the weights, as the Hub names it.
        tags: More of them.
        processor: Auto class of the processor saved with the model.

    Raises:
        ValueError: The result lacks the dense row, a row with this model's setting, or numbers of these.
    """
    accel = setting_of(config)
    method, what, citation = _METHODS[accel["method"]] if accel else ("", "", _EXPEDIT)
    adaptive = bool(accel) and accel.get("clusters") is not None
    what = _ADAPTIVE if adaptive else what
    auto_class = auto_class_of(config)
    rows = None if result is None else pick_rows(result, config)
    model_name = name.rstrip("/").rpartition("/")[2]
    tag = PIPELINE_TAGS.get(auto_class)
    if result is not None:
        tag = PIPELINE_TAGS.get(result.task, result.task)
    data = ModelCardData(
        library_name="transformers",
        base_model=base_model,
        license=license,
        pipeline_tag=tag,
        tags=list(dict.fromkeys(["hf_tokaccel", *([method] if method else []), *tags])),
        model_name=model_name if rows else None,
        eval_results=_eval_results(result, rows[1], tag) if rows else None,
    )
    of = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else f"A `{_architecture(config)}`"
    introduction = f"{of} {what}\n\n```json\n{_setting_text(accel)}\n```" if accel else f"{of}, dense."
    text = TEXT.format(
        title=model_name,
        introduction=introduction,
        name=name,
        auto_class=auto_class,
        processor=processor,
        switch_off=_switch_off(accel, auto_class, name),
        results=NOT_MEASURED + _how_to_measure(name) if rows is None else _results(result, rows),
        limits="\n".join(f"- {line}" for line in _limits(accel, result, rows)),
        citation=citation,
    )
    return ModelCard(f"---\n{data.to_yaml().strip()}\n---\n{text}", ignore_metadata_errors=False)


def read_result(result: Result | str | Path) -> Result:
    """A result, or the JSON file of one.

    Raises:
        ValueError: No such file, or not a result.
    """
    from ..results.rows import Result

    if isinstance(result, Result):
        return result
    try:
        return Result.load(result)
    except OSError as error:
        raise UserError(f"results {result} cannot be read ({error.strerror}); {_HOW}") from error
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{result} is not the {RESULT_NAME} of an evaluation ({error!r}); {_HOW}") from error


_HOW = "give the result.json that `hf_tokaccel evaluate` writes, for example outputs/evaluate_depth/result.json"


def setting_of(config: PreTrainedConfig) -> dict | None:
    """The setting that a model runs with, its own or that of its backbone; None for a dense one."""
    owner = _owner(config)
    return None if owner is None else owner.accel


def _owner(config: PreTrainedConfig) -> PreTrainedConfig | None:
    backbone = getattr(config, "backbone_config", None)
    return next((c for c in (config, backbone) if holds_setting(c) and c.accel), None)


def pick_rows(result: Result, config: PreTrainedConfig) -> list[Row]:
    """Of a comparison what a card shows: the dense row, that of the model's own setting, and its rivals.

    Raises:
        ValueError: One of the first two is missing, or a number of it.
    """
    dense = next((row for row in result.rows if row.kind == "dense"), None)
    if dense is None:
        raise UserError(f"the results of {result.model} have no row of the dense model; {_HOW}")
    owner = _owner(config)
    own = dense if owner is None else next((row for row in result.rows if _same_setting(row, owner)), None)
    if own is None:
        names = "; ".join(row.name for row in result.rows if row.accel)
        raise UserError(
            f"the results of {result.model} have no row of this model's setting, {_setting_text(owner.accel)}: they "
            f"are of {names or 'the dense model alone'}. Evaluate this model, for example with hf_tokaccel evaluate "
            "FOLDER, which takes the setting stored with it"
        )
    for row in (dense, own):
        gaps = [
            c.key for c in result.columns if c.key != "kept" and not math.isfinite(row.metrics.get(c.key, math.nan))
        ]
        if gaps:
            raise UserError(f"the results of {result.model} have no {', '.join(gaps)} in row {row.name!r}; {_HOW}")
    rivals = [row for row in result.rows if row.group == own.group and row.kind not in ("dense", "clusters")]
    return [dense, own, *(row for row in rivals if row is not own)] if own is not dense else [dense, own]


def _same_setting(row: Row, owner: PreTrainedConfig) -> bool:
    if not row.accel or row.accel.get("method") != owner.accel["method"]:
        return False
    try:
        # Results of older versions lack what was added since.
        measured = owner.resolve_accel(row.accel).to_dict()
    except ValueError:
        return False
    return all(measured[key] == value for key, value in owner.accel.items() if key != "version")


def auto_class_of(config: PreTrainedConfig) -> str:
    """Name of the Auto class that loads the class which config.json names."""
    names = set(architectures_of(config))
    found = {
        auto.__name__
        for auto, classes in auto_models_of(type(config)).items()
        if names & {c.__name__ for c in classes}
    }
    tagged = sorted(found & set(PIPELINE_TAGS))
    return tagged[0] if tagged else min(found, default="AutoBackbone" if "Backbone" in "".join(names) else "AutoModel")


def _architecture(config: PreTrainedConfig) -> str:
    return (architectures_of(config) or [type(config).__name__])[0]


def architectures_of(config: PreTrainedConfig) -> list[str]:
    """The classes that config.json names; anything may stand there."""
    names = config.architectures
    return [name for name in names if isinstance(name, str)] if isinstance(names, (list, tuple)) else []


def _setting_text(accel: dict) -> str:
    return json.dumps({key: value for key, value in accel.items() if value is not None})


def _switch_off(accel: dict | None, auto_class: str, name: str) -> str:
    if not accel or accel["method"] != "token_clustering":
        return ""
    return f'\nThe dense model is in the same weights: `{auto_class}.from_pretrained("{name}", accel=None)`.'


def _how_to_measure(name: str) -> str:
    return f" `hf_tokaccel evaluate {name} --dataset …` measures it."


def _eval_results(result: Result, row: Row, tag: str) -> list[EvalResult]:
    slug = re.sub(r"[^a-z0-9]+", "-", result.dataset.lower().partition("(")[0]).strip("-") or "dataset"
    return [
        EvalResult(
            task_type=tag,
            dataset_type=slug,
            dataset_name=result.dataset,
            metric_type=column.key,
            metric_name=column.heading.rstrip(" ↑↓%"),
            metric_value=round(row.metrics[column.key], 6),
        )
        for column in result.columns
        if math.isfinite(row.metrics.get(column.key, math.nan))
    ]


def _results(result: Result, rows: list[Row]) -> str:
    shown = [rows[0], *rows[1:]] if rows[1] is not rows[0] else rows[:1]
    speed = []
    for row in shown:
        milliseconds = [f"{1000 * row.seconds[key]:.1f}" for key in ("median", "p10", "p90")]
        size = " x ".join(map(str, row.input_size))
        speed.append([row.name, size, *milliseconds, f"{row.images_per_second:.1f}", f"{row.speedup:.2f}x"])
    headings = ["model", "input", "batch, ms: median", "10 %", "90 %", "images/s", "speed"]
    protocol = ", ".join(f"{key} {value}" for key, value in result.protocol.items())
    environment = result.environment
    return "\n".join(
        [
            replace(result, rows=shown).sheet().to_markdown(),
            "Speed:\n",
            markdown_table(headings, speed, names=2),
            f"\nProtocol: {protocol}. Measured {environment.get('date', 'at an unknown time')[:10]} by "
            f"`{environment.get('command', 'an unknown command')}`.",
        ]
    )


def _limits(accel: dict | None, result: Result | None, rows: list[Row] | None) -> list[str]:
    lines = []
    if rows is not None:
        height, width = rows[1].input_size
        lines.append(
            f"The numbers hold for {height} x {width} pixels, batches of {result.options.get('batch_size')} and "
            f"{result.options.get('dtype')} on the machine above; elsewhere measure again."
        )
    if accel:
        lines.append(
            "Small models, small images and single images gain little or nothing: fewer tokens only pay where tokens "
            "are what costs."
        )
    if accel and accel["method"] == "token_clustering":
        if accel.get("clusters") is None:
            lines.append("Thin and small things lose first, since a cluster averages what lies near and looks alike.")
        else:
            lines.append("What the blocks on clusters would have told apart inside of a cluster is lost.")
        lines.append("Attention masks, and images whose sides are no multiple of the patch, are refused.")
    lines.append("What the base model is not fit for, this one is not fit for either; the same licence holds.")
    return lines
