"""Charts of an evaluation."""

from PIL import Image

from attn2mask.training.charts import best_and_worst_classes, iou_chart


def test_of_many_classes_the_best_and_the_worst_are_drawn(tmp_path):
    ious = {f"class {i}": None if i % 10 == 0 else i / 100 for i in range(100)}
    shown = best_and_worst_classes(ious, 6)
    assert [name for name, _ in shown] == [f"class {i}" for i in (99, 98, 97, 3, 2, 1)]
    found = {"mean_iou": 0.5, "per_class_iou": ious | {"$\\frac$": 0.5}, "num_images": 3}
    iou_chart(found, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").height > 1000
    nothing = {"mean_iou": None, "per_class_iou": {"a": None}, "num_images": 0}
    iou_chart(nothing, tmp_path / "chart.png")
