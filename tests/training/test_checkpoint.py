"""Checkpoints: both networks come back, whenever a save is killed, and anyone's transformers loads them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ResNetConfig, SegformerConfig, SegformerForSemanticSegmentation

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.training import checkpoint as checkpoint_module
from attn2mask.training.checkpoint import is_exported, load_checkpoint, make_processor, save_checkpoint
from attn2mask.training.models import build_network

TABLE = load_table("voc")
PICTURE = torch.linspace(-2, 2, 3 * 33 * 47).reshape(1, 3, 33, 47)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """`build(architecture, seed)`: a tiny network."""
    folder = tmp_path_factory.mktemp("backbone")
    ResNetConfig(
        layer_type="basic", embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4
    ).save_pretrained(folder)
    return lambda architecture="deeplabv3plus", seed=0: build_network(architecture, str(folder), TABLE, seed)


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(PICTURE).logits


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "upernet"])
def test_both_networks_come_back(build, architecture, tmp_path):
    first, second = build(architecture, 1), build(architecture, 2)
    save_checkpoint(tmp_path, first, second, make_processor(64), {"steps": 7})
    found = load_checkpoint(str(tmp_path))
    torch.testing.assert_close(logits(found.network), logits(first))
    torch.testing.assert_close(logits(found.peer), logits(second))
    assert (found.table_name, found.names, found.record["steps"]) == ("voc", TABLE.names, 7)
    assert not found.network.training
    assert not found.peer.training
    assert found.processor.size == {"shortest_edge": 64}


def test_a_folder_holds_the_checkpoint_and_keeps_what_else_is_in_it(build, tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    save_checkpoint(tmp_path, build(), build(), make_processor(), {})
    network = {"config.json", "model.safetensors", "deeplabv3plus.py"}
    rest = {"peer", "preprocessor_config.json", "training_config.json", "metrics.json"}
    assert set(os.listdir(tmp_path)) == network | rest
    assert set(os.listdir(tmp_path / "peer")) == network


def test_networks_in_channels_last_are_saved_as_well(build, tmp_path):
    """The layout that convolutions read faster is not safetensors'."""
    network = build().to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path, network, None, make_processor(), {})
    torch.testing.assert_close(logits(load_checkpoint(tmp_path).network), logits(network))


def test_a_network_trained_alone_has_no_peer(build, tmp_path):
    """Not even that of the checkpoint before."""
    save_checkpoint(tmp_path, build(), build(), make_processor(), {})
    save_checkpoint(tmp_path, build(), None, make_processor(), {})
    assert load_checkpoint(tmp_path).peer is None


class Killed(BaseException):
    """Stands for SIGKILL: nothing cleans up after it."""


@pytest.mark.parametrize("step", ["replace", "rmtree"])
def test_whenever_a_save_is_killed_one_checkpoint_is_whole(build, step, tmp_path, monkeypatch):
    """Killed before its n-th call of `step`, for every n. Each save changes both networks and the config."""
    networks = [(build(seed=2 * i), build(seed=2 * i + 1)) for i in range(2)]
    expected = [(logits(first), logits(second)) for first, second in networks]
    original = {"replace": os.replace, "rmtree": shutil.rmtree}[step]
    owner = {"replace": checkpoint_module.os, "rmtree": checkpoint_module.shutil}[step]
    seen = set()
    for n in range(20):
        folder = tmp_path / str(n)
        save_checkpoint(folder, *networks[0], make_processor(), {"save": 0})
        calls = iter(range(20))

        def killed(*args, calls=calls, n=n, **kwargs):
            if next(calls) == n:
                raise Killed
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, step, killed)
            try:
                save_checkpoint(folder, *networks[1], make_processor(), {"save": 1})
            except Killed:
                finished = False
            else:
                finished = True
        found = load_checkpoint(folder)
        save = found.record["save"]
        torch.testing.assert_close(logits(found.network), expected[save][0])
        torch.testing.assert_close(logits(found.peer), expected[save][1])
        seen.add(save)
        if finished:
            break
        save_checkpoint(folder, *networks[0], make_processor(), {"save": 0})
        assert json.loads((folder / "training_config.json").read_text())["save"] == 0
    assert finished
    assert seen == {0, 1}


