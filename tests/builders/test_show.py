"""Sheets of rows and of tokens, drawn from rows made here."""

import errno
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attn2mask.builders import show
from attn2mask.builders.images import OPACITY, decode_png, encode_png, heat_map, overlay
from attn2mask.builders.painter import load_painter
from attn2mask.builders.sample import features
from attn2mask.builders.seals import sealed
from attn2mask.builders.shards import BuildDirectory, plan
from attn2mask.builders.show import FRAME, GAP, LINE, TEXT, TILE, save, sheet, token_sheet
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main

TABLE = load_table("voc")


def row(size: tuple[int, int] = (128, 128), classes: tuple[int, ...] = (12, 8), scores: bool = True) -> dict:
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = classes[0] if classes else 255
    columns = {
        "image": {"bytes": encode_png(np.full((*size, 3), 90, np.uint8)), "path": None},
        "mask": {"bytes": encode_png(mask), "path": None},
        "reliability": {"bytes": encode_png(np.full(size, 255, np.uint8)), "path": None},
        "prompt": "a dog and a cat " * 12,
        "caption": "a dog",
        "classes": list(classes),
        "words": ["dog", "very long word of a class " * 3][: len(classes)],
        "seed": 1,
        "sample_id": "voc-0-00000000",
        "peaks": [0.1] * len(classes),
    }
    return {**columns, "scores": [[[0, 255], [128, 7]]] * len(classes)} if scores else columns


def made_directory(path: Path, num_rows: int) -> BuildDirectory:
    """A build of rows in shards of two."""
    directory = BuildDirectory(path)
    path.mkdir()
    record = {"num_images": num_rows, "identity": {"shard_size": 2}, "versions": {}, "table": asdict(TABLE)}
    (path / "build.json").write_bytes(sealed(record))
    for shard in plan(num_rows, 2):
        directory.write_shard(shard, features(TABLE, ["scores"]), [row() for _ in shard.rows], {})
    return directory


@pytest.mark.parametrize("size", [(128, 128), (512, 512), (64, 96)])
def test_a_sheet_has_a_tile_for_all_that_a_row_holds(size):
    with_maps = sheet([row(size), row(size, classes=(3,)), row(size, classes=())], TABLE)
    without = sheet([row(size, scores=False)], TABLE)
    assert with_maps.width > without.width
    assert with_maps.height > 2 * without.height


def test_the_tiles_of_a_sheet_are_what_the_row_holds():
    """At twice the size of the image, every second pixel of a tile is a pixel of what it shows."""
    random = np.random.default_rng(0)
    columns = row()
    image, mask = random.integers(0, 256, (128, 128, 3), np.uint8), random.choice([0, 8, 12, 255], (128, 128))
    reliability = random.integers(0, 256, (128, 128), np.uint8)
    for name, pixels in (("image", image), ("mask", mask.astype(np.uint8)), ("reliability", reliability)):
        columns[name] = {"bytes": encode_png(pixels), "path": None}
    page = np.asarray(sheet([columns], TABLE))

    def tile(column: int) -> np.ndarray:
        left, top = GAP + FRAME + column * (TILE + 2 * FRAME + GAP), LINE + GAP + FRAME
        return page[top : top + TILE : 2, left : left + TILE : 2]

    assert np.array_equal(tile(0), image)
    assert np.array_equal(tile(1), overlay(image, mask, TABLE))
    assert np.array_equal(tile(2), np.repeat(reliability[..., None], 3, axis=2))
    for column, scores in enumerate(columns["scores"], 3):
        assert np.array_equal(tile(column), heat_map(image, np.asarray(scores) / 255))


def test_a_white_reliability_map_has_a_frame():
    page = np.asarray(sheet([row(scores=False)], TABLE))
    left, side = GAP + 2 * (TILE + 2 * FRAME + GAP), TILE + 2 * FRAME
    tile = page[:side, left : left + side]
    assert (tile[FRAME:-FRAME, FRAME:-FRAME] == 255).all()
    for edge in (tile[0], tile[-1], tile[:, 0], tile[:, -1]):
        assert (edge == (192, 192, 192)).all()
    assert (page[:side, left - GAP : left] == 255).all()  # nothing of the frame lies outside of the tile


def test_no_column_is_empty_beside_a_row_of_fewer_classes():
    """The text of a row stands right beside its last tile: its class colors begin there."""
    page = np.asarray(sheet([row(), row(classes=(3,))], TABLE))
    tile, line = TILE + 2 * FRAME + GAP, TILE + 2 * FRAME + LINE + GAP
    assert page.shape[1] == 5 * tile + GAP + TEXT
    for number, tiles in enumerate((5, 4)):
        top = LINE + GAP + number * line
        text = page[top : top + line, tiles * tile + GAP : tiles * tile + GAP + TEXT]
        assert (text != 255).any()
        assert (page[top : top + line, tiles * tile + GAP + TEXT :] == 255).all()
        for column in range(tiles):
            assert (page[top : top + line, column * tile : (column + 1) * tile] != 255).any()


