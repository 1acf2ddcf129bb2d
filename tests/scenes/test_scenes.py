"""The scene renderer: what it draws is geometrically right, reproducible, and served by the dataset classes."""

import re
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from hf_tokaccel.reference import reference_model_path
from hf_tokaccel.scenes import CLASS_NAMES, SceneBatch, SceneDataset, as_datasets, render_scenes
from hf_tokaccel.scenes import _classes as classes
from hf_tokaccel.scenes import _layout as layout
from hf_tokaccel.scenes._render import camera_rays, render

SIZE = (48, 48)


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    return render_scenes(range(64), (96, 96), "validation")


def bare(count: int = 2) -> layout.Scenes:
    """Return scenes without furniture, panels or rugs, lit by one lamp near the ceiling."""
    scenes = layout.draw_scenes(torch.arange(count), "test", 0)
    for name in ("frame_valid", "box_valid", "cylinder_valid", "ball_valid", "panel_valid"):
        getattr(scenes, name).fill_(False)
    scenes.rug[:, 2:4] = -1.0
    scenes.lights[:, 1, 3] = 0.0
    scenes.tone[:, 2] = 0.0
    return scenes


def test_shapes_types_and_ranges(batch):
    assert batch.image.shape == (64, 3, 96, 96)
    assert batch.image.dtype == torch.float32
    assert batch.depth.shape == (64, 96, 96)
    assert batch.depth.dtype == torch.float32
    assert batch.labels.dtype == batch.instances.dtype == torch.int64
    assert batch.image.min() >= 0
    assert batch.image.max() <= 1
    assert batch.depth.min() >= 0.3
    assert batch.depth.max() <= 10.0


def test_a_scene_does_not_depend_on_its_batch(batch):
    for i in (0, 7, 63):
        for whole, alone in zip(batch, render_scenes([i], (96, 96), "validation"), strict=True):
            assert torch.equal(whole[i], alone[0])
    backwards = render_scenes(list(range(20, 10, -1)), (96, 96), "validation")
    assert torch.equal(backwards.depth.flip(0), batch.depth[11:21])


def test_no_global_random_state_is_used():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = render_scenes([3], SIZE)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first.image, render_scenes([3], SIZE).image)


def test_splits_seeds_and_indices_give_different_scenes():
    depths = [
        render_scenes(range(8), SIZE, split, seed).depth
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    ]
    flat = torch.cat(depths).flatten(1)
    gaps = torch.cdist(flat, flat) + 1e3 * torch.eye(len(flat))
    assert gaps.min() > 1.0
    keys = torch.cat([layout.draw_scenes(torch.arange(4096), s, 0).keys for s in ("train", "validation", "test")])
    assert len(keys.unique(dim=0)) == 3 * 4096


def test_sizes_show_the_same_scene():
    """Tripled, every third pixel centre coincides."""
    small, large = render_scenes(range(6), (40, 56)), render_scenes(range(6), (120, 168))
    same = large.labels[:, 1::3, 1::3] == small.labels
    assert same.float().mean() > 0.999
    close = torch.isclose(large.depth[:, 1::3, 1::3], small.depth, rtol=1e-4)
    assert close.float().mean() > 0.999


def test_the_shorter_side_carries_the_field_of_view():
    square, wide = render_scenes([5], (60, 60)), render_scenes([5], (60, 100))
    assert torch.isclose(square.depth, wide.depth[:, :, 20:80], rtol=1e-4).float().mean() > 0.999


def test_floor_and_wall_depth_have_their_closed_form():
    scenes = bare()
    scenes.camera[:, 3] = 0.0  # no roll
    found = render(scenes, 64, 64)
    height, _, pitch, _, focal = scenes.camera[:, :, None, None].unbind(1)
    v = -(torch.arange(64) + 0.5 - 32)[None, :, None] / 32 / focal
    expected = (height / (pitch.sin() - v * pitch.cos())).expand(-1, 64, 64)
    floor = found.labels == classes.FLOOR
    assert floor.float().mean() > 0.15
    torch.testing.assert_close(found.depth[floor], expected[floor], rtol=1e-4, atol=1e-4)

    scenes.camera[:, 1:3] = 0.0  # straight ahead: the front wall is a plane of constant depth
    middle = render(scenes, 64, 64).depth[:, 32, 32]
    torch.testing.assert_close(middle, scenes.room[:, 5])


def test_rays_have_unit_depth_and_the_horizon_is_level():
    scenes = bare(4)
    x, y, z = camera_rays(scenes, 31, 31)
    _, yaw, pitch, _, _ = scenes.camera[:, :, None].unbind(1)
    ahead = x * yaw.sin() * pitch.cos() - y * pitch.sin() + z * yaw.cos() * pitch.cos()
    torch.testing.assert_close(ahead, torch.ones_like(ahead))


