"""STViT-R on Swin's third stage: units of layers that generate semantic tokens and recover all image tokens from them.

Section 3.3 of the paper, in the two forms that were released.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..checks import UserError
from .layers import SemanticLayer
from .stage import SemanticStage, StageMap
from .windows import KeyWindows, Size, join, key_windows, pad_map, partition, released_outside, window_padding


class GlobalUnits(SemanticStage):
    """STViT-R as released for classification: units that attend over the whole map, of 2 x 2 windows."""

    def bias_window(self, place: int) -> Size | None:
        if not 0 <= place < self.setting.semantic_layers:
            return None
        grid = self.setting.token_grid
        return grid if place % 2 == 0 else (2 * grid[0], 2 * grid[1])

    def global_count(self) -> int:
        return 4 * super().global_count()

    def run(self, states: Tensor, sizes: StageMap, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        setting, always = self.setting, kwargs.pop("always_partition")
        side = self.config.window_size
        if sizes.size != (2 * side, 2 * side):
            raise UserError(
                f"{sizes.size[0]} x {sizes.size[1]} tokens in the third stage are not valid: "
                f"formulation='classification' runs on maps of 2 x 2 windows, so {2 * side} x {2 * side} tokens, "
                f"which are images of {32 * side} pixels with patch_size=4. formulation='detection' runs at any size."
            )
        # Windows of 10 x 10 that start at 0 and 4, for windows of 7 x 7.
        span = side + (side - 1) // 2
        axes = sizes.axes(sizes.size, sizes.window, ((span - side) // 2,) * 2, (span, span), moved=True)
        keys = key_windows(*axes, states.device)
        for unit, blocks in self.units():
            states = self.base(blocks, states, sizes, always_partition=always, **kwargs)
            first, *others = blocks[setting.base_layers : setting.base_layers + setting.generation_layers]
            centers = self.centers(unit, states, sizes)
            options = {"gather": keys.gather, "shortcut": setting.generation_shortcut}
            tokens = sizes.join(first(centers, states, centers, **options, **kwargs))
            for index, block in enumerate(others):
                fixed = unit == 0 and index == 0 and self.global_centers is not None
                tokens = block(self.global_centers(tokens) if fixed else tokens, states, tokens, **kwargs)
            tokens = self.inner(blocks, tokens, sizes, **kwargs)
            states, weights = blocks[-1](states, tokens, with_weights=True, **kwargs)
        return states, weights

    def inner(self, blocks: nn.ModuleList, tokens: Tensor, sizes: StageMap, **kwargs: Any) -> Tensor:
        """The semantic layers of a unit: inside of windows and over all of them, in turn."""
        start = self.setting.base_layers + self.setting.generation_layers
        for place, block in enumerate(blocks[start:-1]):
            if place % 2 == 0:
                bias = self.bias(block, sizes.grid)
                tokens = sizes.join(block(sizes.split(tokens), attention_mask=bias, **kwargs))
            else:
                tokens = block(tokens, attention_mask=self.bias(block, sizes.tokens), **kwargs)
        return tokens


@dataclass(frozen=True)
class Surroundings:
    """What the windows of a call read around them.

    Attributes:
        margins: zeros around the map, before and after it; released detectors only.
        size: of the map.
        windows: in the map with its margins; None where each reads all of it.
        mask: to be added to logits, or None.
    """

    margins: tuple[Size, Size]
    size: Size
    windows: KeyWindows | None
    mask: Tensor | None

    def generate(self, block: SemanticLayer, tokens: Tensor, states: Tensor, **kwargs: Any) -> Tensor:
        """New semantic tokens (B * n, h * w, C) of each window, from a map (B, N, C) of image tokens."""
        states, _ = pad_map(states, self.size, *self.margins[0], *self.margins[1])
        if self.windows is not None:
            return block(tokens, states, gather=self.windows.gather, attention_mask=self.mask, **kwargs)
        # All windows read the same, so that they need no keys of their own.
        together = tokens.unflatten(0, (states.shape[0], -1)).flatten(1, 2)
        return block(together, states, **kwargs).unflatten(1, (-1, tokens.shape[1])).flatten(0, 1)

    def recover(
        self, block: SemanticLayer, states: Tensor, sizes: StageMap, tokens: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """New image tokens (B, H * W, C), from a map of semantic tokens, and attention weights."""
        if self.windows is None:
            return block(states, tokens, with_weights=True, **kwargs)
        tokens, _ = pad_map(tokens, self.size, *self.margins[0], *self.margins[1])
        place = {"size": sizes.size, "window": sizes.window}
        options = {"gather": self.windows.gather, "windows": (partial(partition, **place), partial(join, **place))}
        return block(states, tokens, **options, attention_mask=self.mask, with_weights=True, **kwargs)


class LocalUnits(GlobalUnits):
    """STViT-R as released for detection: windows attend to their surroundings, on maps of any size."""

    def run(self, states: Tensor, sizes: StageMap, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        setting, side, always = self.setting, sizes.side, kwargs.pop("always_partition")
        # The first generation layer reads half a window around each, the others a whole one, recovery four.
        half = self.surroundings(states, sizes, sizes.size, sizes.window, (side // 2,) * 2, (2 * side,) * 2)
        whole = self.surroundings(states, sizes, sizes.size, sizes.window, (side, side), (3 * side,) * 2)
        grid = sizes.grid
        around, span = (4 * grid[0], 4 * grid[1]), (9 * grid[0], 9 * grid[1])
        recovery = self.surroundings(states, sizes, sizes.tokens, grid, around, span)
        for unit, blocks in self.units():
            states = self.base(blocks, states, sizes, always_partition=always, **kwargs)
            first, *others = blocks[setting.base_layers : setting.base_layers + setting.generation_layers]
            centers = self.centers(unit, states, sizes)
            tokens = half.generate(first, centers, states, shortcut=setting.generation_shortcut, **kwargs)
            for block in others:
                tokens = whole.generate(block, tokens, states, **kwargs)
            tokens = self.inner(blocks, sizes.join(tokens), sizes, **kwargs)
            states, weights = recovery.recover(blocks[-1], states, sizes, tokens, **kwargs)
        return states, weights

    def surroundings(
        self, states: Tensor, sizes: StageMap, size: Size, steps: Size, before: Size, spans: Size
    ) -> Surroundings:
        """What windows read of a map of this size, of image or semantic tokens; `before` rows and columns ahead."""
        device, dtype, batch = states.device, states.dtype, states.shape[0]
        if self.setting.pad_mask == "corrected":
            axes = sizes.axes(size, steps, before, spans)
            if all(axis.whole for axis in axes):
                return Surroundings(((0, 0), (0, 0)), size, None, None)
            windows = key_windows(*axes, device)
            return Surroundings(((0, 0), (0, 0)), size, windows, windows.mask(batch, dtype))
        filled = tuple(count * step for count, step in zip(sizes.counts, steps, strict=True))
        after = tuple(span - step - back for span, step, back in zip(spans, steps, before, strict=True))
        padded = tuple(a + b + c for a, b, c in zip(before, filled, after, strict=True))
        windows = key_windows(*sizes.axes(padded, steps, (0, 0), spans), device)
        padding = window_padding(sizes.size, sizes.window)
        windows = replace(windows, outside=released_outside(windows, filled, padding, (before, after)))
        behind = tuple(a - b - c for a, b, c in zip(padded, before, size, strict=True))
        return Surroundings((before, behind), size, windows, windows.mask(batch, dtype))
