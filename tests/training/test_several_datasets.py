"""A training on several datasets: the share of each, the same rows in every run, and what is refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from safetensors.torch import load_file

from attn2mask.builders.drawn.rows import exact_row, write_rows
from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_png
from attn2mask.builders.options import parse
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cards.segmenter import model_card
from attn2mask.training import train as module
from attn2mask.training.checkpoint import load_checkpoint
from attn2mask.training.config import TrainConfig
from attn2mask.training.data import Crops, Positions, Share, Source, loader, open_datasets, open_rows, turns

NAMES = load_table("voc").names


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> str:
    """Nine drawn scenes, the left half of each not reliable."""
    folder = tmp_path_factory.mktemp("synthetic")
    scenes = [draw_scene("objects", np.random.default_rng([4, index]), 48) for index in range(9)]
    reliability = np.full((48, 48), 255, np.uint8)
    reliability[:, :24] = 0
    write_rows((exact_row(f"s{k}", one.image, one.mask, reliability) for k, one in enumerate(scenes)), folder)
    return str(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> str:
    """Three rows in another project's form: `pixel_values`, `label`, and id2label.json."""
    return write_real(tmp_path_factory.mktemp("data") / "real", NAMES)


def write_real(folder: Path, names: tuple[str, ...]) -> str:
    (folder / "data").mkdir(parents=True)
    scenes = [draw_scene("objects", np.random.default_rng([5, index]), 48) for index in range(3)]
    rows = [
        {name: {"bytes": encode_png(array), "path": None} for name, array in columns.items()}
        for scene in scenes
        for columns in [{"pixel_values": scene.image, "label": scene.mask.astype(np.uint8)}]
    ]
    images = Dataset.from_list(rows, Features(pixel_values=ImageFeature(), label=ImageFeature()))
    pyarrow.parquet.write_table(images.data.table, folder / "data" / "train.parquet")
    (folder / "id2label.json").write_text(json.dumps({str(k): name for k, name in enumerate(names)}))
    return str(folder)


