"""STViT and STViT-R on Swin: its third stage runs on a few semantic tokens of each window (CVPR 2023)."""

import operator
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from transformers import SwinBackbone, SwinConfig, SwinForImageClassification, SwinModel
from transformers.models.swin.modeling_swin import (
    SwinEncoder,
    SwinEncoderOutput,
    SwinPatchEmbeddings,
    SwinPatchMerging,
)
from transformers.utils.generic import merge_with_config_defaults

from ..checks import UserError, as_pair, require
from ..hosts.change import become
from ..semantic.modeling import SemanticConfig, SemanticFamily, SemanticModel, register_semantic_family
from ..semantic.pooling import check_token_grid
from ..semantic.stage import DroppingStage, SemanticMerging, SemanticStage
from ..semantic.swin_layer import WindowLayer
from ..semantic.units import GlobalUnits, LocalUnits
from ..settings.semantic import SemanticTokenConfig
from ..upstream import capture_outputs

_STAGE = 2  # index of the stage with semantic tokens


class TokAccelSTViTSwinConfig(SemanticConfig, SwinConfig):
    """`SwinConfig` with `accel`, whose layers are those of the third stage; `recover=True` is STViT-R."""

    model_type = "tokaccel_stvit_swin"

    def fit_accel(self, setting: SemanticTokenConfig) -> SemanticTokenConfig:
        """Fills 3 x 3 tokens of a window, max pooling, LayerScale, and the layers of the third stage or its units.

        Raises:
            ValueError: when tokens, layers or options do not fit this model or each other.
        """
        depths = list(self.depths)
        require(len(depths) > _STAGE, "depths", depths, "layers of at least three stages", (2, 2, 6, 2))
        depth = depths[_STAGE]
        setting = setting.fill(
            token_grid=(3, 3), pooling="max", global_centers=False, layer_scale_init_value=1e-5, stem="patch"
        )
        if setting.recover:
            setting = setting.fill(base_layers=1, semantic_layers=2, formulation="detection")
            if setting.formulation == "detection":
                setting = setting.fill(pad_mask="corrected")
                setting.check_only("formulation='detection'", global_centers=False, relative_position_bias=False)
        else:
            setting = setting.fill(base_layers=10 if depth == 18 else max(1, depth // 2), merging="grid")
            side, window = setting.key_window, self.window_size
            require(side is None or side >= window, "key_window", side, f"at least window_size={window}", window + 3)
        if setting.stem == "conv":
            patch = self.patch_size
            require(as_pair(patch) == (4, 4), "patch_size", patch, "4 with stem='conv'", 4)
            require(self.embed_dim % 2 == 0, "embed_dim", self.embed_dim, "even with stem='conv'", 96)
        setting.check_depth(depth, f"stage 3 of depths {depths}")
        window = (self.window_size, self.window_size)
        check_token_grid(setting.token_grid, window, setting.pooling, "a window")
        return setting


class ConvPatchEmbeddings(SwinPatchEmbeddings):
    """Two 3 x 3 convolutions of stride 2 with BatchNorm and Hardswish, as in the released STViT-R."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(config)
        sizes = (config.num_channels, config.embed_dim // 2, config.embed_dim)
        parts = []
        for before, after in pairwise(sizes):
            parts += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after)]
            parts.append(nn.Hardswish())
        self.projection = nn.Sequential(*parts)


class TokAccelSTViTSwinEncoder(SemanticModel, SwinEncoder):
    """Swin's, where the size of the map may change otherwise than by merging 2 x 2 tokens."""

    config: TokAccelSTViTSwinConfig

    def post_init(self) -> None:
        resolution = self.layers[_STAGE].blocks[0].input_resolution
        for stage in self.layers:
            for block in stage.blocks:
                become(block, WindowLayer)
        self.layers[_STAGE] = self._third_stage(self.config.accel_view(), resolution)
        super().post_init()

    def _third_stage(self, setting: SemanticTokenConfig, resolution: tuple[int, int]) -> SemanticStage:
        config, depths = self.config, self.config.depths
        kind = DroppingStage
        if setting.recover:
            kind = LocalUnits if setting.formulation == "detection" else GlobalUnits
        merging = SemanticMerging if setting.merging == "linear" else SwinPatchMerging
        first, last = sum(depths[:_STAGE]), max(sum(depths) - 1, 1)
        return kind(
            config,
            setting,
            dim=config.embed_dim * 2**_STAGE,
            input_resolution=resolution,
            depth=depths[_STAGE],
            num_heads=config.num_heads[_STAGE],
            drop_path=[config.drop_path_rate * (first + index) / last for index in range(depths[_STAGE])],
            downsample=merging if len(depths) > _STAGE + 1 else None,
        )

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        always_partition: bool = False,
        output_hidden_states: bool = False,
        output_hidden_states_before_downsampling: bool = False,
        **kwargs: Any,
    ) -> SwinEncoderOutput:
        """The stages, on patches (B, H * W, C) of a map (H, W)."""
        # Constants even where torch.compile made the image size symbolic: each size gets a graph of its own.
        size = tuple(operator.index(side) for side in input_dimensions)
        maps = [hidden_states.unflatten(1, size).permute(0, 3, 1, 2).contiguous()]
        for stage in self.layers:
            hidden_states, shown, _ = stage(
                hidden_states,
                size,
                always_partition=always_partition,
                output_hidden_states_before_downsampling=output_hidden_states_before_downsampling,
                **kwargs,
            )
            maps.append(shown)
            if isinstance(stage, SemanticStage):
                size = stage.next_size(size, always_partition)
            elif stage.downsample is not None:
                size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        shown = tuple(maps) if output_hidden_states else None
        return SwinEncoderOutput(last_hidden_state=hidden_states, reshaped_hidden_states=shown)


def _install(model: SwinModel) -> None:
    """Makes a host that was just built one with semantic tokens; parameters keep their names."""
    # Built anew: what it records is known by the class that was built.
    model.encoder = TokAccelSTViTSwinEncoder(model.config, model.embeddings.patch_grid)
    if model.config.accel_view().stem == "conv":
        model.embeddings.patch_embeddings = ConvPatchEmbeddings(model.config)
        model.embeddings.norm = nn.Identity()


class TokAccelSTViTSwinModel(SemanticModel, SwinModel):
    """`SwinModel` whose third stage runs on semantic tokens.

    Without recovery the maps from that stage on have the semantic tokens of all windows side by side.
    """

    config: TokAccelSTViTSwinConfig
    _no_split_modules = ["SwinStage", "DroppingStage", "GlobalUnits", "LocalUnits"]

    def post_init(self) -> None:
        _install(self)
        super().post_init()


class _SwinHead(SemanticModel):
    """First base of what holds a Swin."""

    _no_split_modules = TokAccelSTViTSwinModel._no_split_modules

    def post_init(self) -> None:
        become(self.swin, TokAccelSTViTSwinModel)
        _install(self.swin)
        super().post_init()


class TokAccelSTViTSwinForImageClassification(_SwinHead, SwinForImageClassification):
    config: TokAccelSTViTSwinConfig


class TokAccelSTViTSwinBackbone(_SwinHead, SwinBackbone):
    """Maps of all stages for dense prediction; with recovery only, since else there are no image tokens any more."""

    config: TokAccelSTViTSwinConfig

    def __init__(self, config: TokAccelSTViTSwinConfig) -> None:
        if not config.accel_view().recover:
            raise UserError(
                "recover=False is not valid for a Backbone, which returns maps of all image tokens: it must be True, "
                "for example accel={'method': 'semantic_tokens', 'recover': True}."
            )
        super().__init__(config)


def _adapt(values: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Swin's parameters, whose names are ours; those of another patch embedding are dropped."""
    if model.config.accel_view().stem == "patch":
        return values
    return {name: value for name, value in values.items() if ".patch_embeddings." not in name}


register_semantic_family(
    "swin",
    SemanticFamily(
        TokAccelSTViTSwinConfig,
        {
            SwinModel: TokAccelSTViTSwinModel,
            SwinForImageClassification: TokAccelSTViTSwinForImageClassification,
            SwinBackbone: TokAccelSTViTSwinBackbone,
        },
        _adapt,
    ),
)
