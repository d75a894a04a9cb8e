"""The size at which trained networks predict is the best one on images that have no score."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from segmenters import Segmenter, examples
from transformers import ResNetConfig

from attn2mask.builders.drawn.rows import exact_row, write_rows
from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main
from attn2mask.training.checkpoint import load_checkpoint, make_processor
from attn2mask.training.config import TrainConfig
from attn2mask.training.data import Crops, open_rows
from attn2mask.training.evaluation import evaluate
from attn2mask.training.inference import segment
from attn2mask.training.prediction_size import best_size, examples_of_rows, mean_iou_by_size
from attn2mask.training.train import train

TABLE = load_table("voc")


def test_each_size_is_measured_as_it_predicts():
    network, images = Segmenter(0), examples(2)
    found = mean_iou_by_size(network, images, TABLE, [40, 64])
    for size, score in found.items():
        hits = np.zeros((3, 21))
        for example in images:
            ids = segment([network], make_processor(size), example.image)
            counted = example.target != 255
            for k in range(21):
                pair = ids[counted] == k, example.target[counted] == k
                hits[:, k] += [(pair[0] & pair[1]).sum(), pair[0].sum(), pair[1].sum()]
        union = hits[1] + hits[2] - hits[0]
        assert score == pytest.approx((hits[0][union > 0] / union[union > 0]).mean(), abs=1e-9)
    assert found[40] != found[64]


@pytest.mark.parametrize(
    ("tried", "best"),
    [({64: 0.3, 96: 0.5, 128: 0.4}, 96), ({64: 0.5, 96: 0.5}, 64), ({64: None, 96: None}, 64)],
)
def test_the_best_size_is_chosen(tried, best):
    assert best_size(tried) == best


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Rows of three scenes of 64 pixels, whose left half is not reliable; five others; a tiny backbone."""
    folder = tmp_path_factory.mktemp("sizes")
    for name, seed, count in (("rows", 4, 3), ("others", 5, 5)):
        scenes = [draw_scene("objects", np.random.default_rng([seed, k]), 64) for k in range(count)]
        trust = np.full((64, 64), 255, np.uint8)
        trust[:, :32] = 0
        write_rows((exact_row(f"r{k}", s.image, s.mask, trust) for k, s in enumerate(scenes)), folder / name)
    tiny = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic")
    tiny.save_pretrained(folder / "backbone")
    return folder


def config_of(folder: Path, output: Path, **options) -> TrainConfig:
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have trained in this process
    return TrainConfig(
        dataset=str(folder / "rows"),
        output_dir=str(output),
        backbone=str(folder / "backbone"),
        max_steps=1,
        batch_size=2,
        crop_size=48,
        workers=0,
        mixed_precision="no",
        **options,
    )


def test_pixels_of_rows_that_are_not_reliable_are_ignored(folder):
    config = config_of(folder, folder / "none").resolve()
    opened = open_rows(str(folder / "rows"), False, True)
    rows, table = opened.rows, opened.table
    found = list(examples_of_rows(rows, Crops(config, table)))
    assert [example.name for example in found] == ["r0", "r1", "r2"]
    for number, example in enumerate(found):
        scene = draw_scene("objects", np.random.default_rng([4, number]), 64)
        assert (example.image == scene.image).all()
        assert (example.target[:, :32] == 255).all()
        assert (example.target[:, 32:] == scene.mask[:, 32:]).all()
    trusting = Crops(replace(config, no_reliability=True), table)
    assert all((example.target != 255).all() for example in examples_of_rows(rows, trusting))


def test_a_training_chooses_the_size_and_measures_with_it(folder, tmp_path):
    config = config_of(
        folder, tmp_path / "run", eval_dataset=str(folder / "others"), predict_scales="0.5,1,1.5"
    )
    train(config)
    checkpoint = load_checkpoint(tmp_path / "run")
    chosen = checkpoint.record["prediction_size"]
    opened = open_rows(str(folder / "rows"), False, True)
    table = opened.table
    images = list(examples_of_rows(opened.rows, Crops(config.resolve(), table)))
    assert (chosen["dataset"], chosen["images"]) == (None, 3)
    expected = mean_iou_by_size(checkpoint.network, images, table, [32, 64, 96])
    assert chosen["tried"] == pytest.approx({str(size): score for size, score in expected.items()})
    assert chosen["size"] == best_size(expected) == checkpoint.processor.size["shortest_edge"]
    # The report of the training is that of the networks as they were saved.
    networks, others = [checkpoint.network, checkpoint.peer], [folder / "others"]
    measured = evaluate(networks, checkpoint.processor, _images(others[0]), table, progress=False)
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["networks"]["a"]["mean_iou"] == pytest.approx(measured.metrics["a"].compute()["mean_iou"])


def _images(folder: Path):
    from attn2mask.training.benchmarks import open_images

    return open_images(str(folder), None, TABLE)


def test_images_that_chose_the_size_give_no_score(folder, tmp_path, capsys):
    config = config_of(folder, tmp_path / "run", size_dataset=str(folder / "others"), no_co_training=True)
    train(config)
    record = json.loads((tmp_path / "run" / "training_config.json").read_text())["prediction_size"]
    assert (record["dataset"], record["images"]) == (str(folder / "others"), 5)
    assert list(record["tried"]) == ["64", "80", "96", "128"]  # the preset's
    command = ["evaluate", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "m.json")]
    assert main([*command, "--dataset", str(folder / "others")]) == 2
    assert "predicts was chosen on" in capsys.readouterr().err.splitlines()[-1]
    assert main([*command, "--dataset", str(folder / "rows")]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predict_scales": "1,x"}, "--predict-scales 1,x: it must be numbers above 0"),
        ({"predict_scales": "1,100"}, "they give 64, 6400 pixels, but prediction needs 32 to 4096"),
        ({"predict_scales": "1", "size_dataset": "x"}, "--size-dataset: there is nothing to choose"),
        ({"resize": 0, "size_dataset": "x"}, "--size-dataset: there is nothing to choose"),
        ({"size_dataset": "/no/such"}, "no dataset /no/such"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(folder, tmp_path, options, message):
    with pytest.raises(UserError, match=message) as raised:
        train(config_of(folder, tmp_path / "run", **options))
    assert "\n" not in str(raised.value)


def test_networks_that_do_not_resize_images_choose_nothing(folder, tmp_path):
    train(config_of(folder, tmp_path / "run", preset="demo-beco", no_co_training=True))
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.record["prediction_size"] is None
    assert not checkpoint.processor.do_resize
