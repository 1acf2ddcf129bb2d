"""STViT and STViT-R: classifiers on DeiT and Swin, and the backbone for detection."""

from torch import nn
from transformers import (
    AutoBackbone,
    AutoModelForImageClassification,
    PreTrainedConfig,
    SwinConfig,
    ViTConfig,
)

import hf_tokaccel as ta

from .stvit_terms import LABELS, SWIN_DEPTHS, SWIN_WIDTHS, VIT_WIDTHS, WINDOW, SemanticRow, terms
from .table import Table

IMAGE, DETECTION = (224, 224), (800, 1280)
VIT_HEAD, SWIN_HEAD = 64, 32  # channels of an attention head
RELEASED, OURS = ", released code", ", once per token"
# The released code projects a token for every window that reads it; ours does not.
WINDOWS = {"projected": "window", "ours": False}


def config(row: SemanticRow) -> PreTrainedConfig:
    """The baseline's."""
    if "DeiT" in row.name:
        width = VIT_WIDTHS[row.model]
        return ViTConfig(
            hidden_size=width, num_attention_heads=width // VIT_HEAD, intermediate_size=4 * width, num_labels=LABELS
        )
    width = SWIN_WIDTHS[row.model]
    return SwinConfig(
        embed_dim=width,
        depths=[2, 2, SWIN_DEPTHS[row.model], 2],
        num_heads=[width * 2**stage // SWIN_HEAD for stage in range(4)],
        window_size=WINDOW,
        num_labels=LABELS,
        out_features=["stage1", "stage2", "stage3", "stage4"] if row.dense else None,
    )


def build(row: SemanticRow) -> nn.Module:
    setting = config(row)
    if row.accel:
        setting = ta.accelerate_config(setting, {"method": "semantic_tokens", **row.accel})
    return (AutoBackbone if row.dense else AutoModelForImageClassification).from_config(setting)


def _deit(model: str, base: float | None, *semantic: SemanticRow) -> tuple[SemanticRow, ...]:
    return (
        SemanticRow(f"DeiT-{model}", IMAGE, base, decimals=1, model=model, source="paper" if base else ""),
        *semantic,
    )


def _stvit(
    model: str,
    published: float | None = None,
    saved: int | None = None,
    *,
    base: int = 4,
    generation: int = 2,
    side: int = 4,
) -> SemanticRow:
    accel = {"token_grid": (side, side), "base_layers": base, "generation_layers": generation}
    source = "" if published is saved is None else "paper"
    return SemanticRow(
        f"STViT-DeiT-{model}", IMAGE, published, accel=accel, saved=saved, decimals=2, model=model, source=source
    )


# By the letter of the size: GFLOPs of Swin; saved with 16 tokens a window; GFLOPs with 9.
SWIN = {"T": (4.5, 24, 3.14), "S": (8.7, 25, 5.95), "B": (15.4, 25, 10.48)}
# By the letter of the size: base layers of layout A and of layout B.
LAYOUTS = {"T": (3, 1), "S": (10, 8), "B": (10, 8)}
# By the letter of the size: GFLOPs of STViT-R as a counter said, and saved as the paper says.
RECOVERED = {"T": (3.618, None), "S": (5.826, 33), "B": (10.264, 33)}


def _swin(model: str) -> tuple[SemanticRow, ...]:
    base, saved, published = SWIN[model]
    rows = [SemanticRow(f"Swin-{model}", IMAGE, base, decimals=1, model=model, source="paper")]
    a, b = LAYOUTS[model]
    layouts: tuple[dict, dict] = (
        {"base_layers": a},
        {"base_layers": b, "key_window": 10, "stem": "conv", "merging": "linear"},
    )
    for letter, layout in zip("AB", layouts, strict=True):
        for side in (4, 3, 2):
            known = {4: {"saved": saved, "source": "paper, inferred"}} if letter == "A" else {}
            known[3] = {"published": published, "decimals": 2, "source": "cited, inferred"}
            row = {"published": None, **known.get(side, {})}
            accel = {"token_grid": (side, side), **layout}
            rows.append(SemanticRow(f"STViT-Swin-{model} {letter}", IMAGE, accel=accel, model=model, **row))
    published, saved = RECOVERED[model]
    accel = {"recover": True, "formulation": "classification", "stem": "conv", "token_grid": (3, 3)}
    name, source = f"STViT-R-Swin-{model}", "log, paper" if saved else "counter"
    known = {"saved": saved, "decimals": 3, "source": source}
    rows.append(SemanticRow(f"{name}{RELEASED}", IMAGE, published, accel=accel, model=model, **WINDOWS, **known))
    rows.append(SemanticRow(f"{name}{OURS}", IMAGE, None, accel=accel, model=model))
    return tuple(rows)


# By the letter of the size: GFLOPs of the detection backbone as a counter said, base and released; saved as the paper.
DETECTORS = {"S": (188.2, 238.6, 31), "B": (331.9, 417.4, 32)}


def _detector(model: str) -> tuple[SemanticRow, ...]:
    base, released, saved = DETECTORS[model]
    accel = {"recover": True, "stem": "conv", "token_grid": (3, 3)}
    shared = {"model": model, "dense": True, "decimals": 1}
    name = f"STViT-R-Swin-{model}"
    return (
        SemanticRow(f"Swin-{model}", DETECTION, base, source="counter", **shared),
        SemanticRow(f"{name}{RELEASED}", DETECTION, released, accel=accel, source="counter", **WINDOWS, **shared),
        SemanticRow(f"{name}{OURS}", DETECTION, None, accel=accel, saved=saved, source="paper", **shared),
    )


TABLE = Table(
    title="STViT and STViT-R, on DeiT and Swin",
    unit="1e9 multiply-adds and 5 per element of a LayerNorm (whole classifier; of a detector the backbone)",
    convention=(
        "The counter is fvcore: matrix products and convolutions are what they multiply, a LayerNorm is 5 per element "
        "and a BatchNorm too, since the models were counted in training. Softmax, GELU, additions, gathering of "
        "windows and pooling do not count. Published values are rounded or cut off to the digits printed, published "
        "savings (-58%) are cut off and refer to the published value of the dense row above, or to its computed one "
        "where none is published: a row is OFF where neither reading gives what is printed."
    ),
    alpha=(
        "Source: `paper`, as reports of the paper's tables and abstract give it; `log`, the training logs of the "
        "released code; `counter`, fvcore run on the released code; `cited`, a later paper's comparison; empty where "
        "no value is public. `inferred`: plain STViT-Swin was never released, and that this number belongs to this "
        "many tokens per window and to this layout (A or B) is what the arithmetic says; A and B are two of several "
        "layouts that give the cited values with 9 tokens per window, and of the two only A gives the paper's savings "
        "with 16. `released code` projects keys and values for every window that reads a token, which makes the "
        "backbone for detection dearer than Swin; `once per token` projects them before windows are gathered, which "
        "is how the published saving comes about."
    ),
    rows=(
        *_deit("T", None, _stvit("T", saved=58)),
        *_deit(
            "S",
            4.6,
            _stvit("S", 1.91, 58),
            _stvit("S", 1.97, generation=3),
            _stvit("S", 2.03, generation=4),
            _stvit("S", 1.56, base=3),
            _stvit("S", 3.3, base=8),
            *(_stvit("S", side=side) for side in (2, 3, 5, 6, 7)),
        ),
        *_deit("B", None, _stvit("B", saved=58)),
        *(row for model in SWIN for row in _swin(model)),
        *(row for model in DETECTORS for row in _detector(model)),
    ),
    terms=terms,
    model=build,
    model_note=(
        "the classifiers and backbones with semantic tokens at that setting, which project keys and values once per "
        "token. The learned pooling of STViT-DeiT, which the published values do not show, is in it. With layout B "
        "and 4x4 tokens per window it pads the 8 x 8 tokens of stage 4 to windows of 7 x 7; the closed form lets each "
        "token of that stage read all others."
    ),
)
