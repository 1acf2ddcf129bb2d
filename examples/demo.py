"""A page to try settings by hand: an image in, dense and accelerated output, clusters, cost and speed side by side.

pip install -e ".[demo]"
python examples/demo.py
python examples/demo.py --model Intel/dpt-large
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_tokaccel import TokenClusteringConfig
from hf_tokaccel.evaluation.cluster_pictures import draw_parts, sayings
from hf_tokaccel.evaluation.script import Loaded
from hf_tokaccel.evaluation.showing import TASKS, View, load_shown, make_views, open_sample, settings_for
from hf_tokaccel.measure.speed import time_interleaved
from hf_tokaccel.measure.variant import Variant
from hf_tokaccel.tuning.recommended import AdaptiveRecipe, recipe_for

if TYPE_CHECKING:
    import gradio as gr

ROUNDS = 5
PARTS = ("dense", "accelerated", "difference", "clusters", "mean colours")
KINDS = ("adaptive", "grid")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADINGS = ["", "ms per image", "speed", "GFLOPs", "of dense"]


@lru_cache(maxsize=4)
def model_of(name: str) -> Loaded:
    return load_shown(name, DEVICE)


@lru_cache(maxsize=4)
def scene_for(name: str) -> dict:
    return open_sample("scene:3", model_of(name))


def first_setting(name: str) -> tuple[TokenClusteringConfig, int, int]:
    """The boldest default setting on a grid of a model, its number of blocks, and the tokens of a side."""
    loaded = model_of(name)
    sample = scene_for(name)
    setting = [setting for setting in settings_for(loaded, sample) if not setting.adaptive][-1]
    _, (view,) = make_views(loaded, sample, [setting])
    config = getattr(loaded.dense.config, "backbone_config", None) or loaded.dense.config
    blocks = sum(config.depths) if hasattr(config, "depths") else config.num_hidden_layers
    return setting, blocks, min(view.panel.labels.shape)


def takes_regions(name: str) -> bool:
    """Whether a model takes adaptive clusters."""
    return isinstance(recipe_for(model_of(name).dense.config), AdaptiveRecipe)


def chosen_setting(
    kind: str, after: int, share: float, side: int, expansion: str, iterations: int, window: int
) -> TokenClusteringConfig:
    """What the controls say: of one kind of clusters those of the other do nothing.

    Raises:
        ValueError: A value that is not allowed, or an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not valid: it must be one of {list(KINDS)}, for example {KINDS[0]!r}.")
    if kind == "adaptive":
        return TokenClusteringConfig(cluster_after=after, clusters=float(share), expansion=expansion)
    return TokenClusteringConfig(
        cluster_after=after, cluster_grid=side, expansion=expansion, iterations=iterations, window=window
    )


def compare(
    name: str,
    image: np.ndarray | None,
    after: int,
    side: int,
    expansion: str,
    iterations: int,
    window: int,
    kind: str = "grid",
    share: float = 0.5,
) -> tuple:
    """What the page shows for one setting.

    Args:
        name: Hub id, folder, or one of `TASKS`.
        image: uint8 (H, W, 3).
        after: Blocks before clustering.
        side: Clusters along each side of the grid, or of a window where attention is windowed.
        expansion: How full resolution is rebuilt.
        iterations: Of clustering; 0 is plain pooling.
        window: Side of the square of candidates, odd.
        kind: "adaptive" for regions of free shape, "grid" for the paper's clusters.
        share: Of the tokens, that adaptive clusters leave.

    Returns:
        A picture of each of `PARTS`, uint8 (h, w, 3); the rows below `HEADINGS`; and a sentence.

    Raises:
        ValueError: No image, an unknown model, or a setting that does not fit; the message names a value that works.
    """
    if image is None:
        raise ValueError("image None cannot be read: give one, for example drop a file on the page")
    loaded = model_of(name)
    setting = chosen_setting(kind, after, share, side, expansion, iterations, window)
    sample = {"image": image, "name": "image"}
    with torch.inference_mode():
        dense, (view,) = make_views(loaded, sample, [setting])
    table, said = measure(loaded, sample, dense, view)
    return *draw_parts(loaded.task, view, PARTS), table, said


