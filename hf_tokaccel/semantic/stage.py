"""Swin's third stage with semantic tokens: STViT (section 3.2 of the paper) and STViT-R (section 3.3).

The maps of semantic tokens are those of the windows side by side, so (rows * h, columns * w) for windows with (h, w).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import SwinConfig
from transformers.models.swin.modeling_swin import SwinPatchMerging, SwinRelativePositionBias, SwinStage

from ..checks import UserError, as_pair
from ..settings.semantic import SemanticTokenConfig
from .layers import SemanticLayer
from .pooling import GlobalCenters, SemanticPooling, check_token_grid
from .swin_layer import WindowLayer, fitted_window, part_of_bias
from .windows import Axis, Size, count_windows, join, key_windows, partition, window_padding


@dataclass(frozen=True)
class StageMap:
    """The sizes of one call, in tokens.

    Attributes:
        size: of the image's map.
        side: of a window.
        grid: semantic tokens of a window.
    """

    size: Size
    side: int
    grid: Size

    @property
    def window(self) -> Size:
        return self.side, self.side

    @property
    def counts(self) -> Size:
        """Windows (rows, columns)."""
        return count_windows(self.size, self.window)

    @property
    def tokens(self) -> Size:
        """The map of semantic tokens."""
        return self.counts[0] * self.grid[0], self.counts[1] * self.grid[1]

    def split(self, tokens: Tensor) -> Tensor:
        """Semantic tokens of each window (B * n, h * w, C), of their map."""
        return partition(tokens, self.tokens, self.grid)

    def join(self, windows: Tensor) -> Tensor:
        """The map (B, S, C) of semantic tokens, of those of each window."""
        return join(windows, self.tokens, self.grid)

    def axes(self, size: Size, steps: Size, before: Size, spans: Size, **options: Any) -> tuple[Axis, Axis]:
        """What its windows read of a map of this size."""
        values = zip(size, self.counts, steps, spans, before, strict=True)
        return tuple(Axis(length, count, step, back, span, **options) for length, count, step, span, back in values)


class SemanticMerging(nn.Module):
    """Twice the channels for every semantic token, in place of merging 2 x 2 of them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, states: Tensor, size: Size) -> Tensor:
        return self.reduction(states)


