"""The one place that enters a host model: grafting, the forward decorators and saving.

A model family is described by subclasses of the host's own classes with a few class attributes (`AcceleratedModel`)
and by wrapping the host's forwards, never by copying them:

- `enter` wraps the forward that sees the image: it starts the `TokenTrack` of the pass and hands it down as a keyword.
- `record` wraps the forward that returns hidden states, so that those are full-size.
- `loop` wraps the forward of an encoder whose loop passes no keywords on to the blocks.
- `read` wraps the forward of a head: it says which hidden states the head reads, so that only those are rebuilt.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch._dynamo.config
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ..checks import UserError, as_pair, brief
from ..hub.shim import ShimMixin
from ..registry import accelerated_class, unsupported
from ..settings.clustering import TokenClusteringConfig
from ..upstream import capture_outputs
from .change import change
from .config import AcceleratedConfig, SettingModel, check_multiple
from .convert import to_native
from .graft import transplant
from .layout import SliceLayout, TokenLayout
from .sizes import weigh_sizes
from .track import TokenTrack, ambient_read, ambient_track
from .tracked import track_blocks

GRAPHS = 64  # image sizes that a compiled model may see before PyTorch gives up compiling more


class AcceleratedModel(SettingModel, ShimMixin):
    """First base of every accelerated model class; the second is the host's own class.

    Class attributes describe the family:
        accel_layers: dotted path of the list of blocks, if this class runs them.
        accel_norm: name of a block's first LayerNorm.
        accel_parts: dotted paths of parts to replace by their accelerated classes.
        accel_shrinks_windows: whether blocks on clusters have windows of clusters, by their `window_size`.
        accel_passes_inputs: whether blocks keep what the host passes by position, see `accel_block_inputs`.
        accel_ambient: whether the track has to reach the blocks past a forward that hands no keywords down to them.
        accel_make_track: what makes the track of a pass; measurements put others on an object.
        native_class: the host's class, None where Transformers has none; found from the bases if absent.
    """

    accel_layers: str | None = None
    accel_norm: str = "layernorm_before"
    accel_parts: tuple[str, ...] = ()
    accel_shrinks_windows: bool = False
    accel_passes_inputs: bool = False
    accel_ambient: bool = False
    accel_make_track: Callable[..., TokenTrack] = TokenTrack

    @property
    def accel(self) -> TokenClusteringConfig | None:
        """The setting that this host runs with."""
        return self.__dict__.get("accel_setting")

    @accel.setter
    def accel(self, value: Any) -> None:
        raise UserError(
            f"accel={brief(value)} cannot be assigned to a built model: use model = hf_tokaccel.accelerate(model, "
            "accel), for example accelerate(model, None)."
        )

    def post_init(self) -> None:
        # The last call of every native __init__, before weights are loaded: parameter names stay the host's, and
        # nothing is initialised twice.
        if isinstance(self.config, AcceleratedConfig):
            self.config.mark_in_use()
            self.install_accel(self.config.accel_view())
        super().post_init()

    def install_accel(self, accel: TokenClusteringConfig | None) -> None:
        """Makes this host run with a setting; called once, while the model is built."""
        self.accel_setting = accel
        if accel is None:
            return
        # Each image size gets a graph of its own, and all models of a class count as one forward.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        for path in self.accel_parts:
            owner_name, _, name = path.rpartition(".")
            owner = self.get_submodule(owner_name)
            native = getattr(owner, name, None)
            if native is not None:
                setattr(owner, name, _graft(native, accel))
        if self.accel_layers:
            layers = self.get_submodule(self.accel_layers)
            if self.accel_shrinks_windows:
                _shrink_windows(layers, accel)
            track_blocks(layers, self.accel_norm, self.accel_ambient)
            if accel.size_attention:
                self._weigh_sizes(layers, accel)

    def _weigh_sizes(self, layers: nn.ModuleList, accel: TokenClusteringConfig) -> None:
        for layer in list(layers)[accel.starts[0] : accel.reconstruct_after]:
            if not self.accel_weigh_sizes(layer):
                raise UserError(
                    f"size_attention=True is not valid for {type(self).__name__}, whose attention takes no bias: it "
                    "must be False, for example size_attention=False."
                )

    def accel_weigh_sizes(self, layer: nn.Module) -> bool:
        """Lets the attention of a block take sizes; whether it can."""
        return weigh_sizes(layer)

    def accel_patch_size(self) -> tuple[int, int]:
        return as_pair(self.config.patch_size)

    def accel_depth(self) -> int:
        """Blocks of this host."""
        return self.config.num_hidden_layers

    def accel_layout(self, arguments: dict[str, Any]) -> TokenLayout:
        """Where the patch tokens are in the states of this host, for one call with these arguments of its forward.

        Raises:
            ValueError: when the images do not fit the patches.
        """
        family, host = self.config_class, self.config
        prefix, parts, slices = family.accel_prefix_of(host), family.accel_parts(host), family.accel_slices(host)
        grid = image_grid(self, arguments["pixel_values"], parts)
        if slices is not None:
            return SliceLayout(grid, prefix, slices)
        return TokenLayout(grid, prefix, family.accel_unit, parts**2)

    def accel_positions(self, arguments: dict[str, Any], layout: TokenLayout) -> torch.Tensor | None:
        """(N, P) coordinates of the tokens, where blocks need those of the clusters; None where they do not."""
        return None

    def accel_block_inputs(
        self, track: TokenTrack, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """What a block is called with besides its states; `track.clustered` tells whether it runs on clusters.

        What most hosts pass by position is the attention mask. A user's is refused, and under export an absent one
        arrives as an N x N tensor, which does not fit the clusters. Others say `accel_passes_inputs`.
        """
        return args if self.accel_passes_inputs else tuple(None for _ in args), kwargs

    def save_pretrained(self, save_directory: Any, *args: Any, native: bool = False, **kwargs: Any) -> None:
        """Saves weights, config with `accel`, and the shim that makes `trust_remote_code=True` work.

        Args:
            save_directory: the folder.
            native: write a plain folder of the host instead, without acceleration.
        """
        if native:
            to_native(self).save_pretrained(save_directory, *args, **kwargs)
            return
        if isinstance(self.config, AcceleratedConfig) and self.config.accel_view() != self.accel:
            raise UserError(
                f"the configuration has accel={brief(self.config.accel)}, but the model runs with {self.accel}: "
                "saving would give another model. To change it, use model = hf_tokaccel.accelerate(model, accel)."
            )
        super().save_pretrained(save_directory, *args, **kwargs)


def _graft(native: nn.Module, accel: TokenClusteringConfig) -> nn.Module:
    """The accelerated form of a native part, with the same parameters."""
    cls = accelerated_class(type(native))
    if cls is None:
        raise unsupported(f"a model with a {type(native).__name__} inside")
    with torch.device("meta"):
        template = cls(native.config)
        if isinstance(template, AcceleratedModel) and template.accel is None:
            template.install_accel(accel)
    return transplant(template, native, {})


def _shrink_windows(layers: nn.ModuleList, accel: TokenClusteringConfig) -> None:
    """The clusters of a window are a window; relative positions are resized by the host."""
    for layer in list(layers)[accel.starts[0] : accel.reconstruct_after]:
        if layer.window_size > 0:
            change(layer, window_size=accel.cluster_grid[0])


def image_grid(model: nn.Module, pixel_values: torch.Tensor, windows: int = 1) -> tuple[int, int]:
    """(H, W) patch tokens of images (B, C, height, width), or of each of their windows x windows parts.

    Raises:
        ValueError: when a side is not a multiple of the patch, or cannot be divided into these parts.
    """
    # Constants even where torch.compile made the image size symbolic: each size gets a graph of its own.
    sides = tuple(operator.index(side) for side in pixel_values.shape[-2:])
    steps = tuple(windows * step for step in model.accel_patch_size())
    check_multiple(sides, steps, windows)
    return tuple(side // step for side, step in zip(sides, steps, strict=True))


def enter(native_forward: Callable, reads: Callable[[Any], Collection[int]] | None = None) -> Callable:
    """Wraps the forward that receives `pixel_values`.

    Args:
        native_forward: the host's method.
        reads: for a backbone, the hidden states that its feature maps come from, given the model.
    """
    names = list(inspect.signature(native_forward).parameters)[1:]

    @functools.wraps(native_forward)
    def forward(self, *args, **kwargs):
        if self.accel_ambient:
            kwargs = {**(ambient_read.get() or {}), **kwargs}
        read = kwargs.pop("accel_read", None)
        final = kwargs.pop("accel_final", True)
        if self.accel is None:
            return native_forward(self, *args, **kwargs)
        arguments = {**dict(zip(names[: len(args)], args, strict=True)), **kwargs}
        if arguments.get("attention_mask") is not None:
            raise UserError(
                "attention_mask is not valid while acceleration is on, since clusters mix masked and unmasked tokens: "
                "pass None, or switch acceleration off with accelerate(model, None)."
            )
        if read is None:
            wanted = hidden_state_indices(self, wanted_hidden_states(self, arguments))
            read = [*wanted, *(reads(self) if reads is not None else ())]
        wanted = set(hidden_state_indices(self, read))
        layout = self.accel_layout(arguments)
        self.accel.check_grid(layout.grid, layout.unit)
        track = self.accel_make_track(
            self.accel,
            layout,
            depth=self.accel_depth(),
            wanted=wanted,
            final=final,
            block_inputs=self.accel_block_inputs,
            positions=self.accel_positions(arguments, layout),
        )
        output = run_tracked(native_forward, self, track, args, kwargs)
        track.check_ran()
        return output

    return forward


def run_tracked(native_forward: Callable, model: nn.Module, track: TokenTrack, args: tuple, kwargs: dict) -> Any:
    """Runs a forward whose blocks find the track, by keyword or where `accel_ambient` says so past it."""
    if not model.accel_ambient:
        return native_forward(model, *args, accel_track=track, **kwargs)
    token = ambient_track.set(track)
    try:
        return native_forward(model, *args, **kwargs)
    finally:
        ambient_track.reset(token)


def wanted_hidden_states(model: nn.Module, arguments: dict[str, Any]) -> bool | int | Collection[int]:
    """What the caller of a forward, or else the configuration, says of `output_hidden_states`."""
    requested = arguments.get("output_hidden_states")
    return model.config.output_hidden_states if requested is None else requested


def hidden_state_indices(model: nn.Module, requested: bool | int | Collection[int]) -> Collection[int]:
    """Transformers' forms of `output_hidden_states` as indices; negative ones count from the end."""
    count = model.accel_depth() + 1
    if isinstance(requested, bool):
        return range(count) if requested else ()
    selected = [requested] if isinstance(requested, int) else requested
    return [index % count for index in selected if -count <= index < count]


