"""Weights and rules that a method cannot take end with one line."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from zeroshot_models import save_align, save_clip, save_clipseg

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot import maskclip, weights
from attn2mask.training.zeroshot.protocol import common
from attn2mask.training.zeroshot.segmenter import load_segmenter

VOC = load_table("voc")
PROTOCOL = common(VOC)


@pytest.fixture
def clip(tmp_path) -> Path:
    return save_clip(tmp_path / "clip")


def message(method: str, source: Path | str) -> str:
    """What is printed for weights of a method."""
    with pytest.raises(UserError) as error:
        load_segmenter(method, str(source), PROTOCOL, VOC)
    text = str(error.value)
    assert "\n" not in text
    assert str(source) in text
    return text


def test_weights_of_another_method(clip, tmp_path):
    clipseg, align = save_clipseg(tmp_path / "clipseg"), save_align(tmp_path / "align")
    for method in ("maskclip", "sclip", "naclip"):
        assert "is a model of type clipseg; this method needs one of clip" in message(method, clipseg)
    assert "is a model of type align; this method needs one of clipseg" in message("clipseg", align)
    assert "is a model of type clip; this method needs one of align" in message("align", clip)


def test_a_folder_without_a_config(clip):
    (clip / "config.json").unlink()
    assert "has no config.json that can be read" in message("maskclip", clip)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_config_that_is_none(clip, text):
    (clip / "config.json").write_text(text)
    assert "has no config.json that can be read" in message("maskclip", clip)


def test_weights_that_are_incomplete(clip):
    state = load_file(clip / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, clip / "model.safetensors", metadata={"format": "pt"})
    assert "the weights lack 1 tensors of a CLIPModel, such as visual_projection.weight" in message(
        "sclip", clip
    )


def test_weights_that_cannot_be_read(clip):
    (clip / "model.safetensors").write_bytes(b"no tensors")
    message("sclip", clip)
    (clip / "model.safetensors").unlink()
    message("sclip", clip)


def test_weights_of_other_sizes(clip):
    config = json.loads((clip / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 48
    (clip / "config.json").write_text(json.dumps(config))
    message("naclip", clip)


def test_a_folder_without_a_tokenizer(clip):
    for file in clip.glob("token*"):
        file.unlink()
    assert "no tokenizer can be loaded: there is no vocabulary" in message("maskclip", clip)


def test_a_file(clip):
    """One of safetensors stands for its folder, if this holds the configuration."""
    assert load_segmenter("maskclip", str(clip / "model.safetensors"), PROTOCOL, VOC).record["sha256"]
    assert "is a file, but this method needs a folder" in message("clipseg", clip / "config.json")
    (clip / "config.json").unlink()
    assert "must lie beside its config.json" in message("clipseg", clip / "model.safetensors")


class Creates:
    """An object whose unpickling creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_folder_whose_weights_would_run_code(clip, tmp_path):
    """They are refused. A pickle of tensors alone is read, and the advice of the message works."""
    state = load_file(clip / "model.safetensors")
    (clip / "model.safetensors").unlink()
    created = tmp_path / "created"
    torch.save({**state, "more": Creates(created)}, clip / "pytorch_model.bin")
    text = message("maskclip", clip)
    assert not created.exists()
    assert "holds other objects than tensors, such as io.open, and is not loaded" in text
    _, *command = shlex.split(text[text.index("python -c") :])
    subprocess.run([sys.executable, *command], check=True)
    converted = load_segmenter("maskclip", str(clip), PROTOCOL, VOC).network
    (clip / "model.safetensors").unlink()
    torch.save(state, clip / "pytorch_model.bin")
    plain = load_segmenter("maskclip", str(clip), PROTOCOL, VOC).network
    for one, other in zip(converted.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    (clip / "pytorch_model.bin").write_bytes(b"no pickle")
    message("maskclip", clip)


@pytest.mark.parametrize("error", [OSError, HTTPError])
def test_without_a_network(monkeypatch, error):
    def fail(*arguments, **options):
        raise error("no route to host")

    monkeypatch.setattr(weights, "snapshot_download", fail)
    text = message("align", "someone/something")
    assert text.endswith("cannot be loaded from the Hub: no route to host")
    assert "there is no such folder" in text


def test_the_default_weights_come_from_the_hub(monkeypatch, clip, tmp_path):
    """The folder of a snapshot is named after its revision."""
    asked, snapshot = [], tmp_path / "snapshots" / "abc123"
    shutil.copytree(clip, snapshot)
    monkeypatch.setattr(
        weights, "snapshot_download", lambda name, **options: asked.append(name) or str(snapshot)
    )
    segmenter = load_segmenter("maskclip", None, PROTOCOL, VOC)
    assert asked == ["openai/clip-vit-base-patch16"]
    assert segmenter.record["revision"] == "abc123"


def test_a_rule_that_a_method_lacks(monkeypatch, clip):
    monkeypatch.setattr(maskclip, "BACKGROUNDS", ("none", "threshold"))
    with pytest.raises(UserError, match=r"maskclip has no such rule; choose from none, threshold$"):
        load_segmenter("maskclip", str(clip), PROTOCOL, VOC)
