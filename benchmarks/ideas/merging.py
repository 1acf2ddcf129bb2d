"""Where Token Merging merges, by what, and what attention proportional to size is worth, on a real checkpoint.

Blocks of DINOv2 in plain form. What did best is `hf_tokaccel.rivals.merging`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from benchmarks.common import stamp
from benchmarks.pretrained.measure import answer, relative_error
from benchmarks.pretrained.subject import Judge
from hf_tokaccel.clustering.adaptive import size_bias
from hf_tokaccel.results.report import Where, markdown_table
from hf_tokaccel.rivals.merging import MergedTokens, merge_tokens, unmerge_tokens

PATHS = ["hf_tokaccel", "benchmarks/ideas", "benchmarks/pretrained"]
SHARES = (0.80, 0.67, 0.57, 0.50, 0.40)


@dataclass(frozen=True)
class Form:
    """A form of merging.

    Attributes:
        place: `"before"` a block, `"inside"` it between attention and MLP as in the paper, or `"after"` it.
        keys: `"attention"`: the mean over heads of the block's attention keys; `"normalized"`: tokens after LayerNorm.
        proportional: whether attention is.
    """

    place: str
    keys: str = "attention"
    proportional: bool = True


FORMS = {
    "inside, by attention keys: the paper": Form("inside"),
    "after the block, by attention keys": Form("after"),
    "before the block, by normalized tokens": Form("before", "normalized"),
    "before the block, by attention keys: kept": Form("before"),
    "the same, attention not proportional": Form("before", proportional=False),
}


def cost(form: Form, model: nn.Module, tokens: int, per_layer: int) -> float:
    """FLOPs of the blocks, with the keys that a form needs besides."""
    width, total = model.config.hidden_size, 0.0
    head = width // model.config.num_attention_heads
    for number in range(model.config.num_hidden_layers):
        left = tokens - min(per_layer, tokens // 2)
        last = number + 1 == model.config.num_hidden_layers
        attended = left if form.place == "before" else tokens
        mapped = tokens if form.place == "after" else left
        total += (attended + 1) * 4 * width**2 + 2 * (attended + 1) ** 2 * width + (mapped + 1) * 8 * width**2
        if form.place == "before" and form.keys == "attention":
            total += tokens * width * head
        tokens = tokens if form.place == "after" and last else left
    return 2 * total


@dataclass
class Pass:
    """The state of one forward pass."""

    per_layer: int
    step: MergedTokens | None = None
    rows: Tensor | None = None
    detail: Tensor | float = field(default=0.0)

    def merge(self, states: Tensor, keys: Tensor) -> Tensor:
        tokens, sizes = states[:, 1:], None if self.step is None else self.step.sizes
        step = merge_tokens(tokens, min(self.per_layer, tokens.shape[1] // 2), keys=keys[:, 1:], sizes=sizes)
        whole = tokens if self.rows is None else unmerge_tokens(tokens, self.rows)
        self.rows = step.rows if self.rows is None else step.rows.gather(1, self.rows)
        self.detail, self.step = self.detail + whole - unmerge_tokens(step.tokens, self.rows), step
        return torch.cat((states[:, :1], step.tokens), 1)


def run_form(form: Form, model: nn.Module, image: Tensor, per_layer: int) -> tuple[Tensor, Tensor]:
    """The last layer's patch tokens (1, N, C), copied back and with the change added."""
    heads, states, run = model.config.num_attention_heads, model.embeddings(image), Pass(per_layer)
    blocks = model.encoder.layer
    for number, block in enumerate(blocks):
        if form.place == "before":
            normalized = block.norm1(states)
            if form.keys == "attention":
                normalized = block.attention.k_proj(normalized).unflatten(-1, (heads, -1)).mean(2)
            states = run.merge(states, normalized)
        states, keys = _attend(block, states, heads, run.step if form.proportional else None)
        if form.place == "inside":
            states = run.merge(states, keys)
        states = states + block.layer_scale2(block.mlp(block.norm2(states)))
        if form.place == "after" and number + 1 < len(blocks):
            states = run.merge(states, keys)
    copied = unmerge_tokens(states[:, 1:], run.rows)
    return model.layernorm(copied), model.layernorm(copied + run.detail)


def _attend(block: nn.Module, states: Tensor, heads: int, step: MergedTokens | None) -> tuple[Tensor, Tensor]:
    """States after the attention of a block, and its keys (1, N, d), their mean over heads."""
    attention, normalized = block.attention, block.norm1(states)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (p(normalized).unflatten(-1, (heads, -1)).transpose(1, 2) for p in projections)
    mask = None if step is None else size_bias(step.sizes, prefix=1)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
    return states + block.layer_scale1(attention.o_proj(mixed)), key.mean(1)


def _least(fits: Callable[[int], bool], most: int) -> int | None:
    return next((number for number in range(1, most) if fits(number)), None)


@torch.inference_mode()
def measure(judge: Judge) -> dict:
    dense, tokens = answer(judge).features, judge.grid[0] * judge.grid[1]
    whole = cost(Form("after"), judge.model, tokens, 0)
    found: dict[str, list[dict]] = {name: [] for name in FORMS}
    work = [(name, form, share) for name, form in FORMS.items() for share in SHARES]
    for name, form, share in track(work, "forms"):
        count = _least(lambda n: cost(form, judge.model, tokens, n) <= share * whole, tokens // 2)  # noqa: B023
        errors: tuple[list[float], list[float]] = ([], [])
        for number, image in enumerate(judge.images):
            outputs = run_form(form, judge.model, image[None], count)
            for values, output in zip(errors, outputs, strict=True):
                maps = output.transpose(1, 2).unflatten(2, judge.grid)
                values.append(relative_error(maps, dense[number : number + 1]))
        found[name].append({"share": share, "per_layer": count, "nearest": errors[0], "delta": errors[1]})
    return {"environment": stamp(PATHS, "cpu"), "photographs": judge.names, "forms": found}


def table(result: dict) -> str:
    columns = [f"{share:.2f}" for share in SHARES]
    lines = []
    for name, rows in result["forms"].items():
        means = [[statistics.fmean(row[way]) for row in rows] for way in ("nearest", "delta")]
        lines.append([name, *(f"{copied:.4f} / {added:.4f}" for copied, added in zip(*means, strict=True))])
    environment = result["environment"]
    where = Where.of(environment, bool(environment["changed"]))
    about = "; ".join(
        filter(None, [where.device, where.versions, where.commit, "`python -m benchmarks.ideas merging`"])
    )
    return f"{markdown_table(['merging', *columns], lines)}\n\n{len(result['photographs'])} photographs. {about}."