def test_ball_depth_and_outline_have_their_closed_form():
    scenes = bare(1)
    scenes.camera[:, 1:4] = 0.0
    height, focal = float(scenes.camera[0, 0]), float(scenes.camera[0, 4])
    centre, radius = torch.tensor([0.1, height - 0.05, 2.0]), 0.3
    scenes.balls[:, -1] = torch.tensor([*centre.tolist(), radius])
    scenes.ball_valid[:, -1] = True
    found = render(scenes, 96, 96)
    v, u = torch.meshgrid(
        -(torch.arange(96) + 0.5 - 48) / 48 / focal, (torch.arange(96) + 0.5 - 48) / 48 / focal, indexing="ij"
    )
    rays = torch.stack([u, v, torch.ones_like(u)], dim=-1)
    offset = centre - torch.tensor([0.0, height, 0.0])
    b, a = rays @ offset, rays.square().sum(-1)
    inside = b.square() - a * (offset.square().sum() - radius**2)
    seen = found.labels[0] == CLASS_NAMES.index("ball")
    assert torch.equal(seen, inside > 0)
    assert seen.sum() > 400
    torch.testing.assert_close(found.depth[0][seen], ((b - inside.sqrt()) / a)[seen], rtol=1e-4, atol=1e-4)


def test_box_and_cylinder_stand_at_their_depth():
    scenes = bare(1)
    scenes.camera[:, 1:4] = 0.0
    height = float(scenes.camera[0, 0])
    frame = scenes.box_frame[0]
    scenes.frames[:, frame] = torch.tensor([0.0, 2.5, 1.0, 0.0])
    scenes.frame_valid[:, frame] = scenes.box_valid[:, 0] = True
    scenes.boxes[:, 0] = torch.tensor([0.0, height, 0.0, 0.5, 0.5, 0.25])
    found = render(scenes, 49, 49)
    torch.testing.assert_close(found.depth[0, 24, 20:29], torch.full((9,), 2.25))
    scenes.cylinders[:, 0] = torch.tensor([0.0, height, 1.6, 0.1, 0.4])
    scenes.cylinder_valid[:, 0] = True
    found = render(scenes, 49, 49)
    torch.testing.assert_close(found.depth[0, 24, 24], torch.tensor(1.5))
    assert found.instances[0, 24, 24] != found.instances[0, 24, 14]


def test_shadows_fall_where_an_object_hides_the_light():
    scenes = bare(1)
    scenes.camera[:, 2] = 0.5
    empty = render(scenes, 96, 96)
    light = scenes.lights[0, 0, :3] = torch.tensor([0.4, 2.2, 1.6])
    empty = render(scenes, 96, 96)
    centre, radius = torch.tensor([0.1, 0.9, 1.9]), 0.15
    scenes.balls[:, -1] = torch.tensor([*centre.tolist(), radius])
    scenes.ball_valid[:, -1] = True
    found = render(scenes, 96, 96)
    rays = torch.stack(camera_rays(scenes, 96, 96), dim=-1)[0].view(96, 96, 3)
    point = rays * found.depth[0, ..., None] + torch.tensor([0.0, float(scenes.camera[0, 0]), 0.0])
    path = point - light
    nearest = ((centre - light) * path).sum(-1) / path.square().sum(-1)
    hidden = (light + nearest[..., None] * path - centre).norm(dim=-1) < radius
    floor = found.labels[0] == classes.FLOOR
    darker = found.image[0].sum(0) < 0.98 * empty.image[0].sum(0)
    assert (hidden & floor).sum() > 30
    assert torch.equal(darker & floor, hidden & floor)


def test_all_classes_occur(batch):
    assert len(CLASS_NAMES) >= 10
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES)
    assert set(batch.labels.unique().tolist()) == set(range(len(CLASS_NAMES)))


def test_instances_agree_with_labels(batch):
    assert torch.equal(batch.instances == 0, batch.labels < classes.NUM_STUFF)
    for labels, instances in zip(batch.labels, batch.instances, strict=True):
        pairs = torch.stack([instances, labels], dim=-1).flatten(0, 1).unique(dim=0)
        objects = pairs[pairs[:, 0] > 0, 0]
        assert len(objects) == len(objects.unique())


def test_thin_and_small_objects_are_there(batch):
    thin = torch.isin(batch.labels, torch.tensor([CLASS_NAMES.index(n) for n in ("pole", "lamp", "cup", "shelf")]))
    assert 0.002 < thin.float().mean() < 0.1