class SemanticStage(SwinStage):
    """What the stages share. Blocks on all image tokens are Swin's, all others `SemanticLayer`s.

    Args:
        config: of the host.
        setting: with nothing left open.
        dim: channels C.
        input_resolution: map of the configuration's image size, rounded down.
        depth: of the stage.
        num_heads: attention heads.
        drop_path: stochastic depth of each block.
        downsample: class of what follows the blocks; None for nothing.
    """

    def __init__(
        self,
        config: SwinConfig,
        setting: SemanticTokenConfig,
        dim: int,
        input_resolution: Size,
        depth: int,
        num_heads: int,
        drop_path: list[float],
        downsample: type[nn.Module] | None,
    ) -> None:
        super().__init__(config, dim, input_resolution, 0, num_heads, [], downsample)
        self.setting = setting
        self.unit = depth if not setting.recover else depth // count_units(setting, depth)
        for index, rate in enumerate(drop_path):
            place = index % self.unit
            if place < setting.base_layers:
                # Alternately shifted as in Swin without recovery, never with it.
                shift = 0 if setting.recover or place % 2 == 0 else config.window_size // 2
                block = WindowLayer(config, dim, input_resolution, num_heads, rate, shift)
            else:
                block = SemanticLayer(
                    config,
                    dim,
                    num_heads,
                    int(config.mlp_ratio * dim),
                    eps=config.layer_norm_eps,
                    layer_scale=setting.layer_scale_init_value,
                    drop_path=rate,
                )
                self._add_bias(block, place - setting.base_layers - setting.generation_layers)
            self.blocks.append(block)
        units = depth // self.unit
        self.pooling = nn.ModuleList(
            SemanticPooling(dim, setting.token_grid, setting.pooling, setting.center_offset) for _ in range(units)
        )
        self.conv_position = nn.ModuleList(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(units if setting.conv_position else 0)
        )
        count = self.global_count()
        self.global_centers = GlobalCenters(count, dim) if setting.global_centers else None

    def _add_bias(self, block: SemanticLayer, place: int) -> None:
        """Gives a block its relative position biases, where it is the semantic layer of this place in its unit."""
        window = self.bias_window(place)
        if self.setting.relative_position_bias and window is not None:
            heads = block.attention.num_attention_heads
            block.attention.relative_position_bias = SwinRelativePositionBias(heads, window)

    def bias_window(self, place: int) -> Size | None:
        """Semantic tokens that the semantic layer of this place attends over; None where it is no such layer."""
        raise NotImplementedError

    def global_count(self) -> int:
        """How many global centres there are: those of one window."""
        return self.setting.token_grid[0] * self.setting.token_grid[1]

    def output_size(self, size: Size, always_partition: bool) -> Size:
        """The map (H, W) after the blocks, for one (H, W) before them."""
        return size

    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: Size,
        always_partition: bool = False,
        output_hidden_states_before_downsampling: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As Swin's: states for the next stage, their map (B, C, H, W), and attention weights of the last block.

        With `output_hidden_states_before_downsampling` the map is that before the downsampling.
        """
        sizes = self._sizes(input_dimensions, always_partition)
        states, weights = self.run(hidden_states, sizes, always_partition=always_partition, **kwargs)
        size = self.output_size(input_dimensions, always_partition)
        merged = states if self.downsample is None else self.downsample(states, size)
        shown, shown_size = merged, self.next_size(input_dimensions, always_partition)
        if output_hidden_states_before_downsampling:
            shown, shown_size = states, size
        return merged, shown.unflatten(1, shown_size).permute(0, 3, 1, 2).contiguous(), weights

    def next_size(self, size: Size, always_partition: bool) -> Size:
        """The map that the next stage gets."""
        size = self.output_size(size, always_partition)
        if isinstance(self.downsample, SwinPatchMerging):
            return (size[0] + 1) // 2, (size[1] + 1) // 2
        return size

    def _sizes(self, size: Size, always_partition: bool) -> StageMap:
        side = fitted_window(self.config.window_size, size, always_partition)
        if side != self.config.window_size:
            check_token_grid(self.setting.token_grid, (side, side), self.setting.pooling, f"a map of {size}")
        return StageMap(size, side, self.setting.token_grid)

    def run(self, states: Tensor, sizes: StageMap, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The blocks, on image tokens (B, H * W, C), and the attention weights of the last one or None."""
        raise NotImplementedError

    def units(self) -> Iterator[tuple[int, nn.ModuleList]]:
        """The blocks of each unit."""
        for index in range(len(self.blocks) // self.unit):
            yield index, self.blocks[index * self.unit : (index + 1) * self.unit]

    def base(self, blocks: nn.ModuleList, states: Tensor, sizes: StageMap, **kwargs: Any) -> Tensor:
        for block in blocks[: self.setting.base_layers]:
            states = block(states, sizes.size, **kwargs)[0]
        return states

    def centers(self, unit: int, states: Tensor, sizes: StageMap) -> Tensor:
        """The first centres of each window (B * n, h * w, C)."""
        windows = partition(states, sizes.size, sizes.window).unflatten(1, sizes.window)
        centers = self.pooling[unit](windows)
        if len(self.conv_position):
            maps = centers.unflatten(1, sizes.grid).permute(0, 3, 1, 2)
            centers = centers + self.conv_position[unit](maps).permute(0, 2, 3, 1).flatten(1, 2)
        return centers

    def bias(self, block: SemanticLayer, window: Size) -> Tensor | None:
        """Biases of a block that attends over `window` semantic tokens; None where it has none."""
        bias = getattr(block.attention, "relative_position_bias", None)
        if bias is None:
            return None
        if any(side > limit for side, limit in zip(window, bias.window_size, strict=True)):
            raise UserError(
                f"{window[0]} x {window[1]} semantic tokens are not valid: relative_position_bias=True has positions "
                f"for {bias.window_size[0]} x {bias.window_size[1]}, those of image_size={self.config.image_size}. "
                "Use images of at most this size."
            )
        return part_of_bias(bias, window)


def count_units(setting: SemanticTokenConfig, depth: int) -> int:
    return depth // (setting.base_layers + setting.generation_layers + setting.semantic_layers + 1)


class DroppingStage(SemanticStage):
    """STViT: image tokens are dropped once the semantic ones are generated.

    Our reading of what was never published: in the first generation layer each window reads its centres and its key
    window, in the others all semantic tokens read all of these and of the image, and the layers that follow run on all
    semantic tokens. Key windows are centred on their windows and moved into the map where they reach beyond it.
    """

    def bias_window(self, place: int) -> Size | None:
        return None if place < 0 else StageMap(third_map(self.config), self.config.window_size, self._grid).tokens

    @property
    def _grid(self) -> Size:
        return self.setting.token_grid

    def output_size(self, size: Size, always_partition: bool) -> Size:
        return self._sizes(size, always_partition).tokens

    def run(self, states: Tensor, sizes: StageMap, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        setting, always = self.setting, kwargs.pop("always_partition")
        states = self.base(self.blocks, states, sizes, always_partition=always, **kwargs)
        centers = self.centers(0, states, sizes)
        generation = self.blocks[setting.base_layers : setting.base_layers + setting.generation_layers]
        options = {"gather": self._gather(states, sizes), "shortcut": setting.generation_shortcut}
        windows = generation[0](centers, states, centers, **options, **kwargs)
        tokens = sizes.join(windows)
        for index, block in enumerate(generation[1:]):
            first = index == 0 and self.global_centers is not None
            queries = sizes.join(self.global_centers(windows)) if first else tokens
            tokens = block(queries, states, tokens, **kwargs)
        for block in self.blocks[setting.base_layers + setting.generation_layers :]:
            bias = self.bias(block, sizes.tokens)
            tokens, weights = block(tokens, attention_mask=bias, with_weights=True, **kwargs)
        return tokens, weights

    def _gather(self, states: Tensor, sizes: StageMap) -> Callable[[Tensor], Tensor]:
        """What takes keys and values of the map to those of each window."""
        span = self.setting.key_window or sizes.side
        if span == sizes.side and not any(window_padding(sizes.size, sizes.window)):
            return lambda keys: partition(keys, sizes.size, sizes.window)
        before = (span - sizes.side) // 2
        axes = sizes.axes(sizes.size, sizes.window, (before, before), (span, span), moved=True)
        return key_windows(*axes, states.device).gather


def third_map(config: SwinConfig) -> Size:
    """Tokens (H, W) of the third stage at the configuration's image size."""
    sides = zip(as_pair(config.image_size), as_pair(config.patch_size), strict=True)
    # Images and maps are padded where they cannot be divided; -(-a // b) rounds up.
    patches = [-(-side // length) for side, length in sides]
    return tuple(-(-side // 4) for side in patches)
