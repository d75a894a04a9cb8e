"""ImageNet-S's own folders and masks, made from a build and read back by the evaluation."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attn2mask.builders.command import run_command
from attn2mask.builders.imagenet_s import ImageNetSConfig, in_colors, run
from attn2mask.builders.images import encode_png
from attn2mask.builders.sample import features
from attn2mask.builders.seals import sealed
from attn2mask.builders.shards import BuildDirectory, plan
from attn2mask.builders.table_reader import load_table, wordnet_ids
from attn2mask.training.benchmarks import open_images

IMAGE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def main(*argv: str) -> int:
    return run_command(ImageNetSConfig, run, argv, "builders/imagenet_s.py", "")


def built(root: Path, name: str, ids: list[int], num_images: int = 3) -> Path:
    """A finished build whose rows hold `ids` and ignored pixels; the last has lost its classes."""
    table = load_table(name)
    dtype = np.uint8 if table.ignore_index == 255 else np.uint16
    mask = np.resize(np.array([0, *ids, table.ignore_index], dtype), (5, 7))
    row = {column: {"bytes": encode_png(IMAGE[..., 0]), "path": None} for column in ("mask", "reliability")}
    row |= {
        "image": {"bytes": encode_png(IMAGE), "path": None},
        "mask": {"bytes": encode_png(mask), "path": None},
    }
    row |= {"prompt": "", "caption": "", "words": [], "seed": 1, "peaks": []}
    root.mkdir()
    record = {"num_images": num_images, "identity": {"shard_size": 2}, "table": table.facts()}
    (root / "build.json").write_bytes(sealed(record))
    directory = BuildDirectory(root)
    for shard in plan(3, 2):
        rows = [row | {"sample_id": f"s-{i}", "classes": ids if i < 2 else []} for i in shard.rows]
        directory.write_shard(shard, features(table), rows, {})
    return root


def test_the_encoding():
    mask = np.array([[0, 1, 255], [256, 919, 65535]], np.uint16)
    coded = in_colors(mask, 65535).astype(int)
    assert coded.dtype == int
    assert (coded[..., 0] + 256 * coded[..., 1]).tolist() == [[0, 1, 255], [256, 919, 1000]]
    assert not coded[..., 2].any()
    small = in_colors(np.array([[50, 255]], np.uint8), 255).astype(int)
    assert (small[..., 0] + 256 * small[..., 1]).tolist() == [[50, 1000]]


@pytest.mark.parametrize(("name", "ids"), [("imagenet_s_50", [2, 50]), ("imagenet_s_919", [919, 300, 255])])
def test_the_folders_are_read_back(tmp_path, capsys, name, ids):
    root, out = built(tmp_path / "data", name, ids), tmp_path / "out"
    for _ in range(2):  # a second time changes nothing
        assert main(str(root), "--out", str(out)) == 0
    assert "2 images with masks in ImageNet-S's encoding; 1 rows without a class" in capsys.readouterr().out
    table = load_table(name)
    assert len(list((out / "train").iterdir())) == len(table.classes)
    wnid = wordnet_ids(name)[ids[0] - 1]
    assert Image.open(out / "train-segmentation" / wnid / "s-0.png").mode == "RGB"
    images = open_images(str(out), "train", table)
    assert [example.name for example in images] == [f"{wnid}/s-0", f"{wnid}/s-1"]
    for example in images:
        assert (example.image == IMAGE).all()
        assert set(np.unique(example.target)) == {0, *ids, table.ignore_index}


def test_mistakes(tmp_path, capsys):
    def refused(*argv: str) -> str:
        assert main(*argv) == 2
        *_, line = capsys.readouterr().err.splitlines()
        return line

    assert "DIR is missing" in refused()
    assert "holds no build" in refused(str(tmp_path))
    assert "is a build of voc" in refused(str(built(tmp_path / "voc", "voc", [1])))
    unfinished = built(tmp_path / "unfinished", "imagenet_s_50", [1], num_images=5)
    assert "is not complete" in refused(str(unfinished))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    root = built(tmp_path / "data", "imagenet_s_50", [1])
    assert "holds other files (mine.txt)" in refused(str(root), "--out", str(tmp_path / "full"))


def test_a_table_with_a_scene_is_read_back(tmp_path):
    assert BuildDirectory(built(tmp_path / "data", "imagenet_s_50", [1])).table == load_table("imagenet_s_50")
