"""The demo on a few images: all files that it promises are there, and its values lie in their ranges."""

import json
from dataclasses import astuple, replace

from accelerate.state import AcceleratorState
from datasets import load_dataset
from PIL import Image

from attn2mask.builders.options import parse
from attn2mask.hub import demo
from attn2mask.hub.cli import main
from attn2mask.training.checkpoint import load_checkpoint


def test_sizes():
    full, small = (
        parse(demo.DemoConfig, ["--size", size], "demo", "").resolve() for size in ("full", "small")
    )
    assert parse(demo.DemoConfig, [], "demo", "").resolve() == full
    for whole, part in zip(astuple(full), astuple(small), strict=True):
        assert 0 < part <= whole / 4
    own = parse(demo.DemoConfig, ["--size", "small", "--num-images", "5", "--max-steps", "0"], "demo", "")
    assert own.resolve() == replace(small, num_images=5, max_steps=0)


def test_demo(tmp_path, capsys, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have trained in this process
    monkeypatch.setitem(demo.SIZES, "small", demo.Size(8, 400, held_out=6, referee_scenes=20))
    assert main(["demo", "--out", str(tmp_path), "--size", "small", "--max-steps", "2"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows"] == 8
    assert 0.5 < report["referee_miou"] <= 1
    for threshold in ("otsu", "agreement", "fixed"):
        for stage in ("coarse", "crf"):
            assert 0 < report["masks"][threshold][stage] <= 1
    assert 0 <= report["iou_outside_reliable"] <= 1
    assert 0 <= report["iou_inside_reliable"] <= 1
    for way in ("attention masks", "no co-training", "full"):
        for held_out in ("objects", "shifted", "painted"):
            scores = report["segmenters"][way][held_out]
            assert 0 <= scores.get("mean_iou", 0) <= 1
            assert 0 <= scores["mean_iou_given_labels"] <= 1
    assert load_checkpoint(tmp_path / "segmenter").peer is not None
    assert load_checkpoint(tmp_path / "alone").peer is None
    chosen = load_checkpoint(tmp_path / "segmenter").record["prediction_size"]
    assert (chosen["dataset"], chosen["images"]) == (str(tmp_path / "validation"), 6)
    validation, objects = (
        {row["image"].tobytes() for row in load_dataset(str(tmp_path / name), split="train")}
        for name in ("validation", "held-out/objects")
    )
    assert len(validation) == len(objects) == 6
    assert not validation & objects
    for name in ("sheet.png", "tokens.png", "segmenter/metrics_objects_images.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200
    for card in ("dataset", "model"):
        assert (tmp_path / "cards" / card / "README.md").read_text().startswith("---\n")
    options = parse(demo.DemoConfig, ["--config", str(tmp_path / "demo.yaml")], "demo", "")
    assert options.resolve() == demo.Size(8, 2, 6, 20)
    said = capsys.readouterr().out
    assert "after the CRF: 0." in said
    assert f"attn2mask publish model {tmp_path / 'segmenter'} " in said
