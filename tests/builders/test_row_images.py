"""Images in rows: only files of the dataset itself are opened, however a row names them."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from attn2mask.builders.errors import UserError
from attn2mask.builders.images import UnreadableError, read_image
from attn2mask.builders.row_images import encoded_columns, image_content
from attn2mask.builders.row_reader import load_rows


def png(value: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (64, 64), (value,) * 3 if mode == "RGB" else value).save(buffer, "PNG")
    return buffer.getvalue()


def path_of(file: Path) -> dict:
    return {"bytes": None, "path": str(file)}


@pytest.fixture
def outside(tmp_path) -> Path:
    """An image that is not in the dataset's folder."""
    file = tmp_path / "secret.png"
    file.write_bytes(png(7))
    return file


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_the_content_of_a_row_comes_first(data, outside):
    assert image_content({"bytes": b"abc", "path": str(outside)}, "a", data) == b"abc"
    assert image_content({"bytes": b"abc", "path": None}, "a", data) == b"abc"
    for value in (None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}):
        assert image_content(value, "a", data) == b""


def test_files_of_the_dataset_are_read(data, monkeypatch):
    (data / "inner").mkdir()
    (data / "inner" / "a.png").write_bytes(b"abc")
    (data / "link.png").symlink_to(data / "inner" / "a.png")
    linked = data.with_name("linked")
    linked.symlink_to(data)
    for file in (data / "inner" / "a.png", data / "inner" / ".." / "link.png", linked / "link.png"):
        for folder in (data, linked):
            assert image_content(path_of(file), "a", folder) == b"abc"
    monkeypatch.chdir(data.parent)
    assert image_content(path_of(Path("data/inner/a.png")), "a", "data") == b"abc"


def test_files_elsewhere_are_not_opened(data, outside, monkeypatch):
    """Neither by their own path, nor by `..`, links, addresses or archives."""
    (data / "file.png").symlink_to(outside)
    (data / "folder").symlink_to(outside.parent)
    beside = data.with_name("data-2")
    beside.mkdir()
    (beside / "a.png").write_bytes(b"abc")
    files = [
        outside,
        data / ".." / outside.name,
        data / "file.png",
        data / "folder" / outside.name,
        beside / "a.png",
        Path("/etc/passwd"),
    ]
    paths = [*map(str, files), "http://127.0.0.1/a.png", "zip://a.png::b.zip", f"file://{data}/a.png"]
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was opened"))
    for path in paths:
        with pytest.raises(UserError) as error:
            image_content({"bytes": None, "path": path}, "row x: its image", data)
        assert not isinstance(error.value, UnreadableError)
        assert str(error.value).startswith(f"row x: its image is only a path, {path!r}, which is not in the")
    with pytest.raises(UserError, match="leave out --streaming"):
        image_content({"bytes": None, "path": "hf://datasets/a/b/c.png"}, "a", "a/b")


def test_a_missing_file_of_the_dataset_is_named(data):
    with pytest.raises(UnreadableError, match=r"^a cannot be read: there is no file .*none\.png"):
        image_content(path_of(data / "none.png"), "a", data)
    with pytest.raises(UnreadableError, match="there is no file"):
        image_content(path_of(data), "a", data)


