"""The quality of masks is what counting pixels by hand gives, and drawn scenes are recorded as they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attn2mask.builders.label import Labels
from attn2mask.builders.painter import load_painter
from attn2mask.builders.rules import load_rules
from attn2mask.builders.table_reader import load_table
from attn2mask.training.held_out import held_out_scenes
from attn2mask.training.mask_quality import (
    RecordedImage,
    class_prompt,
    mask_quality,
    prompt_for,
    record_image,
    record_scenes,
    recorded_quality,
)


def labels(coarse: list[list[int]], mask: list[list[int]], reliability: list[list[int]]) -> Labels:
    return Labels(
        mask=np.array(mask, np.int32),
        coarse=np.array(coarse, np.int32),
        reliability=np.array(reliability, np.uint8),
    )


def test_quality_is_that_of_counted_pixels():
    table = load_table("voc")
    # Local labels: 1 is the class of id 8, 2 that of id 3.
    one = labels([[0, 1, 1, 2]], [[0, 1, 2, 2]], [[255, 128, 127, 0]])
    target = np.array([[0, 8, 8, 3]], np.uint8)
    quality = mask_quality([one], [(8, 3)], [target], table)
    assert quality["coarse"] == 1
    assert quality["crf"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)  # background, id 8, id 3
    assert quality["inside"] == 1  # the first two pixels
    assert quality["outside"] == pytest.approx((0 + 1 / 2) / 2)  # id 8 and id 3 in the last two
    assert quality["reliable"] == 0.5


def test_images_add_up_in_one_matrix_and_ignored_pixels_count_nowhere():
    table = load_table("voc")
    one = labels([[1, 1]], [[1, 1]], [[255, 255]])
    two = labels([[0, 1]], [[0, 1]], [[255, 0]])
    targets = [np.array([[1, 255]], np.uint8), np.array([[1, 1]], np.uint8)]
    quality = mask_quality([one, two], [(1,), (1,)], targets, table)
    assert quality["crf"] == pytest.approx((2 / 3 + 0) / 2)  # id 1 in two of three pixels, background in none
    assert quality["reliable"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="longer"):
        mask_quality([one], [(1,), (1,)], targets, table)


def test_nothing_outside_is_none():
    one = labels([[1]], [[1]], [[255]])
    quality = mask_quality([one], [(1,)], [np.array([[1]], np.uint8)], load_table("voc"))
    assert quality == {"coarse": 1, "crf": 1, "inside": 1, "outside": None, "reliable": 1}


def test_prompts_keep_their_words():
    prompt = prompt_for("a red bus next to a horse", load_table("voc"), load_painter())
    assert prompt.text == "a red bus next to a horse"
    assert prompt.words == ("bus", "horse")


def test_drawn_scenes_are_recorded_with_the_classes_that_they_show():
    table, painter = load_table("voc"), load_painter()
    scenes = list(held_out_scenes("objects", 3))
    recorded = list(record_scenes(painter, table, scenes))
    for scene, image in zip(scenes, recorded, strict=True):
        assert np.array_equal(image.image, scene.image)
        shown = {table.id_of(thing.kind.thing) for thing in scene.things}
        assert set(image.classes) == shown
        assert len(image.maps) == len(shown)
        assert image.labels(load_rules("embedded"), table).mask.shape == scene.mask.shape
    again = list(record_scenes(painter, table, scenes))
    rules, targets = load_rules("embedded"), [scene.mask for scene in scenes]
    quality = recorded_quality(recorded, targets, rules, table)
    assert quality == recorded_quality(again, targets, rules, table)
    # Masks of the wrong scenes are worse than those of the right ones.
    shuffled = recorded_quality(recorded, targets[1:] + targets[:1], rules, table)
    assert quality["crf"] > shuffled["crf"]


@pytest.mark.parametrize("kind", ["sd15", "sd2", "sdxl"])
def test_images_are_recorded_with_each_kind_of_painter(tiny_model, kind):
    painter, table = load_painter(str(tiny_model(kind))), load_table("voc")
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    prompt = class_prompt([12, 8], "", table, painter, np.random.default_rng(0))
    recorded = record_image(painter, image, prompt, seed=1)
    assert (recorded.classes, recorded.latent_side) == ((12, 8), 16)
    assert all(torch.isfinite(values).all() for of_class in recorded.maps for values in of_class.values())
    assert len({len(of_class) for of_class in recorded.maps}) == 1
    other = record_image(painter, image, prompt, seed=2)
    assert not torch.equal(*(next(iter(each.maps[0].values())) for each in (recorded, other)))


def test_background_words_are_recorded_and_change_the_labels_of_rules_that_take_them():
    painter, table = load_painter(), load_table("voc")
    (scene,) = held_out_scenes("objects", 1)
    prompt = prompt_for("a dog on the grass by the sea", table, painter)
    recorded = record_image(painter, scene.image, prompt, seed=1)
    assert (len(recorded.maps), len(recorded.background)) == (1, 2)
    alone = record_image(painter, scene.image, replace(prompt, background=(), background_spans=()), seed=1)
    assert alone.background == []
    for size, values in alone.maps[0].items():
        torch.testing.assert_close(recorded.maps[0][size], values, atol=1e-6, rtol=0)
    image = np.zeros((16, 16, 3), np.uint8)
    thing, behind = torch.zeros(2, 4, 4)
    thing[:, 0], thing[:, 1], behind[:, 1] = 0.4, 0.2, 0.4
    rival = RecordedImage(image, (12,), [{(4, 4): thing}], 4, None, [{(4, 4): behind}])
    rules = replace(load_rules("daam-like"), map_fraction_max=1.0)  # from 0.4 of the maximum on
    assert (rival.labels(rules, table).mask[:, :7] == 1).all()
    # The score of the second column is 0.5, and 0.5 * exp(-0.5) with the competition.
    competing = rival.labels(replace(rules, background_words=True), table).mask
    assert (competing[:, :2] == 1).all()
    assert not competing[:, 6:].any()


def test_self_attention_changes_the_labels_of_rules_that_take_it():
    """Each pixel attends to the pixel of the mirrored column, so that the mask is mirrored."""
    table, image = load_table("voc"), np.zeros((16, 16, 3), np.uint8)
    values = torch.zeros(4, 4)
    values[:, 0] = 0.4
    mirror = torch.eye(16).reshape(4, 4, 16).flip(1).reshape(16, 16)
    recorded = RecordedImage(image, (8,), [{(4, 4): values}], 4, {(4, 4): mirror})
    rules = load_rules("daam-like")
    plain = recorded.labels(rules, table).mask
    mirrored = recorded.labels(replace(rules, propagation_power=3), table).mask
    assert (plain[:, 0] == 1).all()
    assert not plain[:, 8:].any()
    assert np.array_equal(mirrored, plain[:, ::-1])