def test_a_sheet_with_class_maps_shows_their_scale():
    """Its bar runs from the color of a score of 0 to that of a score of 1, over grey."""
    head = np.asarray(sheet([row()], TABLE))[: LINE + GAP].astype(int)
    colored = (head.max(axis=2) - head.min(axis=2) > 8).any(axis=0).nonzero()[0]
    grey = np.full((1, 2, 3), 128, np.uint8)
    least, most = heat_map(grey, np.array([[0.0, 1.0]]))[0].astype(int)
    middle = head[GAP + 2]
    first = int((abs(middle - least).max(axis=1) <= 2).nonzero()[0][0])
    assert abs(middle[first + TILE // 2 - 1] - most).max() <= 2
    assert first <= colored[0]
    assert colored[-1] <= first + TILE // 2


@pytest.mark.parametrize("size", [(4096, 8), (8, 4096)])
def test_a_narrow_image_has_a_tile(size):
    """Its words may be longer than the tile is wide."""
    page = sheet([row(size)], TABLE)
    assert page.height >= LINE + GAP + (TILE if size[0] > size[1] else 1)


def test_heat_runs_from_dark_to_light():
    image = np.zeros((32, 48, 3), np.uint8)
    cold, hot = (heat_map(image, np.full((4, 4), value)) for value in (0.0, 1.0))
    assert cold.shape == hot.shape == (32, 48, 3)
    assert cold.max() <= 2
    assert np.abs(hot[0, 0] - OPACITY * np.array([252, 253, 191])).max() < 2


def test_a_png_is_decoded_to_the_array_that_was_encoded():
    random = np.random.default_rng(0)
    for shape, dtype in (((5, 7, 3), np.uint8), ((5, 7), np.uint8), ((5, 7), np.uint16)):
        array = random.integers(0, np.iinfo(dtype).max, shape, dtype)
        decoded = decode_png(encode_png(array))
        assert decoded.dtype == dtype
        assert np.array_equal(decoded, array)


def test_the_overlay_leaves_background_and_pales_ignored_pixels():
    image = np.full((2, 2, 3), (10, 20, 30), np.uint8)
    shown = overlay(image, np.array([[0, 12], [255, 0]]), TABLE).astype(int)
    assert shown[0, 0].tolist() == shown[1, 1].tolist() == [10, 20, 30]
    assert shown[0, 1].tolist() != [10, 20, 30]
    assert shown[1, 0].min() > 150


def test_show_draws_rows_of_a_directory(tmp_path, capsys):
    directory = made_directory(tmp_path / "data", 3)
    out = tmp_path / "figures" / "sheet.png"
    assert main(["show", str(directory.path), "--out", str(out), "--start", "1"]) == 0
    assert f"2 rows of {directory.path}, 1 to 2" in capsys.readouterr().out
    assert Image.open(out).height > 2 * 256
    assert main(["show", str(directory.path), "--out", str(out), "--start", "3"]) == 2
    assert "has no row 3" in capsys.readouterr().err
    assert main(["show", str(directory.path), "--out", str(tmp_path / "sheet.xyz")]) == 2
    assert "the name must end as an image file does" in capsys.readouterr().err


def test_show_names_the_rows_and_the_shards_that_it_leaves_out(tmp_path, capsys):
    directory = made_directory(tmp_path / "data", 8)
    directory.shard_file(plan(8, 2)[0]).unlink()
    directory.manifest_file(plan(8, 2)[2]).unlink()
    show = ["show", str(directory.path), "--out", str(tmp_path / "sheet.png")]
    for options, said, warned in (
        (
            ["--start", "0", "--rows", "1"],
            "1 rows of {}, 2 to 2",
            "rows 0 to 1, because their shard is missing\n",
        ),
        (
            ["--start", "3", "--rows", "2"],
            "2 rows of {}, 3 to 6",
            "rows 4 to 5, because their shard is missing\n",
        ),
        (
            ["--start", "1"],
            "4 rows of {}, 2 to 7",
            ", and the rows of 1 more shards\n",
        ),
        (["--start", "6"], "2 rows of {}, 6 to 7", ""),
    ):
        assert main([*show, *options]) == 0
        out, err = capsys.readouterr()
        assert said.format(directory.path) in out
        assert err.endswith(warned)
        assert ("leaves out" in err) == bool(warned)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_full_disk_leaves_no_part_of_a_sheet(tmp_path, monkeypatch, suffix):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(Image.new("RGB", (4, 4)), tmp_path / f"sheet{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_the_token_sheet_has_a_tile_for_each_token(tiny_model, tmp_path, monkeypatch):
    painter = load_painter(str(tiny_model("sd15")))
    monkeypatch.setattr(painter, "defaults", type(painter.defaults)(2, 3.0, 64, 64))
    token_sheet(painter, "a dog on a street", tmp_path / "tokens.png")
    # The image, five words, start and end: 8 tiles in 2 lines of 4, below the scale.
    figure = Image.open(tmp_path / "tokens.png")
    assert figure.width == 4 * (GAP + TILE + 2 * FRAME)
    assert figure.height == LINE + GAP + 2 * (TILE + 2 * FRAME + LINE + GAP)


def test_the_token_sheet_draws_and_names_the_share_of_each_token(tiny_model, tmp_path, monkeypatch):
    """The scale of a map begins at its least share and ends at its largest one."""
    painter = load_painter(str(tiny_model("sd15")))
    share = torch.tensor([[0.02, 0.03], [0.04, 0.06]])
    image = np.full((64, 64, 3), 90, np.uint8)
    monkeypatch.setattr(
        painter,
        "paint",
        lambda prompts, *rest: ([image], [{key: {(2, 2): share} for key in prompts[0].words}], [None]),
    )
    labels = []
    monkeypatch.setattr(
        show, "_cell", lambda tile, label: labels.append((tile, label)) or Image.new("RGB", (4, 4))
    )
    token_sheet(painter, "a dog", tmp_path / "tokens.png")
    assert [label for _, label in labels[:3]] == [
        "a dog",
        "<|startoftext|>: 0.020 to 0.060",
        "a: 0.020 to 0.060",
    ]
    drawn = heat_map(image, np.array([[0, 0.25], [0.5, 1]]))
    assert abs(labels[1][0].astype(int) - drawn).max() <= 1
