"""What the ready cards say of each checkpoint: a setting, what was published, and how to measure."""

from dataclasses import dataclass

from hf_tokaccel.tuning.released import RELEASED


@dataclass(frozen=True)
class Published:
    """A table of the paper or of its code.

    Attributes:
        source: Where it stands.
        about: Weights, data and machine of its numbers.
        columns: Headings.
        rows: Cells; the row of the card's setting is marked by `ours`.
        ours: Index of that row, None where the setting is not among them.
    """

    source: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ours: int | None = None


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        name: Of the file, and of the folder that its command writes.
        base: Hub id, or the folder of a converted checkpoint.
        auto_class: Loads it.
        tag: Pipeline tag.
        accel: The setting.
        image_size: Pixels, (height, width), that the setting is for.
        why: Where the setting comes from.
        published: Numbers, None where there are none.
        measure: Arguments of `hf_tokaccel evaluate`.
        before: Commands that come first.
    """

    name: str
    base: str
    auto_class: str
    tag: str
    accel: dict
    image_size: tuple[int, int]
    why: str
    published: Published | None
    measure: str
    before: tuple[str, ...] = ()


PAPER = "Liang et al., NeurIPS 2022"
DPT_ROWS = (
    ("NYUv2, 480 x 640", "dense", "560.2", "18.66", "0.357"),
    ("", "cluster_after 7, 24 x 24", "504.2", "19.19", "0.360"),
    ("", "cluster_after 5, 16 x 16", "439.2", "22.08", "0.362"),
    ("", "cluster_after 3, 14 x 14", "395.0", "26.02", "0.364"),
    ("KITTI, 352 x 1216", "dense", "810.0", "12.55", "2.573"),
    ("", "cluster_after 7, 28 x 28", "723.4", "13.30", "2.593"),
    ("", "cluster_after 5, 20 x 20", "631.8", "16.41", "2.625"),
    ("", "cluster_after 5, 16 x 16", "613.6", "17.14", "2.660"),
)
DPT = Published(
    f"{PAPER}, DPT",
    "DPT-Hybrid fine-tuned on each data set, in half precision: other weights than these, of the same architecture.",
    ("data, input", "setting", "GFLOPs", "FPS", "RMSE"),
    DPT_ROWS,
    2,
)
DEPTH = RELEASED["dpt-nyuv2-16x16-after-5"].others
NYU = "--dataset nyuv2:DATA"


def _mask2former(data: str, metric: str, preset: str, dense: tuple, fast: tuple) -> dict:
    accel = RELEASED[preset].accel
    published = Published(
        f"{PAPER}, Mask2Former",
        "These weights; GFLOPs and FPS are those of the backbone alone at 1152 x 1152, batch 1, float32.",
        ("setting", "GFLOPs", "FPS", metric),
        (("dense", *dense), (f"cluster_after {accel['cluster_after']}, 8 x 8 of each window", *fast)),
        1,
    )
    return {
        "name": f"mask2former-swin-large-{data}-tokaccel",
        "base": f"facebook/mask2former-swin-large-{data}",
        "auto_class": "AutoModelForUniversalSegmentation",
        "tag": "image-segmentation",
        "accel": accel,
        "image_size": RELEASED[preset].image_size,
        "published": published,
    }


def _segmenter(data: str, preset: str, stride: int, title: str, rows: tuple, ours: int = 2) -> Card:
    (crop, _), accel = RELEASED[preset].image_size, RELEASED[preset].accel
    folder = f"segmenter-vit-large-{data}"
    return Card(
        name=f"{folder}-tokaccel",
        base=folder,
        auto_class="AutoModelForSemanticSegmentation",
        tag="image-segmentation",
        accel=accel,
        image_size=(crop, crop),
        why=f"the setting that the paper's code ships for {title}; the decoder runs on clusters, as there.",
        published=Published(
            f"{PAPER}, Segmenter",
            f"ViT-L/16 on {title}, crops of {crop}; FPS of the whole model on one crop, batch 1.",
            ("setting", "GFLOPs", "FPS", "mIoU"),
            rows,
            ours,
        ),
        measure=f"segmentation --model {folder} --dataset {data}:DATA --crop {crop} --stride {stride}",
        before=(f"hf_tokaccel convert segmenter checkpoint.pth variant.yml {folder}",),
    )


CARDS = (
    Card(
        name="dpt-large-tokaccel",
        base="Intel/dpt-large",
        auto_class="AutoModelForDepthEstimation",
        tag="depth-estimation",
        accel={"cluster_after": 14, "cluster_grid": (16, 16), **DEPTH},
        image_size=(384, 384),
        why="carried over from the paper's DPT-Hybrid, which clusters after 7 of 12 blocks and keeps about half of "
        "the tokens: 14 of 24 blocks, 16 x 16 clusters of 24 x 24 tokens. The paper's code has no accelerated ViT-L.",
        published=None,
        measure=f"depth --model Intel/dpt-large {NYU}",
    ),
    Card(
        name="dpt-hybrid-midas-tokaccel",
        base="Intel/dpt-hybrid-midas",
        auto_class="AutoModelForDepthEstimation",
        tag="depth-estimation",
        accel=RELEASED["dpt-nyuv2-16x16-after-5"].accel,
        image_size=(384, 384),
        why="the paper's for NYUv2 with alpha 4, which for DPT means that 5 blocks run at full resolution.",
        published=DPT,
        measure=f"depth --model Intel/dpt-hybrid-midas {NYU}",
    ),
    Card(
        name="depth-anything-v2-large-tokaccel",
        base="depth-anything/Depth-Anything-V2-Large-hf",
        auto_class="AutoModelForDepthEstimation",
        tag="depth-estimation",
        accel={"cluster_after": 14, "cluster_grid": (26, 26), **DEPTH},
        image_size=(518, 518),
        why="carried over from the paper's DPT-Hybrid: 14 of 24 blocks, 26 x 26 clusters of 37 x 37 tokens.",
        published=None,
        measure=f"depth --model depth-anything/Depth-Anything-V2-Large-hf {NYU}",
    ),
    Card(
        **_mask2former(
            "coco-panoptic",
            "PQ",
            "mask2former-coco-panoptic-8x8-after-9",
            ("937", "4.3", "57.8"),
            ("663", "5.9", "56.8"),
        ),
        why="the paper's with alpha 10. Its GFLOPs belong to clustering after 9 blocks, while its code ships 10; "
        "which of them the PQ belongs to is not known.",
        measure="panoptic --model facebook/mask2former-swin-large-coco-panoptic --dataset coco:DATA",
    ),
    Card(
        **_mask2former(
            "coco-instance",
            "AP",
            "mask2former-coco-instance-8x8-after-11",
            ("937", "4.3", "50.1"),
            ("705", "5.4", "49.1"),
        ),
        why="the paper's with alpha 12. Its GFLOPs belong to clustering after 11 blocks, while its code ships 12; "
        "which of them the AP belongs to is not known.",
        measure="instances --model facebook/mask2former-swin-large-coco-instance --dataset coco:DATA",
    ),
    Card(
        **_mask2former(
            "ade-panoptic",
            "PQ",
            "mask2former-ade20k-panoptic-8x8-after-14",
            ("937", "4.4", "48.0"),
            ("769", "5.3", "47.6"),
        ),
        why="the paper's with alpha 14, which for this data set is the number of blocks at full resolution.",
        measure="panoptic --model facebook/mask2former-swin-large-ade-panoptic --dataset ade20k:DATA",
    ),
    Card(
        **_mask2former(
            "ade-semantic",
            "mIoU",
            "mask2former-ade20k-semantic-8x8-after-7",
            ("937", "4.3", "55.8"),
            ("620", "6.2", "55.5"),
        ),
        why="the paper's with alpha 8, which here means that 7 blocks run at full resolution.",
        measure="segmentation --model facebook/mask2former-swin-large-ade-semantic --dataset ade20k:DATA",
    ),
    Card(
        name="sam-vit-huge-tokaccel",
        base="facebook/sam-vit-huge",
        auto_class="AutoModelForMaskGeneration",
        tag="mask-generation",
        accel=RELEASED["sam-9x9-after-6"].accel,
        image_size=(1024, 1024),
        why="the fastest that the authors' SAM code lists; `cluster_grid` counts the clusters of a window of 14 x 14.",
        published=Published(
            "README of the authors' code for SAM",
            "Images of 1024 x 1024, 12 points a side, on a V100 with 16 GB; no quality was published.",
            ("setting", "images/s"),
            (
                ("dense", "1.27"),
                ("cluster_after 18, 11 x 11", "1.40"),
                ("cluster_after 14, 10 x 10", "1.52"),
                ("cluster_after 8, 10 x 10", "1.64"),
                ("cluster_after 8, 9 x 9", "1.82"),
                ("cluster_after 6, 9 x 9", "1.89"),
            ),
            5,
        ),
        measure="sam --model facebook/sam-vit-huge --dataset DATA --points-per-side 12",
    ),
    _segmenter(
        "ade20k",
        "segmenter-ade20k-28x28-after-10",
        640,
        "ADE20K",
        (
            ("dense", "658.98", "6.55", "51.82"),
            ("cluster_after 16, 28 x 28", "529.81", "7.92", "51.93"),
            ("cluster_after 10, 28 x 28", "443.84", "9.51", "51.56"),
            ("cluster_after 8, 20 x 20", "309.4", "13.51", "47.96"),
        ),
    ),
    _segmenter(
        "cityscapes",
        "segmenter-cityscapes-32x32-after-12",
        512,
        "Cityscapes",
        (
            ("dense", "995.6", "4.20", "79.14"),
            ("cluster_after 18, 32 x 32", "840.9", "4.82", "78.82"),
            ("cluster_after 12, 32 x 32", "691.0", "5.89", "78.38"),
            ("cluster_after 10, 24 x 24", "529.64", "8.02", "76.20"),
        ),
    ),
    _segmenter(
        "pascal_context60",
        "segmenter-pascal-context-20x20-after-14",
        320,
        "Pascal Context",
        (
            ("dense", "338.7", "14.7", "58.07"),
            ("cluster_after 14, 20 x 20", "251.2", "18.2", "58.27"),
            ("cluster_after 12, 15 x 15", "201.3", "21.6", "57.85"),
            ("cluster_after 8, 15 x 15", "161.0", "25.0", "55.08"),
        ),
        ours=1,
    ),
)