def test_the_caches_of_downloads_are_read(tmp_path, monkeypatch):
    """A dataset in the Hub's cache consists of links into a folder of contents."""
    cache = tmp_path / "hub"
    blob = cache / "datasets--me--mine" / "blobs" / "0123"
    link = cache / "datasets--me--mine" / "snapshots" / "main" / "a.png"
    for file in (blob, link):
        file.parent.mkdir(parents=True)
    blob.write_bytes(b"abc")
    link.symlink_to(os.path.relpath(blob, link.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert image_content(path_of(link), "a", "me/mine") == b"abc"
    assert image_content(path_of(link), "a", link.parent) == b"abc"
    with pytest.raises(UserError, match="is not opened"):
        image_content(path_of(link), "a", "me/other")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / "a.png").write_bytes(b"abc")
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", downloads)
    assert image_content(path_of(downloads / "a.png"), "a", "me/mine") == b"abc"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_images_is_read(data, streaming):
    """`datasets` reads such folders as rows of paths."""
    for name, value in (("a", 1), ("b", 2)):
        (data / f"{name}.png").write_bytes(png(value))
    (data / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "b.png"}\n')
    rows = encoded_columns(load_rows(str(data), "train", streaming), ("image",), "x")
    contents = [image_content(row["image"], "a", str(data)) for row in rows]
    assert [int(read_image(content, "a").max()) for content in contents] == [1, 2]


def test_columns_of_other_types_are_refused():
    values = {"image": ["a.png"], "number": [1], "scores": [[0.5]], "content": [png(3)]}
    rows = Dataset.from_dict(values)
    for name, kind in (("image", "string"), ("number", "int64"), ("scores", "List")):
        with pytest.raises(UserError, match=rf"^x: the column {name} of its rows holds {kind}, not images$"):
            encoded_columns(rows, (name,), "x")
    rows = encoded_columns(rows.cast_column("content", Value("binary")), ("content",), "x")
    assert rows[0]["content"]["bytes"] == png(3)
    of_two = {"bytes": Value("binary"), "path": Value("string")}
    stored = Dataset.from_list([{"image": {"bytes": png(4), "path": None}}], Features({"image": of_two}))
    assert encoded_columns(stored, ("image",), "x")[0]["image"]["bytes"] == png(4)


# In commands

NAMES = ["background", "cat", "dog"]
FEATURES = Features(
    {"image": ImageFeature(), "mask": ImageFeature(), "classes": List(ClassLabel(names=NAMES))}
)


def write_rows(data: Path, rows: list[dict], features: Features = FEATURES) -> str:
    rows = [{"classes": [], **row} for row in rows]
    table = Dataset.from_list(rows, features).data.table  # `to_parquet` would store the files themselves
    pyarrow.parquet.write_table(table, data / "train.parquet")
    return str(data)


def whole(count: int) -> list[dict]:
    return [{"image": {"bytes": png(k), "path": None}, "mask": mask()} for k in range(count)]


def mask(value: int = 1) -> dict:
    return {"bytes": png(value, "L"), "path": None}


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize("streaming", [False, True])
def test_training_opens_no_file_elsewhere(data, tmp_path, column, streaming):
    from attn2mask.builders.table_reader import bare_table
    from attn2mask.training.config import TrainConfig
    from attn2mask.training.data import CHECKED_ROWS, CroppedRows, Crops, Source, open_rows

    (tmp_path / "image.png").write_bytes(png(7))
    (tmp_path / "mask.png").write_bytes(png(1, "L"))
    rows = whole(CHECKED_ROWS + 1)
    rows[-1][column] = path_of(tmp_path / f"{column}.png")
    source = write_rows(data, rows)
    opened = open_rows(source, streaming, reliability=False)
    assert opened.table == bare_table("data", tuple(NAMES))
    config = TrainConfig(dataset=source, preset="demo", no_reliability=True, crop_size=32).resolve()
    crops, listed = Crops(config, opened.table, source), list(opened.rows)
    assert crops(listed[0], 0)["pixels"].shape == (3, 32, 32)
    with pytest.raises(
        UserError, match=rf"^row at position 1 of the run: its {column} is only a path, '.*{column}.png'"
    ):
        crops(listed[-1], 1)
    if not streaming:
        with pytest.raises(UserError, match=rf"^row {CHECKED_ROWS}: its {column} is only a path"):
            CroppedRows([Source(opened.rows, crops)])[1, CHECKED_ROWS]


@pytest.mark.parametrize("column", ["image", "mask"])
def test_evaluation_opens_no_file_elsewhere(data, tmp_path, column):
    from attn2mask.builders.table_reader import bare_table
    from attn2mask.training.benchmarks import open_images

    rows = whole(2)
    rows[1][column] = path_of(tmp_path / "a.png")
    examples = open_images(write_rows(data, rows), None, bare_table("data", tuple(NAMES)))
    assert np.array_equal(examples[0].target, np.ones((64, 64)))
    with pytest.raises(UserError, match=rf"/data, row 1: {column} is only a path"):
        examples[1]


def test_adaptation_opens_no_file_elsewhere(data, outside):
    from attn2mask.training.adaptation.images import find_images, images_digest

    images = find_images(write_rows(data, [*whole(4), {"image": path_of(outside), "mask": mask()}]))
    with pytest.raises(UserError, match=r"/data, row 4: its image is only a path, '.*/secret.png'"):
        images_digest(images)


def test_adaptation_skips_rows_without_an_image(data, caplog):
    """Masks are not read. An empty image, none, broken ones, and a missing file of the dataset."""
    from attn2mask.builders.painter import load_painter
    from attn2mask.training.adaptation.images import Crop, encode_images, find_images, images_digest

    broken = [None, {"bytes": b"", "path": None}, {"bytes": b"x", "path": None}, path_of(data / "a.png")]
    rows = [*whole(4), *({"image": value, "mask": {"bytes": b"x", "path": None}} for value in broken)]
    images = find_images(write_rows(data, rows))
    assert images_digest(images) == images_digest(images)
    latents, skipped = encode_images(load_painter().pipe.vae, images, Crop(64, 64, 8))
    assert (len(latents), skipped) == (4, [f"row {k}" for k in range(4, 8)])
    assert "skipped 4 images that cannot be read: row 4, row 5, row 6, row 7 (the first: it is empty)" in (
        caplog.text
    )


def test_columns_and_class_names_that_are_missing(data):
    from attn2mask.training.adaptation.images import find_images
    from attn2mask.training.data import open_rows

    source = write_rows(data, whole(4), Features({**FEATURES, "classes": List(Value("int64"))}))
    with pytest.raises(UserError, match=r"/data: its rows have no column `classes` of List\(ClassLabel\)"):
        open_rows(source, False, reliability=False)
    source = write_rows(
        data, [{"image": 1, "mask": mask()}] * 4, Features({**FEATURES, "image": Value("int64")})
    )
    with pytest.raises(UserError, match=r"/data: the column image of its rows holds int64, not images$"):
        find_images(source)
    source = write_rows(data, whole(4), Features({**FEATURES, "classes": List(ClassLabel(num_classes=0))}))
    with pytest.raises(UserError, match="with the class names"):
        open_rows(source, False, reliability=False)
    source = write_rows(
        data, [{"image": "a.png", "mask": mask()}], Features({**FEATURES, "image": Value("string")})
    )
    with pytest.raises(UserError, match=r"/data: the column image of its rows holds string, not images$"):
        open_rows(source, False, reliability=False)
