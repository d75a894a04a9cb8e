"""Weights of zero-shot segmenters: what is refused, and what the message says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer, T5Tokenizer
from zeroshot_models_grouping import MODELS, bert_tokenizer, save_model

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot import weights
from attn2mask.training.zeroshot.protocol import common
from attn2mask.training.zeroshot.segmenter import load_segmenter
from attn2mask.training.zeroshot.weights import count, load_published, renamed, tokenizer_beside

TABLE = load_table("voc")
PROTOCOL = common(TABLE, "none", size=32)
PUBLISHED = ["ovsegmentor", "clippy"]


def message(method: str, source: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_segmenter(method, str(source), PROTOCOL, TABLE)
    return str(raised.value)


class Creates:
    """An object whose unpickling creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def write_unsafe(folder: Path, zipped: bool = True) -> tuple[Path, Path]:
    """A published file with a config that is no tensor, and the file that its unpickling would create."""
    created, file = folder / "created", folder / "it.pth"
    tensor = torch.arange(6.0).reshape(2, 3)
    state = {"a": tensor, "b": tensor.T, "logit_scale": torch.tensor(1.0)}  # two tensors share memory
    torch.save({"model": state, "cfg": Creates(created)}, file, _use_new_zipfile_serialization=zipped)
    return file, created


@pytest.mark.parametrize("method", PUBLISHED)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused(tmp_path, method, zipped):
    file, created = write_unsafe(tmp_path, zipped)
    text = message(method, file)
    assert not created.exists()
    assert f"--weights {file} holds other objects than tensors, such as io.open, and is not loaded" in text
    assert "in a separate environment" in text
    assert "\n" not in text


def test_the_command_of_the_message_converts_a_file(tmp_path):
    file, created = write_unsafe(tmp_path)
    text = message("ovsegmentor", file)
    _, *command = shlex.split(text[text.index("python -c") :])
    subprocess.run([sys.executable, *command], check=True)
    assert created.exists()  # the command unpickles everything
    found = load_published(Path(f"{file}.safetensors"), ("logit",))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a": [[0, 1, 2], [3, 4, 5]],
        "b": [[0, 3], [1, 4], [2, 5]],
    }


@pytest.mark.parametrize("method", PUBLISHED)
@pytest.mark.parametrize("content", [b"", b"this is no file of torch", b"PK\x03\x04 a broken archive"])
def test_a_file_of_something_else_is_refused(tmp_path, method, content):
    (tmp_path / "it.pt").write_bytes(content)
    assert "cannot be read" in message(method, tmp_path / "it.pt")


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_published_file_of_another_model_is_refused(tmp_path, method):
    torch.save({"layer1.0.conv1.weight": torch.zeros(3, 3, 1, 1)}, tmp_path / "it.pth")
    assert re.search(r"holds no \w+Model: it lacks the tensor \w+\.", message(method, tmp_path / "it.pth"))


@pytest.mark.parametrize("method", MODELS)
def test_a_folder_of_another_method_is_refused(tmp_path, method):
    other = "clippy" if method != "clippy" else "groupvit"
    save_model(other, tmp_path)
    expected = f"is a model of type {other}; this method needs one of {method}"
    assert expected in message(method, tmp_path)


@pytest.mark.parametrize("method", MODELS)
def test_a_folder_without_a_configuration_is_refused(tmp_path, method):
    save_model(method, tmp_path)
    (tmp_path / "config.json").unlink()
    assert message(method, tmp_path) == f"--weights {tmp_path} has no config.json that can be read"


@pytest.mark.parametrize("method", MODELS)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, method):
    MODELS[method][0]().save_pretrained(tmp_path)
    text = message(method, tmp_path)
    assert "no tokenizer can be loaded" in text
    assert "\n" not in text


def test_groupvit_needs_a_folder(tmp_path):
    (tmp_path / "it.pth").write_bytes(b"")
    assert "this method needs a folder or a name on the Hub" in message("groupvit", tmp_path / "it.pth")


def test_the_tokenizer_of_a_file_lies_beside_it_or_is_on_the_hub(tmp_path, monkeypatch):
    asked = []

    def unreachable(source, **kwargs):
        asked.append(source)
        raise OSError("no connection\nand a long story")

    bert_tokenizer().save_pretrained(tmp_path)
    found = tokenizer_beside(tmp_path / "it.pth", BertTokenizer, "some/bert", "it.pth")
    assert found("cow")["input_ids"] == bert_tokenizer()("cow")["input_ids"]
    monkeypatch.setattr(weights, "snapshot_download", unreachable)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as raised:
        tokenizer_beside(tmp_path / "empty" / "it.pt", T5Tokenizer, "some/t5", "it.pt")
    assert asked == ["some/t5"]
    assert str(raised.value) == (
        "--weights it.pt: no tokenizer can be loaded (no connection); put tokenizer.json and"
        f" tokenizer_config.json of some/t5 into {tmp_path / 'empty'}"
    )


def test_names_change_in_turn_and_a_fused_projection_is_split():
    fused = torch.arange(12.0).reshape(6, 2)
    found = renamed(
        {"a.0.qkv.weight": fused, "b": torch.ones(1)}, [("^a", "first"), (r"^first\.(\d)", r"layer\1")]
    )
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "layer0.q_proj.weight": [[0, 1], [2, 3]],
        "layer0.k_proj.weight": [[4, 5], [6, 7]],
        "layer0.v_proj.weight": [[8, 9], [10, 11]],
        "b": [1],
    }


def test_numbered_parts_are_counted():
    state = {name: torch.zeros(1) for name in ("a.0.weight", "a.11.weight", "b.a.30.weight", "aa.40.weight")}
    assert count(state, "a.") == 12
    with pytest.raises(KeyError, match=r"c\.0"):
        count(state, "c.")
