"""Charts of an evaluation."""

import numpy as np
from PIL import Image

from attn2mask.builders.table_reader import load_table
from attn2mask.training.charts import SheetRow, best_and_worst_classes, iou_chart, prediction_sheet


def test_of_many_classes_the_best_and_the_worst_are_drawn(tmp_path):
    ious = {f"class {i}": None if i % 10 == 0 else i / 100 for i in range(100)}
    shown = best_and_worst_classes(ious, 6)
    assert [name for name, _ in shown] == [f"class {i}" for i in (99, 98, 97, 3, 2, 1)]
    found = {"mean_iou": 0.5, "per_class_iou": ious | {"$\\frac$": 0.5}, "num_images": 3}
    iou_chart(found, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").height > 1000
    nothing = {"mean_iou": None, "per_class_iou": {"a": None}, "num_images": 0}
    iou_chart(nothing, tmp_path / "chart.png")


def test_a_tall_image_makes_no_tall_sheet(tmp_path):
    ids = np.zeros((20_000, 1), np.int32)
    row = SheetRow("a", np.zeros((20_000, 1, 3), np.uint8), ids, ids)
    prediction_sheet([row], load_table("voc"), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height < 2 * sheet.width