def fresh(code: str, folder: Path, **environment: str) -> np.ndarray:
    """Logits of PICTURE from an interpreter with transformers, without this package and torchvision."""
    program = (
        "import sys\n"
        "sys.modules['attn2mask'] = sys.modules['torchvision'] = None\n"  # importing them raises ImportError
        "import numpy, torch\n"
        "from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline\n"
        f"folder = {str(folder)!r}\n"
        f"{code}\n"
        "image = torch.linspace(-2, 2, 3 * 33 * 47).reshape(1, 3, 33, 47)\n"
        "numpy.save(folder + '/logits.npy', model(pixel_values=image).logits.detach().numpy())\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert run.returncode == 0, run.stderr
    return np.load(folder / "logits.npy")


def test_upernet_loads_with_plain_transformers(build, tmp_path):
    network = build("upernet")
    save_checkpoint(tmp_path, network, None, make_processor(64), {})
    code = (
        "model = AutoModelForSemanticSegmentation.from_pretrained(folder)\n"
        "segment = pipeline('image-segmentation', model=folder)\n"
        "from PIL import Image\n"
        "assert segment(Image.new('RGB', (50, 40), 'red'))[0]['label'] in model.config.label2id\n"
    )
    np.testing.assert_allclose(fresh(code, tmp_path), logits(network).numpy(), atol=1e-5)


def test_deeplabv3plus_loads_with_the_code_that_it_brings_along(build, tmp_path):
    network = build("deeplabv3plus")
    save_checkpoint(tmp_path, network, None, make_processor(64), {})
    code = (
        "model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)\n"
        "segment = pipeline('image-segmentation', model=folder, trust_remote_code=True)\n"
        "from PIL import Image\n"
        "assert segment(Image.new('RGB', (50, 40), 'red'))[0]['label'] in model.config.label2id\n"
        "model.save_pretrained(folder + '/again')\n"
    )
    found = fresh(code, tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
    np.testing.assert_allclose(found, logits(network).numpy(), atol=1e-5)
    assert (tmp_path / "again" / "deeplabv3plus.py").exists()


@pytest.mark.parametrize("more", ["", ", trust_remote_code=True"])
def test_deeplabv3plus_loads_where_the_package_is_imported(build, tmp_path, more):
    """Without `trust_remote_code`, and without a warning of the pipeline; also with both."""
    network = build("deeplabv3plus")
    save_checkpoint(tmp_path, network, None, make_processor(64), {})
    code = (
        "del sys.modules['attn2mask']\n"
        "import attn2mask.training.deeplabv3plus\n"
        f"model = AutoModelForSemanticSegmentation.from_pretrained(folder{more})\n"
        "import transformers, logging\n"
        "class Complaint(logging.Handler):\n"
        "    def emit(self, record): sys.exit(record.getMessage())\n"
        "transformers.logging.add_handler(Complaint(logging.WARNING))\n"
        f"pipeline('image-segmentation', model=folder{more})\n"
    )
    found = fresh(code, tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
    np.testing.assert_allclose(found, logits(network).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "shape"), [(None, (33, 47)), (64, (64, 91)), (16, (16, 22))], ids=["as it is", "up", "down"]
)
def test_the_processor_resizes_the_shorter_side_or_nothing(size, shape, tmp_path):
    make_processor(size).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = Image.new("RGB", (47, 33), (124, 116, 104))  # ImageNet's mean
    values = processor(image, return_tensors="pt").pixel_values
    assert values.shape == (1, 3, *shape)
    assert values.abs().max() < 0.01


def test_networks_of_others_load_as_well(tmp_path):
    config = SegformerConfig(
        hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    make_processor(64).save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path)
    assert (found.table_name, found.names, found.peer) == ("", ("LABEL_0", "LABEL_1", "LABEL_2"), None)
    assert found.record == {}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", None, "holds no config.json"),
        ("config.json", "{", "config.json"),
        ("config.json", '{"model_type": "bert"}', "Unrecognized configuration class"),
        ("model.safetensors", None, "no file named model.safetensors"),
        ("model.safetensors", "broken", "header"),
        ("preprocessor_config.json", None, "image processor"),
        ("training_config.json", "{", "is damaged"),
        ("training_config.json", "[]", "is damaged"),
    ],
)
def test_damaged_checkpoints_end_in_one_line(build, file, text, message, tmp_path):
    folder = tmp_path / "run"
    save_checkpoint(folder, build(), None, make_processor(), {})
    (folder / "training_config.json").unlink()  # without the checksums in it
    (folder / file).unlink(missing_ok=True)
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        load_checkpoint(folder)
    assert str(folder) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_weights_that_lack_a_part_are_refused(build, tmp_path):
    """Rather than drawn at random without a word."""
    network = build()
    weights = {name: tensor for name, tensor in network.state_dict().items() if "classifier" not in name}
    save_checkpoint(tmp_path, network, None, make_processor(), {})
    network.save_pretrained(tmp_path, state_dict=weights)
    (tmp_path / "training_config.json").unlink()
    with pytest.raises(
        UserError, match=r"lack 2 tensors of a DeepLabV3Plus.*, such as decode_head.classifier"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "peer/model.safetensors", "training_config.json"])
