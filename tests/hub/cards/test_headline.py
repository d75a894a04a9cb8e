"""The headline of a model card is what an independent run of the card's own code gives."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from card_text import REPO, blocks_of, rows_of
from huggingface_hub import ModelCard
from PIL import Image

from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cards.segmenter import model_card
from attn2mask.training.checkpoint import load_checkpoint, make_processor, save_checkpoint
from attn2mask.training.evaluate_command import run as evaluate
from attn2mask.training.evaluate_config import EvaluateConfig

NAMES = load_table("voc").names
ENDING = " with test-time augmentation"


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory) -> Path:
    """Drawn scenes of several sizes. Their masks are blocks of all classes, so that the predictions of any
    network meet the targets, and of ignored pixels.
    """
    folder, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(8)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for index, (height, width) in enumerate([(61, 80), (64, 64), (90, 47)]):
        scene = draw_scene("objects", np.random.default_rng([8, index]), 96)
        blocks = rng.integers(0, len(NAMES) + 1, (12, 12), np.uint8)
        blocks[blocks == len(NAMES)] = 255
        image, mask = scene.image[:height, :width], blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def published(run, toy_set, tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint whose processor resizes to 53 pixels, and its report with test-time augmentation."""
    folder = tmp_path_factory.mktemp("published") / "run"
    made = load_checkpoint(run)
    for seed, network in enumerate((made.network, made.peer)):
        torch.manual_seed(seed)
        torch.nn.init.normal_(network.decode_head.classifier.weight)  # so that many classes are predicted
    save_checkpoint(folder, made.network, made.peer, make_processor(53), {})
    out = folder.parent / "metrics.json"
    options = {"scales": "1,1.5", "flip": True, "out": str(out)}
    evaluate(EvaluateConfig(str(folder), str(toy_set), **options))
    return folder, out


def test_the_headline_is_what_the_code_of_the_card_gives(published, toy_set, tmp_path, monkeypatch):
    folder, report = published
    card = model_card(folder, REPO, [report])
    first, *_ = ModelCard(card.text).data.eval_results
    shutil.copy(toy_set / "images" / "0.png", tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    code = {}
    exec(blocks_of(card.text, "python")[0].replace(REPO, str(folder)), code)
    hits, targets, predictions = (np.zeros(len(NAMES)) for _ in range(3))
    for file in sorted((toy_set / "images").iterdir()):
        target = np.asarray(Image.open(toy_set / "masks" / file.name))
        ids = np.full(target.shape, -1)
        for part in code["segment"](str(file)):
            ids[np.asarray(part["mask"]) == 255] = NAMES.index(part["label"])
        counted = target != 255
        for k in range(len(NAMES)):
            hits[k] += (counted & (ids == k) & (target == k)).sum()
            targets[k] += (counted & (target == k)).sum()
            predictions[k] += (counted & (ids == k)).sum()
    union = targets + predictions - hits
    expected = (hits[union > 0] / union[union > 0]).mean()
    assert (predictions > 0).sum() > 1
    assert (first.metric_type, first.metric_name) == ("mean_iou", "mean IoU")
    assert expected > 0
    assert first.metric_value == pytest.approx(expected, abs=1e-6)
    assert f"the code below has a mean IoU of {expected:.1%}." in card.text.split("## Use")[0]
    assert any(row.startswith(f"| **mean IoU** | {100 * expected:.1f} |") for row in rows_of(card.text, "%"))
    augmented = json.loads(report.read_text())["networks"]["a"]["mean_iou"]
    assert abs(augmented - expected) > 1e-6  # the test could see the difference


def test_scores_with_test_time_augmentation_have_a_name_that_says_so(published):
    folder, report = published
    found = json.loads(report.read_text())
    card = model_card(folder, REPO, [report])
    values = {result.metric_name: result.metric_value for result in ModelCard(card.text).data.eval_results}
    assert values[f"mean IoU{ENDING}"] == found["networks"]["a"]["mean_iou"]
    assert values[f"mean IoU of both networks{ENDING}"] == found["mean_iou"]
    assert values["mean IoU of both networks"] == found["plain"]["mean_iou"]
    assert f"| mean IoU{ENDING} | {100 * found['networks']['a']['mean_iou']:.1f} |" in card.text


def test_a_report_without_plain_scores_has_no_headline(published, tmp_path):
    """Versions without plain scores wrote such reports."""
    folder, report = published
    found = json.loads(report.read_text())
    del found["plain"]
    (tmp_path / "old.json").write_text(json.dumps(found))
    text = model_card(folder, REPO, [tmp_path / "old.json"]).text
    assert all(r.metric_name.endswith(ENDING) for r in ModelCard(text).data.eval_results)
    assert "**mean IoU**" not in text
    assert "the code below has a mean IoU" not in text
    assert "The scores without test-time augmentation are not recorded." in text
