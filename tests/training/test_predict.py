"""`attn2mask predict`: its masks are those of `segment`, and a killed run goes on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from segmenters import Segmenter, processor

from attn2mask.builders.images import decode_png, overlay
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main
from attn2mask.training.inference import Augmentation, segment

TABLE = load_table("voc")


@pytest.fixture
def photos(tmp_path):
    """Four images in two folders: one is turned by its EXIF block, one is broken, one is a text."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    (folder / "trip").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / "a b.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise makes it upright
    Image.fromarray(rng.integers(0, 256, (33, 50, 3), np.uint8)).save(folder / "trip" / "c.jpg", exif=exif)
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def networks(monkeypatch):
    """What the checkpoint holds. Tests may change it."""
    loaded = SimpleNamespace(
        network=Segmenter(0), peer=Segmenter(1), processor=processor(), table_name="voc", names=TABLE.names
    )
    monkeypatch.setattr("attn2mask.training.checkpoint.load_checkpoint", lambda path, trust: loaded)
    return loaded


def predict(photos, out, *options: str) -> int:
    return main(["predict", "--checkpoint", "run", "--images", str(photos), "--out", str(out), *options])


def test_the_masks_are_those_of_both_networks(photos, networks, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert predict(photos, out, "--overlay", "--flip", "--scales", "1,2") == 0
    said = capsys.readouterr()
    assert "left out 1 images that cannot be read: broken.png (" in said.err
    assert f"made 2 masks in {out / 'masks'}, drawn over the images in {out / 'overlays'}" in said.out
    both = [networks.network, networks.peer]
    upright = np.asarray(Image.open(photos / "trip" / "c.jpg").transpose(Image.Transpose.ROTATE_270))
    for name, image in {"a b": np.asarray(Image.open(photos / "a b.png")), "trip/c": upright}.items():
        with Image.open(out / "masks" / f"{name}.png") as mask:
            assert mask.mode == "P"
            ids = np.asarray(mask)
            colors = np.array(mask.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(colors[:21], TABLE.palette)
        expected = segment(both, networks.processor, image, Augmentation((1.0, 2.0), flip=True))
        np.testing.assert_array_equal(ids, expected)
        drawn = decode_png((out / "overlays" / f"{name}.png").read_bytes())
        np.testing.assert_array_equal(drawn, overlay(image, expected, TABLE))
    names = json.loads((out / "id2label.json").read_text())
    assert names == {str(k): name for k, name in enumerate(TABLE.names)}


def test_a_repeated_command_makes_only_what_is_missing(photos, networks, tmp_path):
    out = tmp_path / "out"
    assert predict(photos, out) == 0
    made = {path: path.read_bytes() for path in (out / "masks").rglob("*.png")}
    assert len(made) == 2
    assert not (out / "overlays").exists()
    (out / "masks" / "a b.png").unlink()  # as if the process had been killed before it
    networks.network.calls.clear()
    assert predict(photos, out) == 0
    assert networks.network.calls == [(40, 60)]
    assert {path: path.read_bytes() for path in (out / "masks").rglob("*.png")} == made


def test_other_weights_or_options_need_another_folder(photos, networks, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(photos, out) == 0
    assert predict(photos, out, "--flip") == 2
    assert "holds predictions with other weights or options: choose another --out" in capsys.readouterr().err
    networks.network = Segmenter(7)
    assert predict(photos, out) == 2
    assert "holds predictions with other weights or options" in capsys.readouterr().err


MISTAKES = {
    "no folder": (lambda photos, out: (photos / "nowhere", out), "there is no such folder"),
    "no image": (lambda photos, out: (photos.parent / "empty", out), "holds no image"),
    "a folder in use": (lambda photos, out: (photos, photos), "is not empty: choose another folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(photos, networks, tmp_path, capsys, mistake):
    (tmp_path / "empty").mkdir()
    places, message = MISTAKES[mistake]
    assert predict(*places(photos, tmp_path / "out")) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]


def test_two_images_with_one_mask_are_refused(photos, networks, tmp_path, capsys):
    Image.new("RGB", (40, 40)).save(photos / "a b.jpg")
    assert predict(photos, tmp_path / "out") == 2
    assert "would have the same mask" in capsys.readouterr().err


def test_only_unreadable_images_are_a_mistake(photos, networks, tmp_path, capsys):
    (photos / "a b.png").unlink()
    (photos / "trip" / "c.jpg").unlink()
    assert predict(photos, tmp_path / "out") == 2
    assert "holds no image that can be read" in capsys.readouterr().err


def test_scales_must_be_numbers(photos, networks, tmp_path, capsys):
    assert predict(photos, tmp_path / "out", "--scales", "1,x") == 2
    assert "--scales 1,x: it must be numbers above 0" in capsys.readouterr().err
