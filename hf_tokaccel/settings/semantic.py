"""Settings of semantic tokens."""

from dataclasses import dataclass, replace
from typing import Any

from ..checks import check_choice, is_count, is_number, require
from .base import Setting

POOLINGS = ("weighted", "max")
STEMS = ("patch", "conv")
MERGINGS = ("grid", "linear")
FORMULATIONS = ("classification", "detection")
PAD_MASKS = ("corrected", "released")


@dataclass(frozen=True, kw_only=True)
class SemanticTokenConfig(Setting):
    """Semantic tokens (STViT and STViT-R, CVPR 2023): trained layers run on a few learned cluster centres.

    Layers of three kinds follow each other: base layers on all image tokens, generation layers that make the semantic
    tokens, and semantic layers on these alone. Without recovery image tokens are dropped then (section 3.2 of the
    paper); with it the layers come in units that each end with all image tokens (section 3.3). None leaves a choice to
    the model family, whose value is what the config of a built model says.

    Args:
        token_grid: semantic tokens as (h, w), those of the image or, for Swin, of one window; a single number is a
            square. None: 4 x 4 of the image, 3 x 3 of a window.
        base_layers: layers on all tokens before the semantic ones are generated: of the whole depth, of Swin's third
            stage, or of each unit with `recover`. None: a third of the depth; half of the
            stage, but 10 of 18; 1 of a unit.
        generation_layers: layers that generate semantic tokens.
        semantic_layers: with `recover` only, layers of a unit on semantic tokens, in turn inside of a window and
            over all of them; None is 2. Without recovery these are the layers that remain.
        recover: whether image tokens are recovered by a last layer of each unit (STViT-R); Swin only.
        pooling: how the first centres are made: `"weighted"` by a learned mask inside windows, or `"max"`. None:
            weighted for ViT, max for Swin.
        global_centers: whether learned centres, the same for all images, are added to the queries of the second
            generation layer. None: for ViT only.
        center_offset: adds a learned convolution over the grid of centres to them; our reading of the unpublished
            inter-window pooling.
        layer_scale_init_value: of the layers that generate, run on or recover from semantic tokens; 0 for no
            LayerScale. None: 0 for ViT, 1e-5 for Swin.
        generation_shortcut: whether the first generation layer adds its result to the centres; the released
            classifiers of STViT-R do not.
        formulation: with `recover` only: `"detection"` runs at any image size, each window attending to its
            surroundings; `"classification"` attends globally, at maps of 2 x 2 windows only (224 pixels, released
            classifiers). None is `"detection"`.
        pad_mask: with `recover` only: `"corrected"` masks what lies outside of the map; `"released"` repeats the
            mistakes of the released detectors, for their weights. None is `"corrected"`.
        key_window: without recovery, Swin only: side of the window of image tokens that the first generation layer
            of a window reads; None is the window itself.
        stem: of Swin: `"patch"` as there, `"conv"` as in the released STViT-R; None is `"patch"`.
        merging: without recovery, Swin only: `"grid"` merges 2 x 2 semantic tokens between the stages, `"linear"`
            keeps all; None is `"grid"`.
        relative_position_bias: of semantic layers, Swin only.
        conv_position: adds a depth-wise convolution to the centres of each window, Swin only.

    Raises:
        ValueError: on any value outside of what is written above; the message names a value that works.
    """

    token_grid: tuple[int, int] | None = None
    base_layers: int | None = None
    generation_layers: int = 2
    semantic_layers: int | None = None
    recover: bool = False
    pooling: str | None = None
    global_centers: bool | None = None
    center_offset: bool = False
    layer_scale_init_value: float | None = None
    generation_shortcut: bool = True
    formulation: str | None = None
    pad_mask: str | None = None
    key_window: int | None = None
    stem: str | None = None
    merging: str | None = None
    relative_position_bias: bool = False
    conv_position: bool = False
    method: str = "semantic_tokens"

    grid_name = "token_grid"
    grid_example = (4, 4)
    example = {"method": "semantic_tokens", "token_grid": [4, 4]}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_layers()
        self._check_choices()
        self._check_recovery()

    def _check_layers(self) -> None:
        require(is_count(self.generation_layers), "generation_layers", self.generation_layers, "1 or more", 2)
        counts = {"base_layers": ("layers", 4), "semantic_layers": ("layers", 2), "key_window": ("tokens", 10)}
        for name, (unit, example) in counts.items():
            value = getattr(self, name)
            require(value is None or is_count(value), name, value, f"None or a number of {unit}, 1 or more", example)
        scale = self.layer_scale_init_value
        valid = scale is None or (is_number(scale) and scale >= 0)
        require(valid, "layer_scale_init_value", scale, "None or a number, 0 for no LayerScale", 1e-5)

    def _check_choices(self) -> None:
        for name in ("recover", "center_offset", "generation_shortcut", "relative_position_bias", "conv_position"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, value, "True or False", False)
        value = self.global_centers
        require(value is None or isinstance(value, bool), "global_centers", value, "None, True or False", True)
        allowed = "False with generation_layers=1, since centres join in the second one (generation_layers=2 has it)"
        require(not value or self.generation_layers > 1, "global_centers", value, allowed, False)
        choices = {"pooling": POOLINGS, "stem": STEMS, "merging": MERGINGS}
        for name, names in (choices | {"formulation": FORMULATIONS, "pad_mask": PAD_MASKS}).items():
            check_choice(name, getattr(self, name), names, names[0], optional=True)

    def _check_recovery(self) -> None:
        """What has no meaning with or without recovery is refused, not ignored."""
        names = ("key_window", "merging") if self.recover else ("semantic_layers", "formulation", "pad_mask")
        for name in names:
            value = getattr(self, name)
            require(value is None, name, value, f"None with recover={self.recover}", None)
        if self.formulation == "classification":
            value, allowed = self.pad_mask, "None with formulation='classification', which pads nothing"
            require(value is None, "pad_mask", value, allowed, None)

    def fill(self, **defaults: Any) -> "SemanticTokenConfig":
        """A copy where each of these fields that is None has its default."""
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    def check_only(self, family: str, **fixed: Any) -> None:
        """Raises ValueError where a field has another value than the one that a family can do."""
        for name, value in fixed.items():
            given = getattr(self, name)
            require(given == value, name, given, f"{value!r} for {family}", value)

    def check_depth(self, depth: int, where: str = "the model") -> None:
        """Raises ValueError where base and generation layers leave none of `depth` for the semantic tokens.

        With recovery, where the units do not divide `depth`.
        """
        if self.recover:
            unit = self.base_layers + self.generation_layers + self.semantic_layers + 1
            allowed = (
                f"a number that makes units of base_layers + generation_layers + semantic_layers + 1 = {unit} layers "
                f"divide the {depth} layers of {where}"
            )
            rest = self.generation_layers + self.semantic_layers + 1
            sizes = [size for size in range(rest + 1, depth + 1) if depth % size == 0]
            example = sizes[0] - rest if sizes else 1
            require(depth % unit == 0, "base_layers", self.base_layers, allowed, example)
            return
        last = depth - self.generation_layers - 1
        allowed = (
            f"at most {last}: {where} has {depth} layers, {self.generation_layers} generate and at least one follows"
        )
        require(self.base_layers <= last, "base_layers", self.base_layers, allowed, max(1, min(last, depth // 3)))
