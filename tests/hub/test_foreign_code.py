"""Python code that comes with a model never runs unasked, in no part of it, also if a terminal says "y"."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import ResNetConfig

from attn2mask.builders.errors import UserError
from attn2mask.builders.painter import load_painter
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main
from attn2mask.hub.preview.page import make_app
from attn2mask.training.backbones import find_backbone
from attn2mask.training.checkpoint import load_checkpoint, make_processor, save_checkpoint
from attn2mask.training.models import build_network

CODE = """from pathlib import Path
from transformers import ResNetBackbone, ResNetConfig

Path({marker!r}).touch()

class OwnConfig(ResNetConfig):
    model_type = "own"

class OwnBackbone(ResNetBackbone):
    config_class = OwnConfig

class Own:
    pass
"""
KINDS = ("Config", "Model", "ModelForSemanticSegmentation", "ImageProcessor", "Backbone")
MAP = {f"Auto{kind}": "own.Own" for kind in KINDS} | {"AutoTokenizer": ["own.Own", "own.Own"]}


@pytest.fixture
def plant(tmp_path, monkeypatch) -> Callable[[Path], Path]:
    """`plant(folder)` puts own.py into a folder; importing it creates the file that is returned."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "marker"

    def put(folder: Path) -> Path:
        (folder / "own.py").write_text(CODE.format(marker=str(marker)))
        return marker

    return put


def add(file: Path, **values: object) -> None:
    record = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(record | values))


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    tiny = ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4)
    tiny.save_pretrained(tmp_path / "backbone")
    network = build_network("upernet", str(tmp_path / "backbone"), load_table("voc"), 0)
    save_checkpoint(tmp_path / "run", network, None, make_processor(64), {})
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("config.json", {}),
        ("config.json", {"model_type": "own"}),
        ("preprocessor_config.json", {}),
        ("preprocessor_config.json", {"image_processor_type": "Own"}),
        ("backbone", {}),
        ("backbone", {"model_type": "own"}),
    ],
)
def test_publishing_and_the_preview_run_no_code_of_a_checkpoint(checkpoint, plant, file, more, capsys):
    marker = plant(checkpoint)
    if file == "backbone":
        described = json.loads((checkpoint / "config.json").read_text())["backbone_config"]
        add(checkpoint / "config.json", backbone_config=described | {"auto_map": MAP} | more)
    else:
        add(checkpoint / file, auto_map=MAP, **more)
    status = main(["publish", "model", str(checkpoint), "me/it", "--dry-run"])
    assert status == (2 if file != "backbone" or more else 0)
    assert sum(line.startswith("attn2mask: error: ") for line in capsys.readouterr().err.splitlines()) == (
        status == 2
    )
    with suppress(UserError):
        make_app(checkpoint)
    assert not marker.exists()


def test_publishing_and_the_preview_run_no_code_of_a_lora(tiny_lora, plant, tmp_path):
    folder = shutil.copytree(tiny_lora, tmp_path / "lora")
    marker = plant(folder)
    add(folder / "adapter_config.json", auto_map=MAP, auto_mapping={"base_model_class": "Own"}, r=2)
    add(folder / "training_config.json", base_model="owner/painter", auto_map=MAP)
    assert main(["publish", "model", str(folder), "me/it", "--dry-run"]) == 0
    make_app(folder)
    assert not marker.exists()


@pytest.mark.parametrize("file", ["model_index.json", "tokenizer/tokenizer_config.json", "unet/config.json"])
def test_a_painter_runs_no_code_of_its_own(tiny_model, plant, tmp_path, file):
    folder = shutil.copytree(tiny_model("sd15"), tmp_path / "painter")
    marker = plant(folder)
    plant((folder / file).parent)
    more = {"_class_name": ["own", "Own"]} if file == "model_index.json" else {"_class_name": "Own"}
    add(folder / file, auto_map=MAP, **more)
    with suppress(UserError):
        load_painter(str(folder), device="cpu")
    assert not marker.exists()


def test_the_code_of_a_backbone_runs_if_it_is_trusted(tmp_path, plant):
    """The record says that it was, and the checkpoint then needs the same trust."""
    folder, table = tmp_path / "own", load_table("voc")
    tiny = ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4)
    tiny.save_pretrained(folder)
    marker = plant(folder)
    add(
        folder / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoBackbone": "own.OwnBackbone"},
    )
    with pytest.raises(
        UserError, match=r"needs Python code of its own, which is not run.*--trust-remote-code"
    ):
        build_network("upernet", str(folder), table, 0)
    assert not marker.exists()
    network = build_network("upernet", str(folder), table, 0, trust_remote_code=True)
    assert marker.exists()
    assert type(network.backbone).__name__ == "OwnBackbone"
    record = {"options": {"backbone": str(folder), "trust_remote_code": True}}
    save_checkpoint(tmp_path / "run", network, None, make_processor(64), record)
    find_backbone.cache_clear()
    with pytest.raises(UserError, match="has a backbone with Python code of its own, which is not run"):
        load_checkpoint(tmp_path / "run")
    assert type(load_checkpoint(tmp_path / "run", True).network.backbone).__name__ == "OwnBackbone"
