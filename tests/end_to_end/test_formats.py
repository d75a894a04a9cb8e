"""docs/formats.md lists what is read. Each of its tables is compared with the code that reads."""

import json
import re
from dataclasses import fields

import pytest
from documents import read
from PIL import Image

from attn2mask.builders import images, table_reader, yaml_reader
from attn2mask.builders.classes import CaptionStyle, ClassTable, LabelClass
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import FORMATS, MASK_FORMATS, SUFFIXES, UNSUPPORTED
from attn2mask.builders.mask_ids import ids_of
from attn2mask.builders.words import captions
from attn2mask.hub.preview import guard, predictions
from attn2mask.training import benchmarks, inference, row_columns
from attn2mask.training.adaptation import images as adaptation
from attn2mask.training.data import used_columns
from attn2mask.training.voc_layout import MASK_FOLDERS

PAGE = read("docs/formats.md")


def table(head: str, text: str = PAGE) -> list[list[str]]:
    """The rows of the table whose first title is `head`."""
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if re.match(rf"\| {re.escape(head)}(?: \||\()", line)) + 2
    rows = []
    while start < len(lines) and lines[start].startswith("|"):
        rows.append([cell.strip() for cell in lines[start].strip("|").split(" | ")])
        start += 1
    return rows


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_the_formats_of_images_and_masks():
    rows = table("format")
    assert [row[0] for row in rows] == list(FORMATS)
    assert {row[0] for row in rows if row[3].startswith("yes")} == set(MASK_FORMATS)
    assert all(row[2].startswith("yes") for row in rows)
    endings = [ending for row in rows for ending in code(row[1])]
    assert sorted(endings) == sorted(SUFFIXES)
    known = Image.registered_extensions()
    assert all(known.get(ending, row[0]) == row[0] for row in rows for ending in code(row[1]))
    assert tuple(code(table("left out")[0][0])) == UNSUPPORTED


def test_the_sizes():
    values = [int(row[1].replace(",", "")) for row in table("limit")]
    assert values == [
        images.MOST_PIXELS,
        images.LARGE,
        inference.LONGEST,
        adaptation.MOST_CROPS,
        predictions.LONGEST_SIDE,
        guard.LARGEST_UPLOAD,
        adaptation.FEWEST,
    ]
    assert f"at most {images.LARGE:,} pixels" in PAGE


def test_the_modes_of_masks():
    """Masks of every mode that Pillow makes."""
    modes = {*Image.MODES, "La", "RGBa", "PA"}
    voc, taken = table_reader.load_table("voc"), []
    for mode in modes:
        try:
            ids_of(Image.new(mode, (2, 2)), voc)
        except ValueError:
            continue
        taken.append(mode)
    *rows, last = table("Pillow's mode")
    assert sorted(mode for row in rows for mode in code(row[0])) == sorted(taken)
    assert last == ["all others", "refused"]
    assert PAGE.count("(224, 224, 192)") == 1


def test_the_columns_of_rows():
    rows = {code(row[0])[0]: row for row in table("command")}
    assert list(rows) == ["train", "evaluate", "adapt"]
    assert tuple(code(rows["train"][1])[:3]) == used_columns(row_columns.NAMES, True)
    assert "(not with `--no-reliability`)" in rows["train"][1]
    assert tuple(code(rows["evaluate"][1])) == used_columns(row_columns.NAMES, False)
    assert code(rows["adapt"][1]) == ["image"]
    assert code(rows["adapt"][2]) == [*adaptation.CAPTIONS, "sample_id"]


def test_the_names_of_columns_and_of_the_file_with_class_names():
    names = {code(row[0])[0]: tuple(code(row[1])) for row in table("column")}
    assert names == row_columns.NAMES
    assert table("column", row_columns.__doc__)[1][1] == ", ".join(row_columns.NAMES["mask"])
    assert f"| keys of `{row_columns.LABELS}` |" in PAGE
    assert all(f"`{pattern.removeprefix('*.')}`" in PAGE for pattern in benchmarks.ROW_FILES[1:])


@pytest.mark.parametrize("key", captions._KEYS)
def test_the_sources_of_captions(key, tmp_path):
    sources = [code(row[0])[0] for row in table("source of `build --captions`")]
    assert sources == [".jsonl", ".txt", ".json", "owner/name"]
    contents = [
        json.dumps({key: "a cat"}),
        "100_a.jpg#0\ta cat",
        json.dumps({"annotations": [{key: "a cat"}]}),
    ]
    for ending, content in zip(sources, contents, strict=False):
        file = tmp_path / f"a{ending}"
        file.write_text(content)
        ((caption,), warnings) = captions.read_captions(str(file))
        assert (caption.text, warnings) == ("a cat", [])
    (tmp_path / "a.csv").write_text(f"{key}\na cat\n")
    with pytest.raises(UserError, match=r"give a \.jsonl, \.txt or COCO \.json file, or owner/name"):
        captions.read_captions(str(tmp_path / "a.csv"))
    for row in table("source of `build --captions`"):
        assert row[0] == "`.txt`" or code(row[1])[-2:] == list(captions._KEYS)


def test_the_captions_of_adaptation(tmp_path):
    metadata, beside = table("source of `adapt`")
    assert tuple(code(metadata[0])) == adaptation.METADATA
    assert code(metadata[1]) == [*adaptation.CAPTIONS, "file_name"]
    for number, name in enumerate(code(beside[0])):
        image = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8)).save(image)
        (tmp_path / name.replace("NAME", str(number))).write_text("a cat")
    for number in range(2, 4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    found = adaptation.find_images(str(tmp_path))
    assert [image.caption for image in found] == ["a cat", "a cat", None, None]


def test_the_layouts():
    rows = table("layout")
    assert [row[0] for row in rows] == [row[0] for row in table("layout", benchmarks.__doc__)]
    assert code(rows[0][1]) == ["JPEGImages", *MASK_FOLDERS]


def test_the_keys_and_limits_of_class_tables():
    for head, kind in (("key", ClassTable), ("key of a class", LabelClass)):
        assert [code(row[0])[0] for row in table(head)] == [field.name for field in fields(kind)]
    style = [key for row in table("key of the caption style") for key in code(row[0])]
    assert style == [field.name for field in fields(CaptionStyle)]
    text = PAGE[PAGE.index("## Class tables") :]
    assert tuple(code(text)[:5]) == table_reader.TABLES
    assert f"0 to {table_reader.MOST_NAMED}" in text
    (most, *_), keys = ([int(row[1].replace(",", ""))] for row in table("limit", text))
    assert keys == [yaml_reader.MOST_MERGED]
    classes = [{"name": f"class {k}", "base": [f"class {k}"]} for k in range(most)]
    with pytest.raises(UserError, match=f"classes has {most} entries, more than a 16-bit mask can hold"):
        table_reader.parse_table({"name": "a", "classes": classes}, "a.yaml")
