"""Model card of a trained classifier, from what its run knows."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ...measure.environment import describe_environment
from ..loop import LOG
from .models import SIZES
from .run import Run

# Of a run's scores, as they are called on the Hub.
METRICS = {"accuracy": "Accuracy", "top5": "Top-5 accuracy"}

TEXT = """---
{data}
---

# {name}

{what}

```python
import hf_tokaccel  # registers the model with Transformers
from transformers import pipeline

classifier = pipeline("image-classification", model="{name}")
print(classifier("photograph.png"))
```

## Results

{results}

## Training

{training}

| setting | value |
|---|---|
{recipe}
"""


def write_card(folder: Path, run: Run, source: str, scores: dict[str, dict[str, float]]) -> None:
    """Writes README.md and the log of a finished run into the folder of its model.

    Args:
        folder: that the model was saved in.
        run: that trained it.
        source: named size, folder or Hub id that it started from.
        scores: results by the name of data set and split.
    """
    accel = getattr(run.plain.config, "accel", None)
    evaluated = [
        EvalResult("image-classification", data, data, key, round(values[key], 4), metric_name=METRICS[key])
        for data, values in scores.items()
        for key in METRICS
        if key in values
    ]
    name = folder.resolve().name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=None if source in SIZES or Path(source).exists() else source,
        model_name=name,
        eval_results=evaluated,
        tags=["hf_tokaccel", *(["semantic-tokens"] if accel else [])],
    )
    text = TEXT.format(
        data=data.to_yaml().strip(),
        name=name,
        what=_introduction(run),
        results=_results(scores),
        training="\n".join(f"- {key}: {value}" for key, value in _facts(run, source).items()),
        recipe="\n".join(f"| {key} | {value} |" for key, value in asdict(run.recipe).items()),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    shutil.copy(run.work / LOG, folder / LOG)


def _introduction(run: Run) -> str:
    config = run.plain.config
    what = f"A `{type(run.plain).__name__}` that tells {config.num_labels} classes apart, "
    accel = getattr(config, "accel", None)
    if not accel:
        return what + "the plain model of Transformers."
    setting = json.dumps({key: value for key, value in accel.items() if value is not None})
    return what + f"on semantic tokens (STViT, Chang et al., CVPR 2023):\n\n```json\n{setting}\n```"


def _facts(run: Run, source: str) -> dict[str, Any]:
    environment, settings, identity = describe_environment(run.accelerator.device), run.settings, run.settings.identity
    machine, commit = environment["machine"], environment["git"]
    started = f"from scratch, of size {source}" if source in SIZES else f"from {source}"
    facts = {"started": started, "images": f"{len(run.train_images)} of {run.train_images.name}"}
    if identity.get("teacher"):
        facts["learned from"] = identity["teacher"]
    if settings.keep == "best" and run.state["best"]:
        facts["weights"] = f"of epoch {run.state['best']['epoch']}, the best on {run.validation.name}"
    else:
        facts["weights"] = "of the last epoch"
    return facts | {
        "steps": run.total,
        "seed": settings.seed,
        "processes": run.accelerator.num_processes,
        "precision": run.accelerator.mixed_precision.replace("no", "float32"),
        "machine": f"{machine['device']}, {machine['processor']}, {machine['cores']} cores",
        "hours": round(run.seconds() / 3600, 3),
        "versions": ", ".join(f"{key} {value}" for key, value in environment["versions"].items()),
        "commit": f"{commit['commit']}{' with changes' if commit['dirty'] else ''}" if commit else "none, a release",
        "command": f"`{environment['command']}`",
    }


def _results(scores: dict[str, dict]) -> str:
    names = list(next(iter(scores.values())))
    lines = [f"| data | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for data, values in scores.items():
        lines.append(f"| {data} | {' | '.join(f'{values[name]:.4f}' for name in names)} |")
    return "\n".join(lines)
