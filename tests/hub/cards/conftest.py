"""Artefacts that cards are written from: a build, a trained segmenter with a report, and a LoRA adapter.

The records of the segmenter and the adapter are written here as training and adaptation write them; tests at
the end of `test_segmenter.py` and `test_adapter.py` compare them with those of real runs.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import ResNetConfig

from attn2mask.builders.images import encode_png
from attn2mask.builders.options import stored_options, to_yaml
from attn2mask.builders.provenance import FORMAT_VERSION, LORA_RECORD, provenance
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import load_table
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.checkpoint import make_processor, save_checkpoint
from attn2mask.training.config import TrainConfig
from attn2mask.training.evaluate_command import EvaluateConfig
from attn2mask.training.models import build_network

PNG = encode_png(np.zeros((2, 2, 3), np.uint8))


@pytest.fixture(scope="session")
def voc(make_build, tmp_path_factory) -> Path:
    return make_build(tmp_path_factory.mktemp("builds") / "voc")


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Nothing is drawn: only the text of the card counts."""
    for name in ("dataset.sampled_rows", "dataset.class_chart", "segmenter.training_chart"):
        monkeypatch.setattr(f"attn2mask.hub.cards.{name}", lambda *_: [])
    for kind in ("dataset", "segmenter"):
        monkeypatch.setattr(f"attn2mask.hub.cards.{kind}.legend", lambda _: None)
    for name in ("hub.cards.dataset.png_bytes", "hub.cards.segmenter.png_bytes", "builders.show.sheet"):
        monkeypatch.setattr(f"attn2mask.{name}", lambda *_: b"")
    monkeypatch.setattr("attn2mask.hub.cards.segmenter.iou_chart", lambda *_: None)


def scores_of(seed: int) -> dict:
    """Scores of one network on six images, with two classes that are in none of them."""
    rng, names = np.random.default_rng(seed), load_table("voc").names
    ious = {name: round(float(iou), 4) for name, iou in zip(names, rng.random(len(names)), strict=True)}
    ious |= {"sheep": None, "sofa": None}
    return {"mean_iou": 0.5 + seed / 100, "per_class_iou": ious, "pixel_accuracy": 0.7, "num_images": 6}


@pytest.fixture(scope="session")
def run(voc, tmp_path_factory) -> Path:
    """The output directory of a training on the build, also measured on it, with `report.json` beside it."""
    folder = tmp_path_factory.mktemp("training")
    tiny = ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4)
    tiny.save_pretrained(folder / "backbone")
    config = TrainConfig(
        dataset=str(voc),
        output_dir=str(folder / "run"),
        backbone=str(folder / "backbone"),
        max_steps=4,
        eval_dataset=str(voc),
        eval_every=2,
    ).resolve()
    build = BuildDirectory(voc).record()
    record = {
        "format_version": FORMAT_VERSION,
        "command": "train",
        "options": stored_options(config),
        "on_hub": {"dataset": None, "eval_dataset": None, "backbone": None},
        "rows": {name: build[name] for name in ("num_images", "identity", "license")},
        "table": "voc",
        "warmup_steps": 1,
        "chosen_on": None,
        "prediction_size": {
            "size": 96,
            "tried": {"64": 0.31, "80": 0.42, "96": 0.53, "128": 0.44},
            "dataset": None,
            "images": 6,
        },
        "step": 4,
        "seconds": 3.5,
        "hardware": "CPU",
        "mixed_precision": "no",
        **provenance(),
    }
    table = load_table("voc")
    networks = [build_network("deeplabv3plus", config.backbone, table, seed) for seed in (1, 2)]
    output = folder / "run"
    save_checkpoint(output, *networks, make_processor(64), record)
    comment = "attn2mask train --config train.yaml"
    (output / "train.yaml").write_text(to_yaml(config, comment))
    log = [
        {"step": 2, "loss_a": 3.0, "loss_b": 2.5, "images_per_second": 20.0},
        {"step": 4, "loss_a": 1.0, "loss_b": 1.5, "images_per_second": 22.0},
        {"step": 4, "eval_mean_iou": 0.25},
    ]
    (output / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
    (output / "predictions").mkdir()
    for step in (2, 4):
        (output / "predictions" / f"step-{step:06d}.png").write_bytes(PNG + bytes([step]))
    networks = {"a": scores_of(1), "b": scores_of(2)}
    report = {**scores_of(3), "mean_iou_given_labels": 0.61, "networks": networks}
    (output / "metrics.json").write_text(json.dumps({**report, "step": 4}))
    evaluate = EvaluateConfig(checkpoint=str(output), dataset=str(voc), out=str(folder / "report.json"))
    evaluated = {
        "format_version": FORMAT_VERSION,
        "options": stored_options(evaluate),
        "table": "voc",
        "classes_scored": 21,
        "checkpoint_chosen_on": None,
        "method": None,
        "fixed_images": {"folder": "report_predictions", "names": ["a", "b"]},
        "seconds": 1.5,
        "hub": None,
    }
    boundary = {"boundary_iou": 0.41, "boundary_iou_given_labels": 0.43}
    (folder / "report.json").write_text(json.dumps({**report, **boundary, "evaluated": evaluated}))
    comment = "attn2mask evaluate --config report.yaml"
    (folder / "report.yaml").write_text(to_yaml(evaluate, comment))
    (folder / "report_images.png").write_bytes(PNG)
    return output


@pytest.fixture(scope="session")
def report(run) -> Path:
    return run.parent / "report.json"


@pytest.fixture
def adapter(tiny_lora, tmp_path) -> Path:
    """The output directory of an adaptation of a painter on the Hub."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in tiny_lora.glob("*.safetensors"):
        (folder / file.name).write_bytes(file.read_bytes())
    config = AdaptConfig(
        data="frames",
        model="owner/painter",
        revision="0a1b",
        instance_prompt="a photo of a sks street",
        rank=2,
        prior_preservation=True,
        class_prompt="a street",
        prior_images=7,
        prior_weight=0.5,
    ).resolve()
    record = {
        "format_version": FORMAT_VERSION,
        "command": "adapt",
        "base_model": "owner/painter",
        "base_version": "0a1b",
        "base_fingerprint": "sha256:abc",
        "revision": "0a1b",
        "license": "openrail",
        "table": "cityscapes",
        "options": stored_options(config),
        "data": {"name": "frames", "digest": "sha256:def", "images": 4, "with_caption": 0, "skipped": 1},
        "step": 1,
        "seconds": 2.5,
        "loss": 0.125,
        "loss_curve": "log.jsonl",
        "hardware": "CPU",
        "mixed_precision": "no",
        **provenance(),
    }
    (folder / LORA_RECORD).write_text(json.dumps(record))
    (folder / "adapt.yaml").write_text(to_yaml(config, "attn2mask adapt --config adapt.yaml"))
    (folder / "samples").mkdir()
    for step in (1, 2):
        (folder / "samples" / f"step-{step:06d}.png").write_bytes(PNG + bytes([step]))
    return folder
