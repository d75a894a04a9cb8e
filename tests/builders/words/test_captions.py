"""Captions: four kinds of sources, and what happens with bad ones."""

import json
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import DATA

from attn2mask.builders.errors import UserError
from attn2mask.builders.words.captions import Caption, read_captions


def test_jsonl(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    lines = [
        '{"id": 7, "caption": " A dog. "}\n\n',
        '{"text": "Two\\u2028cats"}\r\n',
        '{"id": "x", "caption": "Ein Mühlrad"}\n',
    ]
    path.write_bytes("".join(lines).encode())
    captions, warnings = read_captions(str(path))
    assert captions == [
        Caption(" A dog. ", "7"),  # verbatim
        Caption("Two\u2028cats", "a.jsonl:3"),
        Caption("Ein Mühlrad", "x"),
    ]
    assert warnings == []


def test_text(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffA dog\r\n\n  \nZwei Hunde, ein Stück\u2028Kuchen".encode())
    captions, warnings = read_captions(str(path))
    assert captions == [Caption("A dog", "a.txt:1"), Caption("Zwei Hunde, ein Stück\u2028Kuchen", "a.txt:4")]
    assert warnings == []


def test_coco(tmp_path: Path):
    path = tmp_path / "captions_val2017.json"
    rows = [{"image_id": 1, "id": 38, "caption": "A bicycle."}, {"id": 39}, {"id": 40, "caption": "A boat."}]
    path.write_text(json.dumps({"info": {}, "annotations": rows}))
    captions, warnings = read_captions(str(path))
    assert captions == [Caption("A bicycle.", "38"), Caption("A boat.", "40")]
    assert warnings == [f"captions {path}: skipped 1 broken annotations: 2 (no key caption or text, but id)"]


def test_broken_lines_are_counted_and_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    broken = ["{", "[1]", "null", '{"caption": 3}', '{"caption": " "}', '{"title": "a dog"}', "[" * 100_000]
    path.write_text("\n".join(['{"caption": "a dog"}', *broken, '{"caption": "a cat"}']))
    captions, warnings = read_captions(str(path))
    assert [caption.text for caption in captions] == ["a dog", "a cat"]
    assert warnings == [
        f"captions {path}: skipped 7 broken lines: 2, 3, 4, 5, 6, 7, 8 (the value of caption is no text)"
    ]
    path.write_text("\n".join(['{"caption": "a dog"}'] + ["{"] * 30))
    assert read_captions(str(path))[1][0].endswith(
        "skipped 30 broken lines: " + ", ".join(map(str, range(2, 22))) + ", ..."
    )


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"caption": "a"}\n{"caption": "\xff"}', "line 2 is not UTF-8"),
        ("a.txt", "A dog".encode("utf-16"), "line 1 is not UTF-8"),
        ("a.txt", b"\n \n", "hold no caption (0 broken lines)"),
        ("a.jsonl", b"{\n{", "hold no caption (2 broken lines)"),
        ("a.json", b'{"annotations": [', "is not valid JSON: line 1"),
        ("a.json", b"[1]", "COCO's captions JSON has a list named annotations"),
        ("a.json", b'{"annotations": 3}', "COCO's captions JSON has a list named annotations"),
        ("a.json", b'{"annotations": []}', "hold no caption"),
        ("a.jsonl", b'{"TEXT": "a dog", "id": 3}', "(1 broken lines): no key caption or text, but TEXT, id"),
        ("a.jsonl", b'{"caption": ["a dog"]}', "(1 broken lines): the value of caption is no text"),
        ("a.csv", b"A dog", "give a .jsonl, .txt or COCO .json file"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: bytes, complaint: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_captions(str(tmp_path / name))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "b.jsonl", "B.JSONL"])
def test_every_line_end_and_endings_in_any_case(tmp_path: Path, name: str, end: str):
    texts = ["a dog", "a cat\u2028and a bus"]
    lines = [
        json.dumps({"text": text}, ensure_ascii=False) if "json" in name.lower() else text for text in texts
    ]
    (tmp_path / name).write_bytes(end.join(lines).encode())
    captions, warnings = read_captions(str(tmp_path / name))
    assert ([caption.text for caption in captions], warnings) == (texts, [])


def test_what_broken_lines_lack_is_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a dog"}\n{"prompt": "a cat"}\n')
    _, warnings = read_captions(str(path))
    assert warnings == [f"captions {path}: skipped 1 broken lines: 2 (no key caption or text, but prompt)"]


def test_the_prefix_of_flickr_is_no_caption(tmp_path: Path):
    path = tmp_path / "Flickr8k.token.txt"
    path.write_text("100_a.jpg#0\tA dog .\n100_a.jpg#1\tA dog#1\ton a bus .\n")
    captions, _ = read_captions(str(path))
    assert [caption.text for caption in captions] == ["A dog .", "A dog#1\ton a bus ."]


def test_no_such_file(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_captions("data/missing.jsonl")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_captions(str(tmp_path / "folder.txt"))
    with pytest.raises(UserError, match="give a"):
        read_captions("missing")


def test_a_hub_dataset(monkeypatch: pytest.MonkeyPatch):
    rows = datasets.Dataset.from_dict({"text": ["a dog", None, "a cat"], "label": [0, 1, 2]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"train": rows}))
    captions, warnings = read_captions("org/captions")
    assert captions == [Caption("a dog", "org/captions:0"), Caption("a cat", "org/captions:2")]
    assert warnings == ["captions org/captions: skipped 1 broken rows: 1 (the value of text is no text)"]

    wrong = datasets.DatasetDict({"test": rows.remove_columns("text")})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: wrong)
    with pytest.raises(UserError, match="has no column caption or text, but label"):
        read_captions("org/captions")

    def fail(name: str):
        raise ConnectionError("the Hub is away\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"cannot be read as a Hub dataset: the Hub is away$"):
        read_captions("org/captions")


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_jsonl_keeps_any_text_verbatim(tmp_path: Path, texts: list[str]):
    path = tmp_path / "any.jsonl"
    path.write_text("\n".join(json.dumps({"caption": text}) for text in texts))
    captions, warnings = read_captions(str(path))
    assert [caption.text for caption in captions] == texts
    assert warnings == []


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the COCO captions in ../shared/data")
def test_coco_captions():
    captions, warnings = read_captions(str(DATA / "coco_captions.jsonl"))
    assert len(captions) == 20_010
    assert warnings == []
    assert captions[0] == Caption("Bedroom scene with a bookcase, blue comforter and window.", "301804")
