"""The legend of a class table: the color of every class is on it, beside its id and name."""

from dataclasses import replace

import numpy as np
import pytest

from attn2mask.builders.table_reader import bare_table, load_table
from attn2mask.hub.cards.legend import ENTRY, GAP, SQUARE, legend


@pytest.mark.parametrize(("name", "columns"), [("voc", 2), ("cityscapes", 2), ("imagenet_s_919", 4)])
def test_every_class_has_a_square_of_its_color(name, columns):
    table = load_table(name)
    page = legend(table)
    pixels, entries = np.asarray(page), -(-len(table.names) // columns)
    assert pixels.shape[:2] == (entries * ENTRY + GAP, page.width)
    for number, color in enumerate(table.palette):
        left = number // entries * (page.width // columns) + GAP
        top = number % entries * ENTRY + GAP
        assert (pixels[top + SQUARE // 2, left + SQUARE // 2] == color).all(), table.names[number]
        beside = pixels[top : top + ENTRY - GAP, left + SQUARE + GAP : left + 60]
        assert (beside < 128).any()  # the id and the name


def test_names_of_any_text_are_drawn():
    names = ("background", "a\nb\x1b[31m", "long " * 50, "猫")
    page = legend(bare_table("mine", names))
    assert page.width < 300
    table = load_table("voc")
    plain = replace(table, classes=table.classes[:3])
    assert np.asarray(legend(plain)).shape[0] == 4 * ENTRY + GAP
