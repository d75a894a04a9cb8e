"""What is counted over the rows of a build, and the chart of it."""

import numpy as np
import pytest

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cards.statistics import (
    CHART_CLASSES,
    RowStatistics,
    class_chart,
    count_rows,
    quantile,
    sampled_rows,
    tensor_shapes,
)


def test_statistics_count_what_is_there():
    found = RowStatistics(("background", "a", "b"))
    mask = np.array([[0, 1], [1, 2]], np.uint8)
    found.add([1, 2], mask, np.array([[255, 255], [0, 0]], np.uint8))
    found.add([2], np.array([[2, 2, 2, 255]], np.uint8), np.full((1, 4), 255, np.uint8))
    assert found.rows == 2
    assert found.class_rows.tolist() == [0, 1, 2]
    assert found.class_pixels.tolist() == [1, 2, 4]
    assert (found.mean_area(1), found.mean_area(2)) == (0.5, 0.5)
    assert (found.reliable(0), found.reliable(1), found.reliable(2)) == (1, 0.5, 0.75)
    assert found.shared_rows.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    assert found.companion(1) == (2, 1)
    assert (found.mean_area(0), found.companion(0)) == (None, None)
    assert found.reliability / found.pixels == 0.75
    assert dict(found.classes_per_row) == {2: 1, 1: 1}
    assert set(found.sizes) == {(2, 2), (4, 1)}
    assert quantile(found.area_histogram[1:2], 0.5).tolist() == [50.5]


@pytest.mark.parametrize("classes", [1, 2, 45])
def test_the_chart_is_drawn_for_any_number_of_classes(classes):
    found = RowStatistics(tuple(f"${k}" for k in range(classes + 1)))
    for k in range(1, classes + 1):
        found.add([k, 1], np.full((4, 4), k, np.uint8), np.full((4, 4), 255, np.uint8))
    page = class_chart(found)
    assert len(page.axes) == 4
    assert len(page.axes[0].patches) == min(classes, CHART_CLASSES)


def test_masks_of_16_bits_are_counted():
    found = RowStatistics(tuple(f"n{k}" for k in range(300)))
    found.add([299], np.array([[299, 65535]], np.uint16), np.array([[255, 0]], np.uint8))
    assert (found.class_pixels[299], found.reliable(299)) == (1, 1)


def test_samples_are_spread_over_the_files(make_build, tmp_path):
    files = sorted((make_build(tmp_path / "voc", rows=6) / "data").glob("*.parquet"))
    assert [row["sample_id"][-1] for row in sampled_rows(files, 3)] == ["1", "3", "5"]
    assert len(sampled_rows(files, 50)) == 6
    assert count_rows(files, load_table("voc")).rows == 6


def test_shapes_of_weights(tiny_lora, tmp_path):
    assert {len(shape) for shape in tensor_shapes(next(tiny_lora.glob("*.safetensors"))).values()} == {2}
    assert tensor_shapes(tmp_path / "gone.safetensors") == {}
    (tmp_path / "damaged.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged\.safetensors cannot be read"):
        tensor_shapes(tmp_path / "damaged.safetensors")
