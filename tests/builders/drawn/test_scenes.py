"""The drawn worlds: exact masks, every class there in two kinds or more, and colors that do not tell the
class.
"""

import numpy as np
import pytest

from attn2mask.builders.drawn.canvas import PALETTE, SUPERSAMPLE, Pen, Style, smooth
from attn2mask.builders.drawn.kinds import KINDS, kinds_of
from attn2mask.builders.drawn.scenes import VOC_THINGS, WORLDS, draw_scene, shown_in
from attn2mask.builders.drawn.street import BACKDROPS, GROUNDS, draw_backdrop, draw_ground
from attn2mask.builders.table_reader import load_table
from attn2mask.training.miou import confusion_matrix, mean_iou


def pen(rng: np.random.Generator, side: int = 96, style: Style | None = None) -> Pen:
    transform = np.array([[side * 0.8, 0, side * 0.1], [0, side * 0.8, side * 0.1]])
    return Pen((side, side), transform, style or Style(), rng)


@pytest.mark.parametrize("thing", VOC_THINGS)
def test_every_class_has_two_kinds_or_more(thing):
    for world in ("objects", "shifted", "variety"):
        assert sum(shown_in(world, kind) for kind in kinds_of(thing)) >= 2


def test_the_words_of_cityscapes_can_be_shown():
    for label in load_table("cityscapes").classes:
        voc = {"car": "car", "bus": "bus", "train": "train", "motorcycle": "motorbike", "bicycle": "bicycle"}
        name = voc.get(label.name, label.name)
        assert kinds_of(name) or name in GROUNDS, label.name


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.thing}-{k.draw.__name__}")
def test_kinds_fill_their_box(kind):
    side = 240
    for seed in range(3):
        long = side * 0.8
        w, h = (long, long / kind.aspect) if kind.aspect >= 1 else (long * kind.aspect, long)
        transform = np.array([[w, 0, (side - w) / 2], [0, h, (side - h) / 2]])
        drawn = Pen((side, side), transform, Style(), np.random.default_rng(seed))
        kind.draw(drawn)
        covered = drawn.finish()[1]
        ys, xs = np.nonzero(covered)
        assert max(np.ptp(xs), np.ptp(ys)) > 0.75 * long
        assert covered.mean() > 0.01


def test_scenes_are_functions_of_their_seed():
    for world in WORLDS:
        one, two = (draw_scene(world, np.random.default_rng([3, 1])) for _ in range(2))
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(one.mask, two.mask)
        assert [t.kind for t in one.things] == [t.kind for t in two.things]
        assert not np.array_equal(one.image, draw_scene(world, np.random.default_rng([3, 2])).image)


def test_a_scene_holds_what_it_says():
    for index in range(40):
        scene = draw_scene("objects", np.random.default_rng([5, index]))
        assert scene.image.shape == (128, 128, 3)
        assert 1 <= len(scene.things) <= 3
        shown = {VOC_THINGS[k - 1] for k in np.unique(scene.mask) if k}
        said = {thing.kind.thing for thing in scene.things}
        assert shown <= said
        assert shown, "nothing is seen"
        assert all(thing.color in PALETTE for thing in scene.things)


def test_things_can_be_chosen():
    scene = draw_scene("objects", np.random.default_rng(0), things=("cow", "bus"))
    assert {t.kind.thing for t in scene.things} == {"cow", "bus"}
    with pytest.raises(ValueError, match="no drawn world"):
        draw_scene("moon", np.random.default_rng(0))


def test_the_mask_is_where_the_thing_was_drawn():
    """Coverage is what was drawn; drawing atop adds nothing to it."""
    rng = np.random.default_rng(8)
    drawn = pen(rng)
    drawn.rectangle(0.2, 0.2, 0.8, 0.8, (200, 10, 10))
    with drawn.atop():
        drawn.rectangle(0.0, 0.0, 1.0, 0.5, (10, 200, 10))
    covered = drawn.finish()[1]
    inside = np.zeros_like(covered)
    low, high = int(96 * 0.26), int(96 * 0.74)
    inside[low:high, low:high] = True
    assert (covered == inside).mean() > 0.98  # but for a pixel along the edges


def test_smooth_passes_through_its_points():
    points = [(0.0, 0.0), (1.0, 0.2), (0.6, 1.0)]
    for closed in (True, False):
        curve = smooth(points, closed)
        for point in points:
            assert np.abs(curve - point).sum(1).min() < 1e-9


@pytest.mark.parametrize("name", GROUNDS)
def test_grounds_are_images(name):
    image = draw_ground(name, (40, 24), Style(), np.random.default_rng(1))
    assert image.shape == (24, 40, 3)
    assert image.std() > 1


@pytest.mark.parametrize("name", sorted(BACKDROPS))
def test_backdrops_say_where_the_ground_begins(name):
    image, horizon = draw_backdrop(name, (40, 24), Style(), np.random.default_rng(1))
    assert image.shape == (24, 40, 3)
    assert 0.2 < horizon < 0.9


def test_color_alone_does_not_tell_the_class():
    """A classifier that sees each pixel's color and nothing else stays below 0.25 mIoU."""
    assert SUPERSAMPLE >= 2

    def scenes(first: int, count: int):
        for index in range(first, first + count):
            scene = draw_scene("objects", np.random.default_rng([11, index]))
            bins = (scene.image >> 4).astype(np.int64)
            yield bins[..., 0] * 256 + bins[..., 1] * 16 + bins[..., 2], scene.mask

    counts = np.ones((4096, 21))
    for color, mask in scenes(0, 400):
        np.add.at(counts, (color.ravel(), mask.ravel()), 1)
    for weights in (
        np.ones(21),
        1 / counts.sum(0),
    ):  # the likeliest class, and the same with all classes alike
        best = (counts * weights).argmax(1)
        matrix = sum(confusion_matrix(best[color], mask, 21) for color, mask in scenes(5000, 100))
        assert mean_iou(matrix) < 0.25