def datasets_of(weights: list[float], batch: int, steps: int) -> list[Counter]:
    """How many rows of each dataset each step has."""
    found = [Counter() for _ in range(steps)]
    for position, dataset, _ in turns(weights, 7, Share(batch, 0, steps)):
        found[position // batch][dataset] += 1
    return found


def test_each_batch_has_the_shares_exactly():
    assert datasets_of([0.75, 0.25], 8, 5) == [Counter({0: 6, 1: 2})] * 5
    assert datasets_of([3, 1], 8, 5) == [Counter({0: 6, 1: 2})] * 5
    assert datasets_of([0.5, 0.3, 0.2], 10, 4) == [Counter({0: 5, 1: 3, 2: 2})] * 4


def test_shares_that_do_not_divide_a_batch_are_exact_over_batches():
    """Of shares 2/3 and 1/3, rows are due at 0.75, 2.25, 3.75, ... and at 1.5, 4.5, ...: 0 1 0 0 1 0 ..."""
    assert datasets_of([2, 1], 4, 3) == [Counter({0: 3, 1: 1}), Counter({0: 2, 1: 2}), Counter({0: 3, 1: 1})]
    few = datasets_of([0.99, 0.01], 4, 50)
    assert sum((step for step in few), Counter()) == Counter({0: 198, 1: 2})


def test_rows_of_a_dataset_take_turns_in_shuffled_passes():
    """Each pass shows each row of the dataset once. The other dataset has no effect."""
    places = list(Positions([5, 3], 1, Share(4, 0, 15), [1, 1]))
    assert [position for position, _ in places] == list(range(60))
    for rows in (range(5), range(5, 8)):
        seen = [row for _, row in places if row in rows]
        assert len(seen) == 30
        passes = [seen[k : k + len(rows)] for k in range(0, 30, len(rows))]
        assert all(sorted(one) == list(rows) for one in passes)
        assert any(one != list(rows) for one in passes)


def test_by_default_every_row_is_seen_equally_often():
    seen = Counter(row for _, row in Positions([5, 3], 1, Share(4, 0, 6)))
    assert seen == Counter(dict.fromkeys(range(8), 3))


def test_the_first_dataset_has_the_order_that_it_has_alone():
    orders = [np.random.default_rng([0, 1, epoch]).permutation(10) for epoch in range(4)]
    alone = [row for _, row in Positions([10], 0, Share(8, 0, 5))]
    assert alone == np.concatenate(orders).tolist()
    beside = [row for _, row in Positions([10, 4], 0, Share(8, 0, 10), [1, 1]) if row < 10]
    assert beside == alone


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_rows(processes):
    whole = list(Positions([7, 3], 0, Share(8, 0, 9), [3, 1]))
    shares = [
        list(Positions([7, 3], 0, Share(8, 4, 9, rank, processes), [3, 1])) for rank in range(processes)
    ]
    assert sorted(place for share in shares for place in share) == whole[32:]
    assert {len(share) for share in shares} == {40 // processes}
    assert all(any(row >= 7 for _, row in share) for share in shares)  # not one process has one dataset


@pytest.mark.parametrize("streaming", [False, True])
def test_any_start_and_any_process_give_the_same_crops(synthetic, real, streaming):
    config = TrainConfig(preset="demo-beco", crop_size=32, seed=3, streaming=streaming).resolve()
    sources = [
        Source(each.rows, Crops(config, each.table, each.dataset, each.decode, True), weight)
        for each, weight in (
            (open_rows(synthetic, streaming, True), 3),
            (open_rows(real, streaming, True), 1),
        )
    ]

    def steps(start: int, rank: int = 0, processes: int = 1) -> list[dict]:
        return list(loader(sources, Share(4, start, 5, rank, processes), 4 // processes, workers=0))

    whole, rest = steps(0), steps(3)
    halves = [steps(3, rank, 2) for rank in range(2)]
    for one, two, *parts in zip(whole[3:], rest, *halves, strict=True):
        for name in ("pixels", "label", "trusted"):
            assert torch.equal(one[name], two[name])
            assert all(torch.equal(one[name][rank::2], part[name]) for rank, part in enumerate(parts))
        assert one["sample_id"] == two["sample_id"]
    for batch in whole:
        of_real = [name.endswith(f" of {real}") for name in batch["sample_id"]]
        assert sum(of_real) == 1
        for trusted, is_real in zip(batch["trusted"], of_real, strict=True):
            assert trusted.all() == is_real  # the others are not reliable in one half


@pytest.fixture
def config(synthetic, real, backbone, tmp_path) -> TrainConfig:
    return TrainConfig(
        dataset=[synthetic, real],
        shares=[3, 1],
        output_dir=str(tmp_path / "run"),
        preset="demo-beco",
        backbone=backbone,
        max_steps=4,
        batch_size=4,
        crop_size=32,
        checkpoint_every=2,
        workers=0,
        no_co_training=True,
    )


class Killed(Exception):
    pass


def test_a_killed_run_on_two_datasets_ends_with_the_same_weights(config, real, tmp_path, monkeypatch):
    straight = replace(config, output_dir=str(tmp_path / "straight"))
    module.train(straight)
    count, seen = module.Training.count, []

    def dying(run, losses, rows):
        seen.extend(rows)
        if run.step == 2:
            raise Killed
        count(run, losses, rows)

    with monkeypatch.context() as patch:
        patch.setattr(module.Training, "count", dying)
        with pytest.raises(Killed):
            module.train(config)
    assert sum(name.endswith(f" of {real}") for name in seen) == 3  # one in each step
    with pytest.raises(UserError, match=r"holds another run: shares .*choose another --output-dir"):
        module.train(replace(config, shares=[1, 1], resume=True))
    with pytest.raises(UserError, match="holds another run: "):
        module.train(replace(config, dataset=config.dataset[:1], shares=None, resume=True))
    module.train(replace(config, resume=True))
    one, two = (load_file(f"{c.output_dir}/state.safetensors") for c in (straight, config))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)

    record = load_checkpoint(config.output_dir).record
    assert record["options"]["dataset"] == config.dataset
    facts = [(part["dataset"], part["on_hub"], part["share"], part["num_rows"]) for part in record["rows"]]
    assert facts == [(config.dataset[0], None, 0.75, 9), (real, None, 0.25, 3)]
    train_yaml = Path(config.output_dir) / "train.yaml"
    assert parse(TrainConfig, ["--config", str(train_yaml)], "", "").dataset == config.dataset
    text = model_card(Path(config.output_dir), "org/both").text
    name = Path(config.dataset[0]).name
    rows = f"`{name}` (75.0% of each batch, 9 rows) and `real` (25.0% of each batch, 3 rows)"
    assert f"It was trained on the rows of {rows}." in text
    assert f"| rows | {rows} |" in text
    assert "\nlicense: unknown\n" in text
    record["rows"][1] |= {"on_hub": "owner/real", "revision": "0a1b"}
    (Path(config.output_dir) / "training_config.json").write_text(json.dumps(record))
    text = model_card(Path(config.output_dir), "org/both").text
    assert "\ndatasets:\n- owner/real\n" in text
    assert "and [owner/real](https://huggingface.co/datasets/owner/real/tree/0a1b) (25.0% of each" in text


def test_the_content_of_each_dataset_belongs_to_the_run(config, real, tmp_path):
    identity = module.run_identity(config.resolve(), [{}, {"revision": "a"}])
    assert identity["rows"] == [module.rows_digest(name) for name in config.dataset]
    assert identity["revision"] == [None, "a"]
    alone = module.run_identity(replace(config, dataset=[real], shares=None).resolve(), [{"revision": "a"}])
    assert (alone["rows"], alone["revision"]) == (module.rows_digest(real), "a")
    module.write_identity(tmp_path, identity)
    for known in ([None, None], [None, "a"]):  # the Hub may not be reached
        assert module.recorded_run(tmp_path, identity | {"revision": known}, resume=True)
    with pytest.raises(UserError, match="holds another run: revision"):
        module.recorded_run(tmp_path, identity | {"revision": [None, "b"]}, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shares", "1", "-1"], r"^--shares -1.0: it must be above 0$"),
        (["--shares", "0", "0"], r"^--shares 0.0: it must be above 0$"),
        (["--shares", "nan", "1"], r"^--shares nan: it must be a finite number$"),
        (["--shares", "1"], r"^--shares 1.0: give one for each dataset, not 1 for 2 of --dataset$"),
        (["--shares", "a", "b"], "--shares: invalid float value: 'a'"),
        (["--num-rows", "4"], r"^--num-rows 4 takes the first rows of one dataset, not of several$"),
        (["--dataset=one"], r"^--dataset one is given twice: raise its share with --shares$"),
    ],
)
def test_options_that_do_not_fit_several_datasets(options, message):
    with pytest.raises(UserError, match=message):
        parse(TrainConfig, ["--dataset", "one", "two", *options], "attn2mask train", "")


def test_classes_must_be_equal(config, tmp_path):
    other = write_real(tmp_path / "other", (*NAMES[:3], "blimp", *NAMES[4:]))
    message = rf"^--dataset .* and --dataset {other} have different classes: id 3 is 'bird' against 'blimp'$"
    with pytest.raises(UserError, match=message):
        module.train(replace(config, dataset=[config.dataset[0], other]))
    fewer = write_real(tmp_path / "fewer", NAMES[:-1])
    with pytest.raises(
        UserError, match=r"classes: 21 names against 20, id 20 is 'tvmonitor' against no class$"
    ):
        module.train(replace(config, dataset=[config.dataset[0], fewer]))
    with pytest.raises(UserError, match=rf"^--dataset {tmp_path / 'none'}: there is no such directory"):
        module.train(replace(config, dataset=[config.dataset[0], str(tmp_path / "none")]))
    assert not Path(config.output_dir).exists()


def test_each_dataset_must_be_complete(config, tmp_path):
    fewer = write_real(tmp_path / "fewer", NAMES)
    info = "dataset_info:\n  splits:\n  - name: train\n    num_examples: 5"
    (tmp_path / "fewer" / "README.md").write_text(f"---\n{info}\n---\n")
    config = replace(config, dataset=[config.dataset[0], fewer])
    with pytest.raises(UserError, match=rf"^--dataset {fewer} is not complete: .* 3 rows, but .* states 5"):
        open_datasets(config, verify=True)
    opened = open_datasets(replace(config, allow_incomplete=True), verify=True)
    assert [len(each.rows) for each in opened] == [9, 3]
