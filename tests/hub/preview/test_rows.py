"""Rows as HTML: how they are read, and what other rules make of them."""

from dataclasses import replace

import numpy as np
import pytest

from attn2mask.builders.errors import UserError
from attn2mask.builders.images import decode_png, overlay
from attn2mask.builders.label import label
from attn2mask.builders.options import parse
from attn2mask.builders.remask import RemaskConfig
from attn2mask.builders.rules import load_rules
from attn2mask.builders.sample import features
from attn2mask.builders.seals import sealed
from attn2mask.builders.shards import BuildDirectory, plan
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.preview.rows import chosen_rules, read_row, remask_command, row_page

TABLE, RULES = load_table("voc"), load_rules("embedded")


def test_rows_are_read_one_by_one_from_their_shards(data, drawn_sample):
    for index in range(5):
        row = read_row(data, index)
        assert row["sample_id"] == f"voc-0-{index:08d}"
        assert row["scores"] == drawn_sample(index, TABLE).row["scores"]
    with pytest.raises(UserError, match="has no row 5"):
        read_row(data, 5)


def test_rows_come_out_of_later_row_groups(drawn_sample, tmp_path):
    directory = BuildDirectory(tmp_path)
    record = {"num_images": 40, "identity": {"shard_size": 40}, "table": TABLE.facts(), "versions": {}}
    (tmp_path / "build.json").write_bytes(sealed(record))
    (shard,) = plan(40, 40)
    rows = [drawn_sample(0, TABLE).to_row() | {"seed": k} for k in range(40)]
    directory.write_shard(shard, features(TABLE), rows, {})
    places = [0, 15, 16, 31, 32, 39]
    assert [read_row(directory, k)["seed"] for k in places] == places


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_a_shard_that_is_missing_or_damaged_is_named(make_build, tmp_path, state):
    directory = BuildDirectory(make_build(tmp_path / "voc", rows=3))
    file = tmp_path / "voc" / "data" / "train-00001.parquet"
    if state == "missing":
        (tmp_path / "voc" / "manifest" / "00001.json").unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert read_row(directory, 1)["seed"] == 1
    with pytest.raises(UserError, match=f"row 2: .*train-00001.parquet is {state}"):
        read_row(directory, 2)


def test_a_row_shows_its_own_images_and_text_as_it_stands(data, images_in):
    row = read_row(data, 0)
    html = row_page(row, data, RULES)
    shown = images_in(html)
    image, ids = decode_png(row["image"]["bytes"]), decode_png(row["mask"]["bytes"])
    reliability = decode_png(row["reliability"]["bytes"])
    assert np.array_equal(shown["image"], image)
    assert np.array_equal(shown["mask"], overlay(image, ids, TABLE))
    assert np.array_equal(shown[f"reliability: {reliability.mean() / 255:.0%}"], reliability)
    assert len(shown) == 3 + len(row["classes"])
    assert "<b>" not in html
    assert "&lt;b&gt;<mark" in html  # the class word is marked, and the words around it are text
    for k, word in zip(row["classes"], row["words"], strict=True):
        share = f"{np.mean(ids == k):.1%}"
        assert f"{TABLE.names[k]} <span>{share} as \u201c{word}\u201d, peak 0.250</span>" in html
    assert "changed" not in html
    assert "caption: a thing" in html


@pytest.mark.parametrize(
    "values",
    [
        ("fixed", 0.4, "agreement", False),
        ("agreement", 0.9, "two-threshold", False),
        ("otsu", 0.2, "margin", True),
    ],
)
def test_other_rules_show_what_remask_would_make(data, images_in, values):
    row = read_row(data, 1)
    rules = chosen_rules(RULES, *values)
    threshold, beta, reliability, graded = values
    beta = beta if threshold == "fixed" else RULES.beta
    assert rules == replace(RULES, threshold=threshold, beta=beta, reliability=reliability, graded=graded)
    html = row_page(row, data, rules)
    scores = np.asarray(row["scores"], np.uint8)
    made = label(row["image"]["bytes"], scores, row["peaks"], row["classes"], row["words"], rules, TABLE)
    image, shown = decode_png(row["image"]["bytes"]), images_in(html)
    assert np.array_equal(shown["mask"], overlay(image, decode_png(made.mask), TABLE))
    trust = decode_png(made.reliability)
    assert np.array_equal(shown[f"reliability: {trust.mean() / 255:.0%}"], trust)
    assert 'class="changed"' in html


def test_the_builds_own_rules_change_nothing(data):
    """Not even by way of the widgets, whose numbers are floats."""
    assert chosen_rules(RULES, "otsu", 0.7, "agreement", False) == data.rules == RULES
    assert chosen_rules(RULES) == RULES


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": "fixed"}, "--threshold fixed"),
        ({"threshold": "fixed", "beta": 0.35}, "--threshold fixed --beta 0.35"),
        ({"reliability": "margin", "graded": True}, "--reliability margin --graded true"),
    ],
)
def test_the_command_for_rules_is_one_that_remask_takes(data, changes, said):
    rules = replace(RULES, **changes)
    command = remask_command(data, rules)
    assert command == f"attn2mask remask {data.path} {said}"
    assert parse(RemaskConfig, command.split()[2:], "", "").rules(RULES, "embedded") == rules


def test_a_class_that_the_rules_drop_is_named(data):
    row = read_row(data, 0)
    row["peaks"] = [0.0] * len(row["peaks"])
    html = row_page(row, data, replace(RULES, reliability="margin"))
    assert f"dropped: {row['words'][0]}: its map is empty" in html
    assert "ignored <span>100.0%" in html


def test_a_row_without_classes_is_shown(data):
    row = read_row(data, 0) | {"classes": [], "words": [], "peaks": [], "scores": []}
    assert row_page(row, data, RULES).count("<figure") == 3
    assert row_page(row, data, replace(RULES, threshold="fixed")).count("<figure") == 3
