"""The grid of rows: its filters against the rows themselves, and its tiles."""

import numpy as np
import pytest

from attn2mask.builders.images import decode_png, overlay
from attn2mask.builders.shards import BuildDirectory
from attn2mask.hub.preview.grid import Filters, Rows, grid_page, notes_of, share_of
from attn2mask.hub.preview.rows import read_row


@pytest.fixture(scope="module")
def rows(data) -> Rows:
    return Rows(data)


@pytest.fixture(scope="module")
def stored(data) -> list[dict]:
    return [read_row(data, k) for k in range(5)]


def test_without_filters_all_rows_are_there(rows):
    assert rows.numbers == rows.matching(Filters()) == [0, 1, 2, 3, 4]


def test_rows_are_filtered_by_class(rows, stored):
    present = {k for row in stored for k in row["classes"]}
    for mask_id in range(1, 21):
        wanted = [n for n, row in enumerate(stored) if mask_id in row["classes"]]
        assert rows.matching(Filters(mask_id=mask_id)) == wanted
        assert bool(wanted) == (mask_id in present)


def test_rows_are_filtered_by_reliability(rows, stored):
    shares = [decode_png(row["reliability"]["bytes"]).mean() / 255 for row in stored]
    assert len(set(shares)) == 5
    middle = sorted(shares)[2]
    assert rows.matching(Filters(at_least=middle)) == [k for k in range(5) if shares[k] >= middle]
    assert rows.matching(Filters(at_most=middle)) == [k for k in range(5) if shares[k] <= middle]
    assert rows.matching(Filters(at_least=middle, at_most=middle)) == [shares.index(middle)]


def test_rows_are_filtered_by_rejection(rows):
    """The second row of the build was painted again."""
    assert rows.matching(Filters(rejection="painted again")) == [1]
    assert rows.matching(Filters(rejection="none")) == [0, 2, 3, 4]
    assert rows.matching(Filters(rejection="dropped")) == []
    rows = Rows(rows.directory)
    rows.dropped = {"voc-0-00000003": ["cat: it has no pixel"], "voc-0-00000001": ["cat: no", "dog: no"]}
    assert rows.matching(Filters(rejection="dropped")) == [1, 3]
    assert rows.matching(Filters(rejection="none")) == [0, 2, 4]
    assert notes_of(rows) == {
        "voc-0-00000001": "1 rejected before, 2 dropped",
        "voc-0-00000003": "1 dropped",
    }


def test_filters_are_combined(rows, stored):
    mask_id = stored[1]["classes"][0]
    assert rows.matching(Filters(mask_id=mask_id, rejection="painted again")) == [1]
    other = next(k for k in range(1, 21) if k not in stored[1]["classes"])
    assert rows.matching(Filters(mask_id=other, rejection="painted again")) == []


def test_progress_counts_the_rows_and_each_column_is_read_once(data):
    rows, seen = Rows(data), []
    rows.matching(Filters(at_most=0.5), lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    rows.matching(Filters(at_least=0.5), lambda done, total: seen.append((done, total)))
    assert len(seen) == 3


def test_rows_of_missing_shards_are_left_out(make_build, tmp_path):
    """Also in a build that is not complete, whose rejections are in its manifests."""
    path = make_build(tmp_path / "voc", rows=5)
    (path / "data" / "train-00001.parquet").unlink()
    (path / "report.json").unlink()
    rows = Rows(BuildDirectory(path))
    assert rows.numbers == [0, 1, 4]
    assert rows.matching(Filters(rejection="painted again")) == [1]


def test_tiles_show_image_mask_and_facts(data, stored, images_in):
    html = grid_page({3: stored[3]}, data.table, {stored[3]["sample_id"]: "1 dropped"})
    image, mask = (decode_png(stored[3][name]["bytes"]) for name in ("image", "mask"))
    shown = images_in(html)
    np.testing.assert_array_equal(shown["image"], image)
    np.testing.assert_array_equal(shown["mask"], overlay(image, mask, data.table))
    share = share_of(stored[3]["reliability"]["bytes"])
    names = ", ".join(data.table.names[k] for k in stored[3]["classes"])
    assert f"row 3 \u00b7 {share:.0%} reliable \u00b7 {names}" in html
    assert 'data-row="3"' in html
    assert '<span class="note">1 dropped</span>' in html


def test_the_text_of_a_prompt_stays_text(data, stored):
    assert "<b>" in stored[0]["prompt"]
    html = grid_page({0: stored[0]}, data.table, {})
    assert html.count("<b>") == 1  # the element around the prompt
    assert "a &lt;b&gt;" in html


def test_large_images_are_made_smaller(data, stored, images_in, monkeypatch):
    monkeypatch.setattr("attn2mask.hub.preview.grid.THUMBNAIL", 32)
    shown = images_in(grid_page({0: stored[0]}, data.table, {}))
    assert {image.shape for image in shown.values()} == {(32, 32, 3)}
