"""Pieces of HTML."""

import numpy as np

from attn2mask.builders.classes import ClassTable, LabelClass
from attn2mask.hub.preview.pieces import legend


def test_large_tables_have_masks_of_16_bits():
    classes = tuple(LabelClass(f"thing {k}", (f"thing{k}",), (), (k % 256, k // 256, 7)) for k in range(300))
    table = ClassTable("many", classes, "background")
    ids = np.array([[0, 299], [299, 65535]], np.uint16)
    text = legend(ids, table, {})
    assert "thing 298 <span>50.0%" in text
    assert "ignored <span>25.0%" in text