def measure(loaded: Loaded, sample: dict, dense: Variant, view: View) -> tuple[list[list[str]], str]:
    """Time of both models on an image in turns, and a sentence on how far they agree."""
    pixel_values = loaded.task.encode(sample)["pixel_values"][None].to(DEVICE)
    calls = [loaded.task.timed(variant, pixel_values) for variant in (dense, view.variant)]
    timings = time_interleaved(calls, device=DEVICE, rounds=ROUNDS, warmup=1)
    ratios = (1.0, view.gflops_ratio)
    rows = [
        [
            label,
            f"{1000 * timing.median:.0f}",
            f"{timing.speedup:.2f}x",
            f"{ratio * view.gflops / view.gflops_ratio:.2f}",
            f"{100 * ratio:.0f} %",
        ]
        for label, timing, ratio in zip(("dense", "accelerated"), timings, ratios, strict=True)
    ]
    (said,) = sayings(loaded.task, [view])
    return rows, f"**{view.name}**: {said}. Median of {ROUNDS} runs of one image in turns, on {DEVICE}."


def told_on_the_page(function: Callable) -> Callable:
    """A function whose complaints the page shows to the user."""
    import gradio as gr

    @wraps(function)
    def shown(*values):
        try:
            return function(*values)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return shown


def build_page(models: list[str]) -> gr.Blocks:
    """The page, with the first model chosen.

    Raises:
        ValueError: A model that cannot be loaded or shown.
    """
    import gradio as gr

    def adapt(name: str) -> tuple:
        """Image and controls that suit a model."""
        setting, blocks, tokens = first_setting(name)
        return (
            scene_for(name)["image"],
            gr.Slider(maximum=blocks - 1, value=setting.cluster_after),
            gr.Slider(maximum=tokens, value=setting.cluster_grid[0]),
            gr.Radio(KINDS if takes_regions(name) else KINDS[1:], value=KINDS[0 if takes_regions(name) else 1]),
        )

    setting, blocks, tokens = first_setting(models[0])
    with gr.Blocks(title="hf_tokaccel") as page:
        gr.Markdown(
            "## Token clustering: dense against accelerated\n"
            "The first blocks run on all tokens, the others on clusters of them; full resolution is rebuilt for the "
            "head. The models of this package know rendered rooms only."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                model = gr.Dropdown(models, value=models[0], label="model")
                image = gr.Image(scene_for(models[0])["image"], label="image", height=240)
            with gr.Column(scale=1, min_width=260):
                after = gr.Slider(0, blocks - 1, setting.cluster_after, step=1, label="cluster_after: blocks before")
                kinds = KINDS if takes_regions(models[0]) else KINDS[1:]
                kind = gr.Radio(kinds, value=kinds[0], label="clusters: of free shape, or on a grid")
                share = gr.Slider(0.05, 1, 0.5, step=0.05, label="adaptive: share of the tokens")
                side = gr.Slider(1, tokens, setting.cluster_grid[0], step=1, label="grid: clusters per side")
                expansion = gr.Radio(["delta", "nearest", "soft"], value="delta", label="expansion (soft: grid only)")
            with gr.Column(scale=1, min_width=260):
                iterations = gr.Slider(0, 10, 5, step=1, label="grid: iterations (0: plain pooling)")
                window = gr.Slider(3, 9, 5, step=2, label="grid: window, candidates per side")
                run = gr.Button("Run", variant="primary")
        with gr.Row():
            table = gr.Dataframe(headers=HEADINGS, label="cost of one image", interactive=False)
        said = gr.Markdown()
        with gr.Row():
            parts = [gr.Image(label=part, height=250, interactive=False, min_width=160) for part in PARTS]
        inputs = [model, image, after, side, expansion, iterations, window, kind, share]
        run.click(told_on_the_page(compare), inputs, [*parts, table, said])
        model.change(told_on_the_page(adapt), model, [image, after, side, kind])
    return page


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", help="Hub id or folder; repeatable (default: those of the package)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args(arguments)
    if importlib.util.find_spec("gradio") is None:
        return complain('the page needs gradio, which is not installed: pip install -e ".[demo]"')
    import gradio as gr

    try:
        page = build_page(args.model or list(TASKS))
        page.queue(default_concurrency_limit=1)  # Two runs at once would time each other.
        page.launch(server_name=args.host, server_port=args.port, theme=gr.themes.Soft())
    except (ValueError, OSError) as error:  # An unknown model; a port that is taken.
        return complain(str(error))
    return 0


def complain(text: str) -> int:
    """Says what the user can put right, in one line."""
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
