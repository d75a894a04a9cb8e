"""A build, a checkpoint and an adapter to preview, and cards in place of the real ones."""

import base64
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import ResNetConfig

from attn2mask.builders.images import decode_png, encode_png
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import load_table
from attn2mask.training.checkpoint import make_processor, save_checkpoint
from attn2mask.training.models import build_network


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_build) -> BuildDirectory:
    return BuildDirectory(make_build(tmp_path_factory.mktemp("build") / "voc", rows=5))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A checkpoint of two tiny networks."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny = ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4)
    tiny.save_pretrained(folder / "backbone")
    first, second = (
        build_network("deeplabv3plus", str(folder / "backbone"), load_table("voc"), seed) for seed in (1, 2)
    )
    save_checkpoint(folder / "run", first, second, make_processor(), {})
    return folder / "run"


@pytest.fixture(scope="session")
def pixel() -> bytes:
    """The PNG of the figure in the cards of `no_cards`."""
    return encode_png(np.full((4, 4, 3), 200, np.uint8))


@pytest.fixture
def no_cards(monkeypatch, pixel):
    """Cards of a line and a figure, in place of the real ones; the list of what was asked for."""
    asked = []

    def write(*what) -> SimpleNamespace:
        asked.append(what)
        text = "---\nlicense: apache-2.0\n---\n\n# The card\n\n![a figure](assets/one.png)\n"
        return SimpleNamespace(text=text, files={"assets/one.png": pixel, ".eval_results/x.yaml": b"a: 1"})

    modules = {"dataset": "dataset_card", "segmenter": "model_card", "adapter": "adapter_card"}
    for module, name in modules.items():
        stub = SimpleNamespace(**{name: lambda *what, name=name: write(name, *what)})
        monkeypatch.setitem(sys.modules, f"attn2mask.hub.cards.{module}", stub)
    return asked


@pytest.fixture
def adapter(tiny_lora, tmp_path) -> Path:
    """A LoRA with the record that its training leaves."""
    folder = shutil.copytree(tiny_lora, tmp_path / "adapter")
    record = {
        "command": "adapt",
        "base_model": "owner/painter",
        "options": {"instance_prompt": "a photo of a sks street", "seed": 4711},
    }
    (folder / "training_config.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def images_in() -> Callable[[str], dict[str, np.ndarray]]:
    """`images_in(html)`: the pixels of every image in a page, by its caption."""

    def read(html: str) -> dict[str, np.ndarray]:
        found = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', html)
        return {name: decode_png(base64.b64decode(content)) for content, name in found}

    return read