def test_typical_materials_change_colours_alone(batch):
    typical = render_scenes(range(64), (96, 96), "validation", materials="typical")
    assert torch.equal(typical.depth, batch.depth)
    assert torch.equal(typical.labels, batch.labels)
    pixels, labels = torch.stack([batch.image, typical.image]).permute(0, 1, 3, 4, 2), batch.labels
    for name in ("sofa", "table", "rug", "ball"):
        tint = [(i / i.sum(-1, keepdim=True))[labels == CLASS_NAMES.index(name)].var(dim=0).sum() for i in pixels]
        assert tint[1] < 0.6 * tint[0]
    item = SceneDataset("validation", 1, (96, 96), materials="typical")[0]
    assert torch.equal(item["image"], (typical.image[0] * 255).round().to(torch.uint8))


def test_dataset_serves_single_items_and_batches():
    data = SceneDataset("train", 10, SIZE, seed=3)
    assert len(data) == 10
    item = data[4]
    assert {k: (v.dtype, tuple(v.shape)) for k, v in item.items()} == {
        "image": (torch.uint8, (3, *SIZE)),
        "depth": (torch.float32, SIZE),
        "labels": (torch.int64, SIZE),
        "instances": (torch.int64, SIZE),
    }
    loaded = list(DataLoader(data, batch_size=4))
    assert [len(b["image"]) for b in loaded] == [4, 4, 2]
    for name, value in item.items():
        assert torch.equal(loaded[1][name][0], value)
    assert torch.equal(data[-1]["depth"], data[9]["depth"])
    with pytest.raises(IndexError):
        data[10]


def test_dataset_gives_arrays_and_columns_of_the_same_scenes():
    """As image processors take them: what evaluation, tuning and pictures read."""
    plain = SceneDataset("test", 3, SIZE, seed=2)
    arrays = SceneDataset("test", 3, SIZE, seed=2, channels_last=True)
    counted = SceneDataset("test", 3, SIZE, seed=2, columns={"objects": lambda item: len(item["instances"].unique())})
    assert arrays[1]["image"].flags.c_contiguous
    assert torch.equal(torch.from_numpy(arrays[1]["image"]).permute(2, 0, 1), plain[1]["image"])
    assert arrays[1].keys() == plain[1].keys()
    assert counted[-1].keys() == {"name", "image", "objects"}
    assert counted[-1]["name"] == "scene 2"
    assert counted[-1]["objects"] == len(plain[2]["instances"].unique())
    assert torch.equal(counted[-1]["image"], plain[2]["image"])


def test_as_datasets_holds_the_same_scenes():
    data, table = SceneDataset("test", 3, SIZE), as_datasets("test", 3, SIZE).with_format("torch")
    assert table.num_rows == 3
    for name, value in data[1].items():
        assert torch.equal(table[1][name], value)
    assert as_datasets("test", 1, SIZE)[0]["image"].size == SIZE


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: render_scenes([0], split="dev"), ("'dev'", "train, validation, test", "split='train'")),
        (lambda: render_scenes([0], size=(0, 8)), ("(0, 8)", "positive", "size=(128, 128)")),
        (lambda: render_scenes([0], size=128), ("128", "height, width", "size=(128, 128)")),
        (lambda: render_scenes([-1]), ("[-1]", "2147483647", "indices=[0, 1]")),
        (lambda: render_scenes([]), ("[]", "non-empty", "indices=[0, 1]")),
        (lambda: render_scenes([0], seed=-2), ("-2", "seed", "seed=0")),
        (lambda: SceneDataset("train", 0), ("0", "length", "length=1024")),
        (lambda: SceneDataset("nope", 4), ("'nope'", "validation", "split='train'")),
        (lambda: as_datasets("train", -3), ("-3", "length", "length=1024")),
        (lambda: render_scenes([0], materials="wood"), ("'wood'", "any, typical", "materials='any'")),
        (lambda: SceneDataset("train", 4, materials="wood"), ("'wood'", "any, typical", "materials='any'")),
        (lambda: reference_model_path("surface"), ("'surface'", "'depth'")),
    ],
)
def test_bad_input_is_named_with_what_is_allowed(call, parts):
    with pytest.raises(ValueError, match=re.escape(parts[0])) as error:
        call()
    assert all(part in str(error.value) for part in parts)


def test_reference_model_path_is_a_folder_of_the_package():
    assert reference_model_path("depth").name == "dpt-scenes"


def test_command_reports_speed_and_draws_a_sheet(tmp_path):
    sheet = tmp_path / "sheet.png"
    command = [sys.executable, "-m", "hf_tokaccel.scenes", "--size", "32", "--images", "8", "--batch", "8"]
    done = subprocess.run([*command, "--sheet", str(sheet)], capture_output=True, text=True, check=True)
    assert "images/s at 32x32 on cpu" in done.stdout
    assert sheet.stat().st_size > 1000