def test_a_bit_that_flipped_is_found(build, name, tmp_path):
    """Every checksum is that of the file; `verify` leaves the comparison out."""
    save_checkpoint(tmp_path, build(), build(seed=1), make_processor(), {"note": "mine"})
    record = json.loads((tmp_path / "training_config.json").read_text())
    for weights in ("model.safetensors", "peer/model.safetensors"):
        assert record["weights"][weights] == hashlib.sha256((tmp_path / weights).read_bytes()).hexdigest()
    content = bytearray((tmp_path / name).read_bytes())
    place = content.index(b"mine") if name == "training_config.json" else len(content) - 2
    content[place] ^= 2
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{tmp_path / name} is .*not as it was written: .*if you changed it"
    ):
        load_checkpoint(tmp_path)
    assert not is_exported(tmp_path)
    assert load_checkpoint(tmp_path, verify=False).peer is not None
    del record["seal"], record["weights"]
    (tmp_path / "training_config.json").write_text(json.dumps(record))
    assert load_checkpoint(tmp_path).record == {"note": "mine"}


@pytest.mark.parametrize("path", ["no/such/folder", "/no/such", "./none"])
def test_neither_folder_nor_hub(path):
    with pytest.raises(
        UserError, match=f"checkpoint {path}: it is not a folder and cannot be loaded from the Hub"
    ):
        load_checkpoint(path)


def test_a_checkpoint_of_the_hub(build, monkeypatch, tmp_path):
    save_checkpoint(tmp_path, build(), build(), make_processor(), {"steps": 1})
    asked = []

    def download(repo: str, **kwargs) -> str:
        asked.append(repo)
        return str(tmp_path)

    monkeypatch.setattr(checkpoint_module, "snapshot_download", download)
    assert load_checkpoint("org/model").peer is not None
    assert asked == ["org/model"]


CODE = """
from pathlib import Path
from transformers import {base}
Path({created!r}).touch()

class {name}({base}):
    {body}
"""


def with_code(folder: Path, part: str, created: Path) -> None:
    """Give a checkpoint a module that creates a file when it is imported: for its image processor, or for its
    network.
    """
    if part == "processor":
        file, base, key, body = (
            "preprocessor_config.json",
            "SegformerImageProcessorPil",
            "AutoImageProcessor",
            "",
        )
    else:
        file, base, key, body = "config.json", "UperNetConfig", "AutoConfig", "model_type = 'own'"
    text = CODE.format(base=base, name="Own", created=str(created), body=body or "pass")
    if part == "processor":
        text = text.replace(
            "from transformers import",
            "from transformers.models.segformer.image_processing_pil_segformer import",
        )
    (folder / "own.py").write_text(text)
    record = json.loads((folder / file).read_text())
    record["auto_map"] = {key: "own.Own"}
    record |= {"image_processor_type": "Own"} if part == "processor" else {"model_type": "of_nobody_else"}
    (folder / file).write_text(json.dumps(record))


@pytest.mark.parametrize("part", ["processor", "network"])
def test_code_of_a_checkpoint_does_not_run_unasked(build, tmp_path, monkeypatch, part):
    """Neither does transformers ask on the terminal, where "y" would run it."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    run, created = tmp_path / "run", tmp_path / "created"
    save_checkpoint(run, build("upernet"), None, make_processor(64), {})
    with_code(run, part, created)
    with pytest.raises(UserError, match="holds Python code of its own, which is not run") as error:
        load_checkpoint(run)
    assert "\n" not in str(error.value)
    assert not created.exists()
    if part == "processor":
        checkpoint = load_checkpoint(run, trust_remote_code=True)
        assert created.exists()
        assert type(checkpoint.processor).__name__ == "Own"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_have_the_permissions_of_the_users_umask(build, tmp_path, umask):
    network, before = build("upernet"), os.umask(umask)
    try:
        save_checkpoint(tmp_path, network, network, make_processor(64), {})
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"model.safetensors", "config.json"} <= {file.name for file in files}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}
