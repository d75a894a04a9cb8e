"""The card of a LoRA adapter: all its values are recorded, it follows every record, and its code runs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from card_text import blocks_of, commands_of, leaves, links_of, other, rows_of, with_value
from huggingface_hub import ModelCard
from PIL import Image

from attn2mask.builders.build import BuildConfig
from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import parse
from attn2mask.hub.cards.adapter import adapter_card
from attn2mask.hub.cards.markdown import split
from attn2mask.hub.cards.sources import OURS
from attn2mask.training.adapt import adapt
from attn2mask.training.adaptation.config import AdaptConfig

REPO = "me/it"
# Values of the record that only `--resume` and `--lora` use, and options of the run itself.
SILENT = re.compile(
    "format_version|command|base_fingerprint|revision|loss_curve|data/(digest|skipped.*)"
    "|options/(allow_incomplete|no_verify|data|table|model|revision|workers|mixed_precision|micro_batch|gradient_checkpointing"
    "|checkpoint_every|sample_every)"
)


def test_the_card_of_an_adapter(adapter):
    made = adapter_card(adapter, REPO)
    data = ModelCard(made.text).data
    assert (data.base_model, data.library_name, data.license) == ("owner/painter", "diffusers", "openrail")
    assert (data.pipeline_tag, data.instance_prompt) == ("text-to-image", "a photo of a sks street")
    for text in (
        "| revision of the base model | `0a1b` |",
        "| rank of the weights | 2 |",
        "| training images | 4 of frames, 0 with a caption |",
        "| 1 | the paper, Table 2 |",
        f"| rank | 2 | {OURS} |",
    ):
        assert text in made.text
    assert made.files == {"assets/samples.png": (adapter / "samples" / "step-000002.png").read_bytes()}
    assert links_of(made.text) == {"adapt.yaml"}
    assert "](assets/samples.png)" in made.text


def test_the_commands_of_the_card_read_what_was_recorded(adapter, monkeypatch):
    build, adapt = commands_of(adapter_card(adapter, REPO).text)
    config = parse(BuildConfig, build[2:], "build", "")
    assert (config.table, config.model, config.revision) == ("cityscapes", "owner/painter", "0a1b")
    assert config.lora == REPO
    monkeypatch.chdir(adapter)  # where adapt.yaml is
    config = parse(AdaptConfig, adapt[2:], "adapt", "")
    recorded = json.loads((adapter / "training_config.json").read_text())["options"]
    assert {name: getattr(config, name) for name in recorded} == recorded


def test_the_card_follows_every_value_of_its_record(adapter):
    file = adapter / "training_config.json"
    record, text, followed = json.loads(file.read_text()), adapter_card(adapter, REPO).text, set()
    tables = ("adapter", "option", "library")
    for keys, value in leaves(record):
        file.write_text(json.dumps(with_value(record, keys, other(value))))
        changed_text = adapter_card(adapter, REPO).text
        is_silent = SILENT.fullmatch("/".join(map(str, keys))) is not None
        assert (changed_text == text) == is_silent, keys
        followed |= rows_of(text, *tables) - rows_of(changed_text, *tables)
    of_weights = {line for line in rows_of(text, "adapter") if re.match(r"\| (tensors|rank of)", line)}
    assert followed == rows_of(text, *tables) - of_weights


def test_options_of_prior_preservation_are_named_if_it_was_used(adapter):
    file = adapter / "training_config.json"
    record = json.loads(file.read_text())
    assert "| a street |" in adapter_card(adapter, REPO).text
    file.write_text(json.dumps(with_value(record, ("options", "prior_preservation"), False)))
    assert "| a street |" not in adapter_card(adapter, REPO).text


def test_the_python_of_the_card_runs(tiny_model, tiny_lora, tmp_path, monkeypatch):
    shutil.copytree(tiny_lora, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for base in (str(tiny_model("sd15")), "embedded"):
        config = {"base_model": base, "options": {"instance_prompt": 'a "red" street'}}
        (tmp_path / "training_config.json").write_text(json.dumps(config))
        made = adapter_card(tmp_path, REPO)
        assert "base_model" not in split(made.text)[0]
        (code,) = blocks_of(made.text, "python")
        if base != "embedded":  # its U-Net is another one, which these weights do not fit
            name = f'"{Path(base).name}"'
            code = code.replace(REPO, str(tmp_path)).replace(name, f'"{base}"')
            exec(code.replace(").images", ", num_inference_steps=1).images"), {})
            assert (tmp_path / "image.png").exists()
        compile(code, "card", "exec")


def test_an_adapter_without_weights_or_base_model_is_one_line(adapter):
    (adapter / "training_config.json").write_text("{}")
    with pytest.raises(UserError, match="base_model"):
        adapter_card(adapter, REPO)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/painter", "r": 4}')
    made = adapter_card(adapter, REPO).text
    assert "| rank | 4 |" in made
    assert "## Training" not in made
    assert split(made)[0]["license"] == "unknown"
    (adapter / "pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        adapter_card(adapter, REPO)
    (adapter / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(UserError, match="holds no pytorch_lora_weights"):
        adapter_card(adapter, REPO)


def test_a_real_adaptation_records_what_the_card_reads(adapter, tiny_model, tmp_path):
    (tmp_path / "frames").mkdir()
    for index in range(4):
        scene = draw_scene("streets", np.random.default_rng([6, index]), (64, 128))
        Image.fromarray(scene.image).save(tmp_path / "frames" / f"{index}.png")
    output = tmp_path / "real"
    adapt(
        AdaptConfig(
            data=str(tmp_path / "frames"),
            output_dir=str(output),
            model=str(tiny_model("sd15")),
            instance_prompt="a photo of a sks street",
            max_steps=1,
            batch_size=1,
            rank=2,
            crop_size=64,
            sample_every=0,
        )
    )
    found, expected = (
        json.loads((folder / "training_config.json").read_text()) for folder in (output, adapter)
    )
    expected["data"]["skipped"] = 0
    del found["weights"], found["seal"]  # checksums, which no card shows
    assert {keys for keys, _ in leaves(found)} == {keys for keys, _ in leaves(expected)}
    assert links_of(adapter_card(output, REPO).text) == {"adapt.yaml"}
