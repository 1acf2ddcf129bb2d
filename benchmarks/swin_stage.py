"""The clustered stage of Swin-L at 1152 x 1152 against the dense one, and the share of clustering and reconstruction.

python -m benchmarks.swin_stage             about four minutes on two cores; writes benchmarks/results
python -m benchmarks.swin_stage --rounds 2  quick look
python -m benchmarks.swin_stage --device cuda
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

import hf_tokaccel as ta
from benchmarks.common import ROOT, interleaved, ratios, save, stamp, summary
from hf_tokaccel.hosts.layout import WindowSequenceLayout
from hf_tokaccel.hosts.track import TokenTrack
from hf_tokaccel.results.report import Line, Sheet
from hf_tokaccel.results.tables import draw

# The numbers below depend on these files only.
PATHS = ["hf_tokaccel/clustering", *(f"hf_tokaccel/hosts/{name}.py" for name in ("track", "layout", "stages"))]
PATHS += ["hf_tokaccel/models/swin.py", "benchmarks/swin_stage.py", "benchmarks/common.py"]

SIZE, WINDOW, STAGE = (72, 72), 12, 2  # stage 3 of 1152 x 1152 pixels
TARGET = 0.06
# Swin-L under Mask2Former: the settings behind two rows of the paper, see docs/paper_gflops.md.
ROWS = {
    "COCO panoptic": {"cluster_after": 9, "iterations": 5, "inverse_temperature": 0.05, "neighbors": 10},
    "ADE20K panoptic": {"cluster_after": 14, "iterations": 4, "inverse_temperature": 0.01, "neighbors": 49},
}


def make_model() -> SwinModel:
    """Swin-L with random weights; of stages that are not measured only as much as a model must have."""
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=384, embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=WINDOW
    )
    return SwinModel(config, add_pooling_layer=False).eval()


def method_alone(stage: nn.Module, states: Tensor) -> Tensor:
    """What the clustered stage does besides its blocks."""
    track = TokenTrack(stage.accel, WindowSequenceLayout(SIZE, WINDOW), depth=len(stage.blocks), wanted=())
    normalize = stage.blocks[stage.accel.cluster_after].layernorm_before
    return track.full(track.before_layer(stage.accel.cluster_after, states, normalize))


@torch.inference_mode()
def measure(model: SwinModel, setting: dict, rounds: int) -> dict:
    fast = ta.accelerate(model, {"cluster_grid": WINDOW * 2 // 3, "window": 7, **setting})
    dense_stage, fast_stage = (module.encoder.layers[STAGE] for module in (model, fast))
    channels = model.config.embed_dim * 2**STAGE
    states = torch.randn(1, SIZE[0] * SIZE[1], channels, generator=torch.Generator().manual_seed(1)).to(model.device)
    times = interleaved(
        {
            "dense stage": lambda: dense_stage(states, SIZE, always_partition=True),
            "clustered stage": lambda: fast_stage(states, SIZE, always_partition=True),
            "clustering and reconstruction": lambda: method_alone(fast_stage, states),
        },
        rounds,
        device=model.device,
    )
    clustered = times["clustered stage"]
    return {
        "accel": fast.config.accel,
        "seconds": {name: summary(values) for name, values in times.items()},
        "speedup": ratios(times["dense stage"], clustered),
        "share": ratios(times["clustering and reconstruction"], clustered),
    }


def sheet(rows: dict[str, dict]) -> Sheet:
    headings = [
        "setting of",
        "dense stage, s",
        "clustered stage, s",
        "speed",
        "clustering and reconstruction",
        "target",
    ]
    lines = []
    for name, row in rows.items():
        seconds = [f"{row['seconds'][kind]['median']:.2f}" for kind in ("dense stage", "clustered stage")]
        share = f"{100 * row['share']['median']:.1f} % of the stage"
        lines.append(Line([name, *seconds, f"{row['speedup']['median']:.2f}x", share, f"{100 * TARGET:.0f} %"]))
    return Sheet(headings, lines, title="Stage 3 of Swin-L at 1152 x 1152, batch 1, float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    start, model = time.perf_counter(), make_model().to(args.device)
    rows = {name: measure(model, setting, args.rounds) for name, setting in ROWS.items()}
    console = Console(width=130)
    console.print(draw(sheet(rows)))
    result = {"rows": rows, "rounds": args.rounds, **stamp(PATHS, model.device)}
    device = result["machine"]["device"].replace(" ", "-").lower()
    path = save(f"swin_stage-{device}-torch{torch.__version__.split('+')[0]}", result)
    worst = max(row["share"]["median"] for row in rows.values())
    gain = statistics.median(row["speedup"]["median"] for row in rows.values())
    console.print(
        f"{path.relative_to(ROOT)}: largest share {100 * worst:.1f} %, median gain {gain:.2f}x; "
        f"{time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