def record(native_forward: Callable, *, ties_last: bool = False) -> Callable:
    """Wraps the forward whose output carries `hidden_states`, which become those of the track.

    Args:
        native_forward: the host's method.
        ties_last: whether the host's last hidden state is its `last_hidden_state`, after the final LayerNorm.
    """

    @functools.wraps(native_forward)
    def forward(self, *args, **kwargs):
        track = ambient_track.get() if self.accel_ambient and self.accel else kwargs.get("accel_track")
        if track is None:
            return native_forward(self, *args, **kwargs)
        return_dict = kwargs.pop("return_dict", None)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        # Transformers' own recording hooks sit on the blocks, so they would record clusters.
        kwargs["output_hidden_states"] = False
        output = native_forward(self, *args, return_dict=True, **kwargs)
        if track.wanted:
            states = list(track.hidden_states)
            if ties_last and states[-1] is not None:
                states[-1] = output.last_hidden_state
            # Rebuilt, since a field that is set later would come last in the tuple form.
            output = type(output)(**{**output, "hidden_states": tuple(states)})
        return output if return_dict else output.to_tuple()

    return forward


def loop(native_forward: Callable, layers: str = "layer", *, captures: bool = False) -> Callable:
    """Wraps the forward of an encoder whose own loop, in some supported version, passes no keywords on to the blocks.

    Args:
        native_forward: the encoder's method; it serves where nothing is accelerated.
        layers: name of the list of blocks.
        captures: whether Transformers records attentions at this encoder rather than at the model around it.
    """

    def run_blocks(self, hidden_states, accel_track, **kwargs):
        for layer in getattr(self, layers):
            hidden_states = layer(hidden_states, accel_track=accel_track)
        return BaseModelOutput(last_hidden_state=hidden_states)

    if captures:
        run_blocks = capture_outputs(run_blocks, tie_last_hidden_states=False)

    @functools.wraps(native_forward)
    def forward(self, hidden_states, *args, **kwargs):
        if kwargs.get("accel_track") is None:
            return native_forward(self, hidden_states, *args, **kwargs)
        return run_blocks(self, hidden_states, **kwargs)

    return forward


def read(
    native_forward: Callable,
    indices: Callable[[Any], Collection[int]],
    *,
    patches: bool | Callable[[Any], bool] = True,
) -> Callable:
    """Wraps a head's forward.

    Args:
        native_forward: the head's method.
        indices: the hidden states that the head reads, given the model.
        patches: whether it reads the patch tokens of the last hidden state, or a function of the model that says so.
    """

    @functools.wraps(native_forward)
    def forward(self, *args, **kwargs):
        if self.accel is None or wanted_hidden_states(self, kwargs):
            return native_forward(self, *args, **kwargs)
        final = patches(self) if callable(patches) else patches
        reads = {"accel_read": tuple(indices(self)), "accel_final": final}
        if not self.accel_ambient:
            return native_forward(self, *args, **{**kwargs, **reads})
        token = ambient_read.set(reads)
        try:
            return native_forward(self, *args, **kwargs)
        finally:
            ambient_read.reset(token)

    return forward
