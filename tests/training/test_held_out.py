"""The held-out sets are made once, and training is scored on each of them."""

import json

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from datasets import load_dataset

from attn2mask.builders.drawn.rows import draw_rows
from attn2mask.training.checkpoint import load_checkpoint
from attn2mask.training.config import TrainConfig
from attn2mask.training.held_out import (
    MEASURES,
    SETS,
    attention_masks,
    held_out_scenes,
    make_sets,
    painted_images,
    train_and_score,
    write_once,
)
from attn2mask.training.referee import load_referee


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held-out")
    make_sets(folder, 3)
    return folder


def test_the_sets_hold_exact_masks_and_those_of_the_referee(held_out):
    for world in ("objects", "shifted"):
        rows = load_dataset(str(held_out / world), split="train")
        for row, scene in zip(rows, held_out_scenes(world, 3), strict=True):
            assert np.array_equal(np.asarray(row["image"]), scene.image)
            assert np.array_equal(np.asarray(row["mask"]), scene.mask)
    painted = {image.sample_id: image for image in painted_images(held_out / "painted-build")}
    judged = load_dataset(str(held_out / "painted"), split="train")
    assert {row["sample_id"] for row in judged} == set(painted)
    masks = load_referee().segment(np.stack([np.asarray(row["image"]) for row in judged]))
    for row, mask in zip(judged, masks, strict=True):
        assert np.array_equal(np.asarray(row["mask"]), mask)
        assert np.array_equal(np.asarray(row["image"]), painted[row["sample_id"]].image)


def test_a_set_is_made_once(held_out):
    files = {file: file.stat().st_mtime_ns for file in held_out.glob("*/data/*.parquet")}
    assert make_sets(held_out, 3) == [held_out / name for name in SETS]
    assert {file: file.stat().st_mtime_ns for file in held_out.glob("*/data/*.parquet")} == files


def test_attention_masks_are_scored_on_every_set(held_out):
    found = attention_masks(held_out, 3)
    assert set(found) == set(SETS)
    assert all(0 < value <= 1 for value in found.values())


def test_training_is_scored_on_every_set(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have trained in this process
    write_once(tmp_path / "rows", lambda: draw_rows("objects", 4, 5))
    write_once(tmp_path / "streets", lambda: draw_rows("shifted", 2, 6))
    config = TrainConfig(
        dataset=str(tmp_path / "rows"),
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        batch_size=2,
        workers=0,
        mixed_precision="no",
        resume=True,
    )
    scores = train_and_score(config, [tmp_path / "rows", tmp_path / "streets"])
    assert set(scores) == {"rows", "streets"}
    for name, measured in scores.items():
        metrics = json.loads((tmp_path / "run" / f"metrics_{name}.json").read_text())
        expected = {measure: metrics[measure] for measure in MEASURES}
        assert measured == expected | {"plain_mean_iou": metrics["plain"]["mean_iou"]}
        assert metrics["evaluated"]["options"]["flip"]
        size = load_checkpoint(tmp_path / "run").processor.size["shortest_edge"]
        scales = [float(scale) for scale in metrics["evaluated"]["options"]["scales"].split(",")]
        assert [round(scale * size) for scale in scales] == [96, 128]
        assert (tmp_path / "run" / f"metrics_{name}_images.png").exists()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train_and_score(config, [tmp_path / "rows"]) == {"rows": scores["rows"]}  # it is finished
