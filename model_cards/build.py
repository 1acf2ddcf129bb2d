"""Writes the ready cards of settings.py: python -m model_cards.build"""

import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from hf_tokaccel.results.report import markdown_table

from .settings import CARDS, Card

FOLDER = Path(__file__).parent
TEXT = """
# {name}

{base} with token clustering (Liang et al., "Expediting Large-Scale Vision Transformer for Dense Prediction without
Fine-tuning", NeurIPS 2022), by hf_tokaccel. The weights are those of the base model; nothing is retrained.

The setting is {why}

```json
{accel}
```

## Make it

```bash
{make}
```

This writes weights, config, image processor and a card with the base model's licence; `hf_tokaccel push` publishes it.
Or on the fly:

```python
import hf_tokaccel as ta
from transformers import AutoConfig, {auto_class}

name = "{source}"
accel = ta.TokenClusteringConfig(
{fields}
)
config = ta.accelerate_config(AutoConfig.from_pretrained(name), accel)
model = {auto_class}.from_pretrained(name, config=config)
```

## Published

{published}

## Measured

{measured}

## Limits

- The published numbers are the authors', of their code on their machine. They say nothing of this package's speed.
- Thin and small things lose first, since a cluster averages what lies near and looks alike.
- Attention masks, and images whose sides are no multiple of the patch, are refused.
- What the base model is not fit for, this one is not fit for either; the same licence holds.
"""


def card_text(card: Card) -> str:
    """The whole file of a card."""
    pairs = ",".join(f"{key}={_pair(value)}" for key, value in card.accel.items())
    make = f"hf_tokaccel accelerate {card.base} --out {card.name} --accel {pairs}"
    on_the_hub = "/" in card.base
    data = ModelCardData(
        library_name="transformers",
        base_model=card.base if on_the_hub else None,
        pipeline_tag=card.tag,
        tags=["hf_tokaccel", "token-clustering"],
    )
    text = TEXT.format(
        name=card.name,
        base=f"[{card.base}](https://huggingface.co/{card.base})" if on_the_hub else "Segmenter ViT-L/16",
        why=card.why,
        accel=json.dumps(card.accel),
        make="\n".join([*card.before, make]),
        auto_class=card.auto_class,
        source=card.base,
        fields="\n".join(f"    {key}={_code(value)}," for key, value in card.accel.items()),
        published=_published(card),
        measured=_measured(card, pairs),
    )
    return f"---\n{data.to_yaml().strip()}\n---\n{text}"


def _code(value) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _pair(value) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _published(card: Card) -> str:
    table = card.published
    if table is None:
        return "Nothing was published for this model with token clustering."
    mark = [" (this setting)" if i == table.ours else "" for i in range(len(table.rows))]
    at = table.columns.index("setting")
    rows = [(*row[:at], row[at] + m, *row[at + 1 :]) for row, m in zip(table.rows, mark, strict=True)]
    body = markdown_table(table.columns, rows, names=len(table.columns))
    return f"Not measured by us: published in {table.source}. {table.about}\n\n{body}"


def _measured(card: Card, pairs: str) -> str:
    return (
        "Not measured, for want of a network. Where there is one, with the data set in DATA, one command measures it, "
        f"dense, accelerated and plain rivals:\n\n```bash\nhf_tokaccel evaluate {card.measure} --accel {pairs}\n```"
    )


def main() -> None:
    for card in CARDS:
        ModelCard(card_text(card), ignore_metadata_errors=False).save(FOLDER / f"{card.name}.md")


if __name__ == "__main__":
    main()
