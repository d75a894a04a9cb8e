"""The drawn world ``streets``: exact masks of Cityscapes' classes, laid out as streets are."""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from attn2mask.builders.drawn import roadside, traffic
from attn2mask.builders.drawn.camera import CITYSCAPES, NEAR, UNLABELED, Camera
from attn2mask.builders.drawn.canvas import SUPERSAMPLE
from attn2mask.builders.drawn.rows import HELD_OUT, DrawConfig, draw_rows, run
from attn2mask.builders.drawn.scenes import DrawnScene, draw_scene
from attn2mask.builders.drawn.streetscape import DISTRICTS, LIGHTS
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import decode_png
from attn2mask.builders.options import parse
from attn2mask.builders.prompts import find_occurrences
from attn2mask.training.data import open_rows

ID = {name: k for k, name in enumerate(CITYSCAPES)}


def street(index: int, size: int | tuple[int, int] = (48, 96)) -> DrawnScene:
    return draw_scene("streets", np.random.default_rng([5, index]), size)


@cache
def streets() -> tuple[DrawnScene, ...]:
    return tuple(street(index) for index in range(80))


def shares(scene: DrawnScene) -> dict[str, float]:
    """The share of the image's pixels of each class in it."""
    return {name: share for name, k in ID.items() if (share := np.mean(scene.mask == k))}


def camera(size: tuple[int, int] = (64, 128)) -> Camera:
    return Camera(size, LIGHTS[0], np.random.default_rng(2))


def test_a_street_is_a_function_of_its_seed():
    one, two, other = street(1), street(1), street(2)
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.mask, two.mask)
    assert (one.place, one.light) == (two.place, two.light)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("size", [(128, 256), (64, 64), (33, 77), (90, 40), 48])
def test_streets_come_in_any_size(size):
    scene = street(3, size)
    height, width = (size, size) if isinstance(size, int) else size
    assert scene.image.shape == (height, width, 3)
    assert scene.image.dtype == np.uint8
    assert scene.mask.shape == (height, width)
    assert scene.mask.dtype == np.uint8
    assert (scene.place, scene.light) == (street(3).place, street(3).light)
    assert shares(scene)["road"] > 0.1


def test_every_class_is_seen():
    """Each in 5 per cent of the scenes or more; road, sky and building in nearly all; little unlabeled."""
    found = [shares(scene) for scene in streets()]
    seen = {name: np.mean([name in of_scene for of_scene in found]) for name in CITYSCAPES}
    assert min(seen.values()) >= 0.05, seen
    assert min(seen[name] for name in ("road", "sky", "building")) > 0.95
    mean = {name: np.mean([of_scene.get(name, 0) for of_scene in found]) for name in CITYSCAPES}
    assert mean["road"] > 0.2
    assert mean["building"] > 0.1
    assert 0.04 < mean["car"] < 0.2
    assert sum(mean.values()) > 0.97


