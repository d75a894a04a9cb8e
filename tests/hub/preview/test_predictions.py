"""Predictions of a checkpoint as HTML."""

import json

import numpy as np
import pytest
from PIL import Image

from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_png, overlay
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.preview import predictions, space
from attn2mask.hub.preview.page import make_app
from attn2mask.hub.preview.predictions import prediction_page
from attn2mask.training.checkpoint import load_checkpoint
from attn2mask.training.inference import segment

TABLE = load_table("voc")


def test_an_image_is_segmented_by_both_networks_and_each(run, images_in, tmp_path):
    checkpoint = load_checkpoint(run)
    pixels = draw_scene("objects", np.random.default_rng(3), 96).image
    image = tmp_path / "image.png"
    image.write_bytes(encode_png(pixels))
    shown, pair = images_in(prediction_page(checkpoint, image)), [checkpoint.network, checkpoint.peer]
    assert list(shown) == ["image", "both networks", "network A", "network B"]
    for name, networks in (("both networks", pair), ("network A", pair[:1]), ("network B", pair[1:])):
        ids = segment(networks, checkpoint.processor, pixels)
        assert np.array_equal(shown[name], overlay(pixels, ids, TABLE))
    checkpoint.peer = None
    assert list(images_in(prediction_page(checkpoint, image))) == ["image", "prediction"]


def test_a_file_of_another_format_is_refused(run, tmp_path):
    """An EPS file, which Pillow would give to Ghostscript."""
    Image.new("RGB", (16, 8)).save(tmp_path / "image.png", "EPS")
    with pytest.raises(UserError, match=r"^image\.png cannot be read: it is not a PNG, "):
        prediction_page(load_checkpoint(run), tmp_path / "image.png")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_any_image_will_do_and_large_ones_are_made_smaller(run, images_in, monkeypatch, tmp_path, mode):
    monkeypatch.setattr(predictions, "LONGEST_SIDE", 64)
    Image.new(mode, (160, 80)).save(tmp_path / "image.png")
    shown = images_in(prediction_page(load_checkpoint(run), tmp_path / "image.png"))
    assert {array.shape for array in shown.values()} == {(32, 64, 3)}


def test_a_space_shows_a_published_checkpoint_with_its_card(hub, publish, run):
    assert publish("model", run, "org/model")[0] == 0
    root, folder = space.download("model", "org/model", None)
    card = space.card_in(root)
    assert card.text.encode() == hub.files("model", "org/model")["README.md"]
    shown = json.dumps(make_app(folder, "org/model", published=card).config, default=str)
    assert "<h1>org/model</h1>" in shown
    assert "networks A and B" in shown
