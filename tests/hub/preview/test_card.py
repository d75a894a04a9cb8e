"""The card of a folder, as the page shows it."""

import base64
from pathlib import Path
from types import SimpleNamespace

import yaml

from attn2mask.hub.preview.card import card_of, card_parts


def test_the_card_is_the_one_that_publishing_would_write(data, run, tmp_path, no_cards):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    for folder in (data.path, run, tmp_path):
        card_of(folder, "me/it")
    assert no_cards == [
        ("dataset_card", {"voc": data.path}, "me/it"),
        ("model_card", run, "me/it"),
        ("adapter_card", tmp_path, "me/it"),
    ]


def test_a_cards_figures_stand_inside_it(no_cards, pixel):
    metadata, text = card_parts(card_of(Path("adapter"), "me/it"))
    assert metadata == "license: apache-2.0"
    address = f"data:image/png;base64,{base64.b64encode(pixel).decode()}"
    assert text == f"# The card\n\n![a figure]({address})"
    tag = SimpleNamespace(
        text='---\na: 1\n---\n<img src="assets/one.png">\nassets/one.png\n---\n',
        files={"assets/one.png": pixel},
    )
    assert card_parts(tag) == ("a: 1", f'<img src="{address}">\nassets/one.png\n---')


def test_the_real_card_of_an_adapter(adapter):
    metadata, text = card_parts(card_of(adapter, "me/streets"))
    assert yaml.safe_load(metadata)["base_model"] == "owner/painter"
    assert 'load_lora_weights("me/streets")' in text
    assert "| seed | 4711 |" in text
    assert "| rank of the weights | 2 |" in text


def test_the_real_card_needs_no_file_beside_it(data):
    card = card_of(data.path, "me/things")
    metadata, text = card_parts(card)
    assert yaml.safe_load(metadata)["configs"][0]["config_name"] == "voc"
    figures = [file for file in card.files if file.endswith(".png")]
    assert text.count("data:image/png;base64,") == len(figures) > 0
    assert "assets/" not in text