def test_masks_hold_ids_and_the_bonnet_alone_is_unlabeled():
    for scene in streets():
        ids = np.unique(scene.mask)
        assert all(k < 19 or k == UNLABELED for k in ids)
        assert not (scene.mask[: len(scene.mask) * 4 // 5] == UNLABELED).any()


def test_what_a_scene_says():
    places = {phrase for phrases, _ in DISTRICTS.values() for phrase in phrases}
    for scene in streets()[:40]:
        assert scene.place in places
        assert any(scene.light in light.phrases for light in LIGHTS)
    assert len({scene.light for scene in streets()}) > 12
    with pytest.raises(ValueError, match="can't be chosen"):
        draw_scene("streets", np.random.default_rng(0), things=("car",))
    with pytest.raises(ValueError, match="square"):
        draw_scene("objects", np.random.default_rng(0), (32, 64))


def test_the_sky_is_above_the_road():
    rows = np.arange(48)[:, None] + np.zeros(96)
    for scene in streets():
        sky, road = scene.mask == ID["sky"], scene.mask == ID["road"]
        if sky.any():
            assert rows[sky].max() < 0.55 * 48  # the horizon
        assert rows[road].min() > 0.38 * 48
        widths = road.sum(1)[np.flatnonzero(road.any(1))]
        assert widths[: len(widths) // 4].mean() < widths[len(widths) // 2 :].mean() or road.mean() < 0.1


@pytest.mark.parametrize(
    ("draw", "given"),
    [
        (traffic.car, (True, "sedan", (90, 90, 90))),
        (traffic.bus, (False, (90, 90, 90), (200, 0, 0))),
        (traffic.ridden, (True, False)),
        (roadside.person, ()),
        (roadside.signals, (0.0, 1)),
    ],
)
def test_sizes_grow_towards_the_viewer(draw, given):
    areas, feet = [], []
    for z in (48.0, 24.0, 12.0, 6.0):
        image = camera((120, 240))
        draw(image, 1.5, z, *given)
        drawn = np.asarray(image.ids) != UNLABELED
        areas.append(drawn.sum())
        feet.append(np.flatnonzero(drawn.any(1)).max())
    assert all(a < b for a, b in itertools.pairwise(areas))
    assert all(a < b for a, b in itertools.pairwise(feet))


def test_points_are_projected_and_cut_at_the_near_plane():
    view = camera()
    near, far = (np.array(view.project(1.0, 0.0, z)) for z in (5.0, 10.0))
    vanishing = np.array([view.center, view.horizon])
    assert np.allclose(near - vanishing, 2 * (far - vanishing))
    face = view.outline([(0, 0, -5), (0, 0, 5), (1, 0, 5), (1, 0, -5)])
    assert len(face) == 4
    for x in (0.0, 1.0):
        assert np.abs(np.array(face) - view.project(x, 0.0, NEAR)).max(1).min() < 1e-6
    assert view.outline([(0, 0, 0), (1, 0, 0), (1, 1, 0)]) == []


def test_recoloring_stays_within_its_thing(monkeypatch):
    """What is painted without a class of its own lies on one class only, so that masks are exact."""
    strays, count = 0, 0

    class Watched(Camera):
        def face(self, points, color, label=None, shines=False):
            nonlocal strays, count
            before = np.asarray(self.image).copy() if label is None else None
            super().face(points, color, label, shines)
            if label is None:
                changed = (np.asarray(self.image) != before).any(-1)
                ids = np.asarray(self.ids)[changed]
                count += len(ids)
                strays += len(ids) - (np.bincount(ids).max() if len(ids) else 0)

    monkeypatch.setattr("attn2mask.builders.drawn.streetscape.Camera", Watched)
    for index in range(4):
        street(index, (24, 48))
    assert count > 1000
    assert strays < 0.01 * count  # but for canvas pixels that polygons share along an edge


def test_a_nearer_thing_hides_a_farther_one():
    view = camera()
    view.face([(-1, 0, 9), (1, 0, 9), (1, 3, 9), (-1, 3, 9)], (9, 9, 9), "wall")
    view.sprite(lambda pen: pen.rectangle(0, 0, 1, 1, (200, 0, 0)), 0.0, 5.0, 0.5, 1.0, "person")
    image, mask = view.develop()
    u, v = (k / SUPERSAMPLE for k in view.project(0.0, 0.5, 5.0))
    assert mask[int(v), int(u)] == ID["person"]
    assert ID["wall"] in mask
    red = mask == ID["person"]
    assert image[red][:, 0].mean() > 100 > image[red][:, 1].mean()


def test_streets_are_written_as_rows_of_cityscapes(tmp_path):
    run(DrawConfig("streets", str(tmp_path / "rows"), num_images=3, size=32))
    opened = open_rows(str(tmp_path / "rows"), False, False)
    assert tuple(opened.table.names) == CITYSCAPES
    first = opened.rows[0]
    image, mask = (decode_png(first[name]["bytes"]) for name in ("image", "mask"))
    assert image.shape == (32, 64, 3)
    assert np.array_equal(mask, draw_scene("streets", np.random.default_rng([HELD_OUT, 0]), (32, 64)).mask)
    made = next(iter(draw_rows("streets", 1, HELD_OUT, (32, 64))))
    assert set(made["classes"]) == {int(k) for k in np.unique(mask) if k < 19}
    assert made["words"] == [CITYSCAPES[k] for k in made["classes"]]
    named = {o.class_index for o in find_occurrences(opened.table, made["caption"])}
    assert named
    assert named <= set(made["classes"])


def test_the_stored_options_draw_the_same_rows_again(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    run(DrawConfig("streets", str(first), num_images=2, size=32))
    stored = parse(DrawConfig, ["--config", str(first / "draw.yaml"), "--out", str(again)], "draw", "")
    assert stored == DrawConfig("streets", str(again), 2, HELD_OUT, 32, 64)
    run(stored)
    files = ["data/train-00000.parquet", "draw.json", "draw.yaml", "id2label.json", "manifest/00000.json"]
    found = [file.relative_to(again) for file in sorted(again.rglob("[!.]*")) if file.is_file()]
    assert [file.as_posix() for file in found] == files
    for file in files:
        assert (again / file).read_bytes() == (first / file).read_bytes()
    with pytest.raises(UserError, match="--num-images 2, which can only grow"):
        run(replace(stored, num_images=1))
    with pytest.raises(UserError, match=r"seed \(there 77000000, now 3\)"):
        run(replace(stored, seed=3))
    with pytest.raises(UserError, match=r"is not empty, and holds no draw\.json"):
        run(replace(stored, out=str(again / "data")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world": "moon"}, "choose one of objects, variety, shifted, streets"),
        ({"world": "objects", "size": 32, "width": 64}, "scenes of objects are square"),
        ({"world": "streets", "size": 31}, "--size 31: it must be at least 32"),
        ({"world": "objects", "num_images": 0}, "--num-images 0"),
        ({"world": "objects", "seed": -1}, "--seed -1"),
    ],
)
def test_options_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DrawConfig(**options)
