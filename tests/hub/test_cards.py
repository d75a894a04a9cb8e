"""Cards: all that they say stands in a record, what a person wrote stays, and their code runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from datasets import load_dataset
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, ModelCard, parse_eval_result_entries
from PIL import Image
from places import ROOT
from transformers import ResNetConfig

from attn2mask.builders import build
from attn2mask.builders.build import BuildConfig
from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_png
from attn2mask.builders.options import parse
from attn2mask.builders.remask import RemaskConfig
from attn2mask.builders.rules import LIKELY, OURS, PAPER, load_rules, REPLICATION, origin
from attn2mask.builders.sample import Sample
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cards.adapter import adapter_card
from attn2mask.hub.cards.dataset import dataset_card, remake
from attn2mask.hub.cards.markdown import block, compose, compose_blocks, merge, split, table, wrapped
from attn2mask.hub.cards.segmenter import curves, model_card
from attn2mask.hub.cards.statistics import Tally, figure, quantile, sampled_rows, tally
from attn2mask.training import adapt, train
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.benchmarks import hub_name
from attn2mask.training.config import TrainConfig
from attn2mask.training.evaluate_command import EvaluateConfig
from attn2mask.training.evaluate_command import run as evaluate

REPO = "someone/attn2mask-things"
ROWS = 6
FACTS = {
    "model": "embedded",
    "model_version": "sha256:abc",
    "pipeline": "StableDiffusionPipeline",
    "scheduler": {"class": "DDIMScheduler", "beta_start": 0.00085},
}


def sample(index: int, names: tuple[str, ...]) -> Sample:
    scene = draw_scene("objects", np.random.default_rng([9, index]), 64)
    classes = tuple(int(k) for k in np.unique(scene.mask) if k)
    reliability = np.full_like(scene.mask, 255)
    reliability[:, :16] = 0
    rejected = ("attempt 0: cat: it owns 2 of 4096 pixels after the CRF",) if index == 1 else ()
    return Sample(
        f"voc-0-{index:08d}", encode_png(scene.image), encode_png(scene.mask), encode_png(reliability),
        "a photo | of <!-- things", "things", classes, tuple(names[k] for k in classes), index,
        (0.1,) * len(classes), np.full((len(classes), 4, 4), 99, np.uint8), (), rejected, 0.4, 0.75,
    )  # fmt: skip


def make_build(path: Path, name: str = "voc") -> Path:
    """A build of drawn scenes, as `attn2mask build` leaves it."""
    table = replace(load_table("voc"), name=name)
    config = BuildConfig(
        name, num_images=ROWS, shard_size=4, steps=20, guidance_scale=3.0, height=64, width=64,
        store_scores=True,
    )  # fmt: skip
    record = {
        "command": "build",
        "num_images": ROWS,
        "identity": build.identity(config, table, load_rules("default"), None) | FACTS,
        "captions": {"source": "built-in grammar", "naming_a_class": 0},
        "batch_size": 8,
        "device": "cpu",
        "dtype": "float32",
        **build.licenses(config, FACTS["model_version"]),
        **build.provenance(),
        "table": asdict(table),
    }
    path.mkdir()
    build.make_dataset(
        BuildDirectory(path),
        record,
        table,
        True,
        lambda shard, _: (sample(i, table.names) for i in shard.rows),
    )
    return path


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    return make_build(tmp_path_factory.mktemp("builds") / "voc")


@pytest.fixture(scope="module")
def card(voc):
    return dataset_card({"voc": voc}, REPO)


@pytest.fixture(scope="module")
def run(voc, tmp_path_factory) -> Path:
    """The output directory of a short training on the build, scored on it as well, and a report of it."""
    folder = tmp_path_factory.mktemp("training")
    ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
    ).save_pretrained(folder / "backbone")
    train.train(
        TrainConfig(
            dataset=str(voc), output_dir=str(folder / "run"), backbone=str(folder / "backbone"), max_steps=4,
            batch_size=2, crop_size=48, workers=0, report_to="none", eval_dataset=str(voc), eval_every=2,
        )
    )  # fmt: skip
    evaluate(EvaluateConfig(str(folder / "run"), str(voc), out=str(folder / "report.json")))
    return folder / "run"


@pytest.fixture(scope="module")
def report(run) -> Path:
    return run.parent / "report.json"


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Nothing is drawn: what counts is what the card says."""
    for name in ("hub.dataset_card.sampled_rows", "hub.dataset_card.figure", "hub.model_card.curves"):
        monkeypatch.setattr(f"attn2mask.{name}", lambda *_: [])
    for name in ("hub.dataset_card.png", "hub.model_card.png", "builders.sheet.sheet"):
        monkeypatch.setattr(f"attn2mask.{name}", lambda *_: b"")
    monkeypatch.setattr("attn2mask.hub.cards.segmenter.iou_chart", lambda *_: None)


def changed(folder: Path, tmp_path: Path, file: str, *keys_and_value) -> Path:
    """A copy of a folder whose record `file` holds another value under the keys."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    *keys, value = keys_and_value
    (copy / file).write_text(json.dumps(with_value(json.loads((copy / file).read_text()), keys, value)))
    return copy


def with_value(record: dict, keys: Sequence, value: object) -> dict:
    """A copy of a record that holds the value under the keys."""
    copy = deepcopy(record)
    part = copy
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return copy


def leaves(value: object, keys: tuple = ()) -> Iterator[tuple[tuple, object]]:
    """(keys, value) of everything in a record that holds nothing further."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not inner:
        yield keys, value
    for key, part in inner:
        yield from leaves(part, (*keys, key))


def other(value: object) -> object:
    """Another value of its kind."""
    if isinstance(value, bool):
        return not value
    return value + 2 if isinstance(value, int | float) else f"{value or ''}x"


def rows_of(text: str, *heads: str) -> set[str]:
    """The lines of a card's tables whose first column has one of these heads."""
    found = re.findall(r"^(\|.*\n\|[-:| ]+\n(?:\|.*\n?)*)", text, re.MULTILINE)
    tables = [table.splitlines() for table in found]
    return {line for head, _, *lines in tables if head.split("|")[1].strip() in heads for line in lines}


def blocks_of(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> list[list[str]]:
    lines = "".join(blocks_of(text, "console")).replace("\\\n", "")
    return [shlex.split(line.removeprefix("$ ")) for line in lines.splitlines()]


def run_python(code: str, tmp_path: Path) -> str:
    """The code in a fresh process, with empty caches and without the Hub; what it printed."""
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{code}\n{done.stderr[-3000:]}"
    return done.stdout


# Old cards and new ones


def made(*names: str, **data) -> str:
    return compose(data, compose_blocks({name: f"# {name} is new" for name in names}))


def test_free_text_stays_and_blocks_are_replaced():
    old = compose(
        {}, f"Hello.\n\n{block('a', 'old a, mended by hand')}\nBetween.\n\n{block('b', 'old b')}\nEnd.\n"
    )
    merged = merge(made("a", "new", "b"), old)
    body = split(merged)[1]
    order = ["Hello.", "# a is new", "# new is new", "Between.", "# b is new", "End."]
    assert [body.index(part) for part in order] == sorted(body.index(part) for part in order)
    assert "old" not in body
    assert merge(made("a", "new", "b"), merged) == merged


def test_blocks_that_are_gone_go_but_not_those_of_another_config():
    old = made("about", "config:voc", "gone", "end")
    merged = merge(made("about", "config:streets", "end"), old)
    assert "# config:voc is new" in merged
    assert merged.index("about is new") < merged.index("config:streets is new") < merged.index("end is new")
    assert "gone" not in merged


@pytest.mark.parametrize(
    "old",
    [
        "# A person's card\n\nwith text\n",
        "---\nlicense: mit\n---\n# A person's card\n\nwith text\n",
        "\ufeff---\r\nlicense: mit\r\n---\r\n# A person's card\r\n\r\nwith text\r\n",
    ],
)
def test_a_card_that_a_person_wrote_stands_below(old):
    merged = merge(made("a"), old)
    assert merged.index("a is new") < merged.index("# A person's card\n\nwith text\n")
    assert split(merged)[0].get("license") == ("mit" if "mit" in old else None)
    again = merge(made("a"), merged)
    assert again == merged


def test_marks_without_their_other_half_swallow_nothing():
    old = "<!-- generated: a -->\nmine\n\n" + block("b", "old b") + "<!-- /generated: c -->\nmine too\n"
    merged = merge(made("a", "b"), old)
    assert merged.count("<!-- generated: a -->") == 1
    assert "<!-- /generated: c -->" not in merged
    assert "mine\n" in merged
    assert "mine too" in merged
    assert merge(made("a", "b"), merged) == merged


def test_a_block_that_was_copied_by_hand_is_written_once():
    assert merge(made("a"), made("a") + block("a", "again")).count("generated: a") == 2


def test_no_old_card_leaves_the_new_one():
    assert merge(made("a", x=1), None) == merge(made("a", x=1), " \n") == made("a", x=1)


def test_metadata_of_a_person_stays():
    old = {
        "tags": ["b", "mine"],
        "license": "mit",
        "extra": {"k": 1},
        "pretty_name": "old",
        "model-index": [1],
    }
    data = split(merge(made("a", tags=["a", "b"], license="unknown", pretty_name="x"), compose(old, "")))[0]
    assert data == {"tags": ["a", "b", "mine"], "license": "mit", "extra": {"k": 1}, "pretty_name": "x"}
    assert split(merge(made("a", license="apache-2.0"), compose(old, "")))[0]["license"] == "apache-2.0"


def test_configs_are_merged_by_name_and_the_default_stays():
    old = {
        "configs": [
            {"config_name": "b", "default": True, "data_files": "old"},
            {"config_name": "c", "mine": 1},
        ],
        "dataset_info": {"config_name": "b", "download_size": 1},
    }
    new = {
        "configs": [{"config_name": "a", "default": True}, {"config_name": "b", "data_files": "new"}],
        "dataset_info": [{"config_name": "a", "download_size": 2}],
    }
    data = split(merge(compose(new, ""), compose(old, "")))[0]
    assert data["configs"] == [
        {"config_name": "b", "default": True, "data_files": "new"},
        {"config_name": "c", "mine": 1},
        {"config_name": "a"},
    ]
    assert [info["config_name"] for info in data["dataset_info"]] == ["b", "a"]


@pytest.mark.parametrize("head", ["a: [", "- a\n- b"])
def test_metadata_that_cannot_be_read_is_one_line(head):
    with pytest.raises(UserError, match=r"mend README\.md") as caught:
        merge(made("a"), f"---\n{head}\n---\ntext\n")
    assert "\n" not in str(caught.value)


def test_names_of_the_hub_and_paths_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "rows").mkdir(parents=True)
    assert hub_name("microsoft/resnet-50") == "microsoft/resnet-50"
    for name in ("my/rows", "my/gone", "/a/b", "./a", "~/x", "a/b/c", "voc", "", None, "a/b c"):
        assert hub_name(name) is None, name


def test_cells_cannot_break_a_table():
    text = table(["a", "b"], [["x|y\nz", 1], ["<!-- generated: a -->", 2.5]])
    assert text.splitlines() == [
        "| a | b |", "| --- | ---: |", "| x\\|y z | 1 |", "| &lt;!-- generated: a --> | 2.5 |",
    ]  # fmt: skip


def test_long_commands_part_no_option_from_its_value():
    words = ["attn2mask", "build", "voc", *[w for k in range(9) for w in (f"--option-{k}", f"a value {k}")]]
    text = wrapped(words)
    assert max(map(len, text.splitlines())) <= 110
    assert not re.search(r"--option-\d \\", text)
    assert [words] == commands_of(f"```console\n$ {text}\n```\n")


# What rows hold


def test_a_tally_counts_what_is_there():
    found = Tally(("background", "a", "b"))
    mask = np.array([[0, 1], [1, 2]], np.uint8)
    found.add([1, 2], mask, np.array([[255, 255], [0, 0]], np.uint8))
    found.add([2], np.array([[2, 2, 2, 255]], np.uint8), np.full((1, 4), 255, np.uint8))
    assert found.rows == 2
    assert found.held.tolist() == [0, 1, 2]
    assert found.pixels.tolist() == [1, 2, 4]
    assert (found.mean_area(1), found.mean_area(2)) == (0.5, 0.5)
    assert (found.reliable(0), found.reliable(1), found.reliable(2)) == (1, 0.5, 0.75)
    assert found.together.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    assert found.partner(1) == (2, 1)
    assert (found.mean_area(0), found.partner(0)) == (None, None)
    assert found.trust / found.seen == 0.75
    assert dict(found.labeled) == {2: 1, 1: 1}
    assert set(found.sizes) == {(2, 2), (4, 1)}
    assert quantile(found.area[1:2], 0.5).tolist() == [50.5]


@pytest.mark.parametrize("classes", [1, 2, 45])
def test_the_figure_is_drawn_for_any_number_of_classes(classes):
    found = Tally(tuple(f"${k}" for k in range(classes + 1)))
    for k in range(1, classes + 1):
        found.add([k, 1], np.full((4, 4), k, np.uint8), np.full((4, 4), 255, np.uint8))
    page = figure(found)
    assert len(page.axes) == 4
    assert len(page.axes[0].patches) == min(classes, 30)


def test_masks_of_16_bits_are_counted(tmp_path):
    names = tuple(f"n{k}" for k in range(300))
    found = Tally(names)
    found.add([299], np.array([[299, 65535]], np.uint16), np.array([[255, 0]], np.uint8))
    assert (found.pixels[299], found.reliable(299)) == (1, 1)


def test_samples_are_spread_over_the_files(voc):
    files = sorted((voc / "data").glob("*.parquet"))
    assert [row["sample_id"][-1] for row in sampled_rows(files, 3)] == ["1", "3", "5"]
    assert len(sampled_rows(files, 50)) == ROWS
    assert tally(files, load_table("voc")).rows == ROWS


# The card of a dataset


def stage(folder: Path, made, **builds: Path) -> Path:
    """A folder as the repository will be."""
    (folder / "assets").mkdir(parents=True)
    (folder / "README.md").write_text(made.text)
    for name, path in builds.items():
        shutil.copytree(path / "data", folder / name)
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    return folder


def test_metadata_is_what_the_hub_and_datasets_read(card, voc, tmp_path):
    data = DatasetCard(card.text).data
    assert data.task_categories == ["image-segmentation"]
    assert data.task_ids == ["semantic-segmentation"]
    assert data.annotations_creators == ["machine-generated"]
    assert data.license == "apache-2.0"
    assert data.size_categories == ["n<1K"]
    assert {"attn2mask", "synthetic"} <= set(data.tags)
    info = DatasetInfosDict.from_dataset_card_data(data)["voc"]
    assert info.splits["train"].num_examples == ROWS
    assert info.features["classes"].feature.names == list(load_table("voc").names)
    configs = MetadataConfigs.from_dataset_card_data(data)
    assert configs["voc"]["data_files"] == [{"split": "train", "path": "voc/train-*"}]
    assert configs.get_default_config_name() == "voc"
    folder = stage(tmp_path / "repo", card, voc=voc)
    for config in ([], ["voc"]):
        rows = load_dataset(str(folder), *config, split="train", cache_dir=str(tmp_path / "cache"))
        assert rows.features == info.features
        assert len(rows) == ROWS
        assert rows[0]["mask"].mode == "L"


def test_every_picture_that_a_card_shows_is_there(card, run, report):
    for made in (card, model_card(run, REPO, [report])):
        shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", made.text)
        assert shown
        assert set(shown) == {name for name in made.files if name.startswith("assets/")}
        assert all(made.files[name].startswith(b"\x89PNG") for name in shown)


def test_a_card_names_no_place_of_this_machine(card, run, report, tmp_path_factory):
    for made in (card, model_card(run, REPO, [report])):
        assert str(tmp_path_factory.getbasetemp()) not in made.text
        assert str(ROOT) not in made.text


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("build.json", ("identity", "seed", 4711), "| seed | 4711 |"),
        ("build.json", ("identity", "steps", 50), "| steps | 50 | ours; **not verified** |"),
        ("build.json", ("identity", "steps", 100), "| steps | 100 | a published replication |"),
        ("build.json", ("identity", "guidance_scale", 7.5), "| guidance scale | 7.5 | likely the paper's;"),
        ("build.json", ("identity", "alias_probability", 0.25), "with probability 0.25 | ours;"),
        (
            "build.json",
            ("identity", "scheduler", "class", "EulerScheduler"),
            "| scheduler | EulerScheduler |",
        ),
        ("build.json", ("identity", "scheduler", "beta_start", 0.5), '"beta_start": 0.5'),
        ("build.json", ("identity", "rules", "crf", "iterations", 7), "| dense CRF: iterations | 7 | ours;"),
        (
            "build.json",
            ("identity", "rules", "threshold", "fixed"),
            "to class | fixed | a published replication |",
        ),
        ("build.json", ("identity", "model_version", "sha256:def"), "`sha256:def`"),
        ("build.json", ("versions", "torch", "9.9.9"), "| torch | 9.9.9 |"),
        ("build.json", ("git_commit", "0123abc"), "`0123abc`"),
        ("build.json", ("git_commit", None), "| git commit | not recorded |"),
        ("build.json", ("dtype", "float16"), "float16, cpu, 8"),
        ("report.json", ("rows_with_foreground", 3), "Classes stand in 3 rows"),
        ("report.json", ("foreground", 0.123), "12.3 % of the pixels"),
        ("report.json", ("rejected_attempts", 77), "rejected 77 attempts"),
        ("report.json", ("dropped", {"voc-x": ["cup: its map is empty"]}), "| its map is empty | 1 |"),
    ],
)
def test_what_the_card_of_a_dataset_says_is_recorded(card, voc, no_figures, tmp_path, file, change, said):
    assert said not in card.text
    assert said in dataset_card({"voc": changed(voc, tmp_path, file, *change)}, REPO).text


def test_a_card_of_a_dataset_follows_every_value_of_its_records(voc, no_figures, tmp_path):
    """Each value changed alone changes the card, but for what the rows tell themselves; and each line of its
    tables is changed by one of them.
    """
    copy = shutil.copytree(voc, tmp_path / "voc")
    record = BuildDirectory(voc).record() | {"license": "openrail", "lora_license": "mit"}
    record["captions"] = {"source": "captions.jsonl", "naming_a_class": 77}
    record["identity"] |= {
        "model": "owner/painter", "lora": "owner/lora", "lora_scale": 0.7, "lora_version": "sha256:def",
        "captions": "sha256:abc", "balance": True,
    }  # fmt: skip
    record["identity"]["rules"] |= {"threshold": "fixed", "beta": 0.4}
    report = json.loads((voc / "report.json").read_text())
    report["dropped"] = {"voc-0-00000002": ["cup: its map is empty"]}
    records = {"build.json": record, "report.json": report}
    for file, sound in records.items():
        (copy / file).write_text(json.dumps(sound))
    silent = [("identity", "table_version"), ("rows",), ("reliable",)]
    text, followed = dataset_card({"voc": copy}, REPO).text, set()
    for file, sound in records.items():
        for keys, value in leaves(sound):
            if keys[0] == "table" and keys[1:] not in [("background",), ("ignore",)] and keys[-1] != "name":
                continue  # words and colors, which build.json holds
            new = "remask" if keys == ("command",) else other(value)
            (copy / file).write_text(json.dumps(with_value(sound, keys, new)))
            changed_text = dataset_card({"voc": copy}, REPO).text
            is_silent = keys in silent or keys[0] == "classes" or keys == ("table", "name")
            assert (changed_text == text) == is_silent, (file, keys)
            followed |= rows_of(text, *MADE) - rows_of(changed_text, *MADE)
        (copy / file).write_text(json.dumps(sound))
    assert followed == rows_of(text, *MADE)
    assert len(followed) > 40


MADE = ("painting", "labeling", "", "reason", "sample")  # tables of what a build recorded


def test_the_numbers_of_a_datasets_card_are_those_of_its_rows(card, voc, tmp_path):
    """Counted once more, by way of `datasets`."""
    rows = load_dataset(str(voc), split="train", cache_dir=str(tmp_path))
    names = load_table("voc").names
    masks, trust = ([np.asarray(picture) for picture in rows[column]] for column in ("mask", "reliability"))
    expected = set()
    for k, name in enumerate(names):
        held = [i for i in range(len(rows)) if k in rows[i]["classes"]]
        here = np.concatenate([t[m == k] for m, t in zip(masks, trust, strict=True)])
        reliable = (here == 255).sum() / max(here.size, 1)
        if k == 0:
            expected.add(f"| 0 | {name} |  | {np.mean(np.stack(masks) == 0):.1%} | {reliable:.1%} |  |")
        elif held:
            area = np.mean([np.mean(masks[i] == k) for i in held])
            beside = [sum(n in rows[i]["classes"] for i in held) * (n != k) for n in range(len(names))]
            partner = f"{names[np.argmax(beside)]} ({max(beside)})" if max(beside) else "-"
            expected.add(f"| {k} | {name} | {len(held)} | {area:.1%} | {reliable:.1%} | {partner} |")
    assert {line.replace(" %", "%") for line in rows_of(card.text, "id")} == expected
    assert f"{np.mean(np.stack(trust) == 255):.1%} of all pixels".replace("%", " %") in card.text


def test_a_painter_of_the_hub_is_linked_and_its_license_not_guessed(voc, no_figures, tmp_path):
    other = changed(voc, tmp_path, "build.json", "identity", "model", "owner/painter")
    other = changed(other, tmp_path / "silent", "build.json", "license", None)
    made = dataset_card({"voc": other}, REPO)
    assert "(https://huggingface.co/owner/painter/tree/sha256:abc)" in made.text
    assert "| its license | not recorded |" in made.text
    data = split(made.text)[0]
    assert (data["license"], data["source_models"]) == ("unknown", ["owner/painter"])
    known = changed(other, tmp_path / "known", "build.json", "license", "creativeml-openrail-m")
    assert split(dataset_card({"voc": known}, REPO).text)[0]["license"] == "creativeml-openrail-m"
    lora = changed(known, tmp_path / "lora", "build.json", "identity", "lora", "owner/lora")
    made = dataset_card({"voc": lora}, REPO)
    assert split(made.text)[0]["license"] == ["creativeml-openrail-m", "unknown"]
    assert "| its license | not recorded |" in made.text


def test_a_build_without_report_says_so(voc, no_figures, tmp_path):
    shutil.copytree(voc, tmp_path / "voc")
    (tmp_path / "voc" / "report.json").unlink()
    text = dataset_card({"voc": tmp_path / "voc"}, REPO).text
    assert "What the gate did is not recorded" in text
    assert "Not recorded: the build wrote no report." in text


def test_what_is_no_build_is_one_line(voc, tmp_path):
    with pytest.raises(UserError, match="holds no build"):
        dataset_card({"voc": tmp_path}, REPO)
    shutil.copy(voc / "build.json", tmp_path)
    with pytest.raises(UserError, match="holds no rows"):
        dataset_card({"voc": tmp_path}, REPO)


def test_configurations_stand_beside_one_another(card, voc, tmp_path):
    streets = make_build(tmp_path / "streets", "streets")
    both = dataset_card({"voc": voc, "streets": streets}, REPO)
    later = dataset_card({"streets": streets}, REPO, old=card.text.replace("## Limits", "## Mended"))
    for made in (both, later):
        data = DatasetCard(made.text).data
        assert set(DatasetInfosDict.from_dataset_card_data(data)) == {"voc", "streets"}
        assert MetadataConfigs.from_dataset_card_data(data).get_default_config_name() == "voc"
        for name in ("voc", "streets"):
            assert f"## `{name}`" in made.text
            assert f"| `{name}` | {ROWS} | 21 |" in made.text
        assert "Other configurations: `streets`." in made.text
        assert "Mended" not in made.text
    assert set(later.files) == {"assets/streets-sheet.png", "assets/streets-classes.png"}
    folder = stage(tmp_path / "repo", both, voc=voc, streets=streets)
    rows = load_dataset(str(folder), "streets", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == ROWS


def test_publishing_again_changes_nothing_but_what_is_new(card, voc, no_figures):
    old = card.text + "\nMy own words.\n"
    again = dataset_card({"voc": voc}, REPO, old).text
    assert again == old


def test_the_python_of_a_datasets_card_runs(card, voc, tmp_path):
    folder = stage(tmp_path / "repo", card, voc=voc)
    code = "\n".join(blocks_of(card.text, "python"))
    assert code.count(REPO) == 2
    check = "\nimport sys\nassert not any(name.startswith('attn2mask') for name in sys.modules)\n"
    said = run_python(code.replace(REPO, str(folder)) + check, tmp_path)
    assert "voc-0-00000001" in said


def test_the_commands_of_a_datasets_card_run(card, voc, tmp_path):
    again, learn = commands_of(card.text)
    config = parse(BuildConfig, again[2:], "build", "")
    record = BuildDirectory(voc).record()
    now = build.identity(config, load_table("voc"), build.with_options(load_rules(config.preset), config), None)
    assert json.loads(json.dumps(now)) == {k: v for k, v in record["identity"].items() if k in now}
    assert set(record["identity"]) - set(now) == set(FACTS)
    assert config.num_images == ROWS
    launch = launch_command_parser().parse_args(learn[2:])
    assert (launch.module, launch.training_script) == (True, "attn2mask.training.train")
    arguments = [word.replace(REPO, str(voc)) for word in launch.training_script_args]
    arguments[arguments.index("--output-dir") + 1] = str(tmp_path / "segmenter")
    quick = [
        "--max-steps",
        "1",
        "--batch-size",
        "2",
        "--crop-size",
        "32",
        "--workers",
        "0",
        "--report-to",
        "none",
    ]
    assert train.main([*arguments, *quick]) == 0


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": "agreement"},
        {"reliability": "margin", "graded": True},
        {"threshold": "fixed", "beta": 0.4},
    ],
)
def test_the_commands_give_the_rules_of_the_record(voc, preset, options):
    rules = replace(load_rules(preset), **options)
    record = BuildDirectory(voc).record() | {"identity": BuildDirectory(voc).record()["identity"]}
    (command,) = remake(record, rules, "voc")
    config = parse(BuildConfig, commands_of(f"```console\n$ {command}\n```\n")[0][2:], "build", "")
    assert build.with_options(load_rules(config.preset), config) == rules
    first, second = remake(record | {"command": "remask"}, rules, "voc")
    painted, masked = commands_of(f"```console\n$ {first}\n$ {second}\n```\n")
    assert load_rules(parse(BuildConfig, painted[2:), "build", "").preset].map_sides == rules.map_sides
    config = parse(RemaskConfig, masked[2:], "remask", "")
    assert build.with_options(load_rules(config.preset), config).crf == rules.crf
    odd = replace(rules, crf=replace(rules.crf, iterations=99))
    assert remake(record, odd, "voc") is None


def test_where_values_come_from():
    assert origin("alias_probability", 0.5) == PAPER
    assert origin("rules.steps", [0.5, 0.5]) == REPLICATION
    assert origin("rules.map_sides", [16, 32]) == LIKELY
    assert origin("rules.crf.gt_prob", 0.7) == origin("what nobody states", None) == OURS


# The card of a model


def test_metadata_of_a_model_is_what_the_hub_reads(run, report):
    made = model_card(run, REPO, [report])
    data = ModelCard(made.text).data
    assert (data.pipeline_tag, data.library_name) == ("image-segmentation", "transformers")
    assert data.license == "unknown"  # of a backbone that is a folder here, nothing is known
    assert {"deeplabv3plus", "custom_code"} <= set(data.tags)
    assert (data.base_model, data.datasets) == (None, None)
    found = json.loads(report.read_text())
    values = {(result.metric_type, result.metric_name): result.metric_value for result in data.eval_results}
    assert values["mean_iou", "mean IoU (network A)"] == found["networks"]["a"]["mean_iou"]
    assert values["mean_iou", "mean IoU (both networks)"] == found["mean_iou"]
    assert {result.dataset_name for result in data.eval_results} == {"voc"}


def test_the_hubs_own_results_are_of_datasets_of_the_hub_alone(run, report, no_figures, tmp_path):
    made = model_card(run, REPO, [report])
    assert not [name for name in made.files if name.startswith(".eval_results")]
    assert "told of it by the model-index alone" in made.text
    found = json.loads(report.read_text())
    found["evaluated"]["hub"] = "owner/rows"
    (tmp_path / "report.json").write_text(json.dumps(found))
    made = model_card(run, REPO, [tmp_path / "report.json"])
    (entry,) = parse_eval_result_entries(yaml.safe_load(made.files[".eval_results/report.yaml"]))
    assert (entry.dataset_id, entry.value) == ("owner/rows", found["networks"]["a"]["mean_iou"])
    assert "model-index alone" not in made.text


def test_backbone_and_rows_of_the_hub_are_named(run, no_figures, tmp_path):
    other = changed(run, tmp_path, "training_config.json", "on_hub", "backbone", "microsoft/resnet-50")
    other = changed(other, tmp_path / "2", "training_config.json", "on_hub", "dataset", "owner/rows")
    other = changed(other, tmp_path / "3", "training_config.json", "rows", {"revision": "0a1b"})
    other = changed(other, tmp_path / "4", "config.json", "backbone_from_scratch", False)
    made = model_card(other, REPO)
    data = split(made.text)[0]
    assert (data["base_model"], data["datasets"], data["license"]) == (
        "microsoft/resnet-50", ["owner/rows"], "unknown",
    )  # fmt: skip
    assert "[owner/rows](https://huggingface.co/datasets/owner/rows/tree/0a1b)" in made.text
    assert "painted" not in split(made.text)[1].split("## Use")[0]
    from_scratch = changed(other, tmp_path / "5", "config.json", "backbone_from_scratch", True)
    assert "base_model" not in split(model_card(from_scratch, REPO).text)[0]


def test_what_was_learnt_from_is_what_the_training_recorded(run, voc, no_figures, tmp_path):
    """Not what lies in the folder now."""
    recorded = json.loads((run / "training_config.json").read_text())
    build = BuildDirectory(voc).record()
    assert recorded["rows"] == {name: build[name] for name in ("num_images", "identity", "license")}
    assert recorded["on_hub"] == {"dataset": None, "eval_dataset": None, "backbone": None}
    text = model_card(run, REPO).text
    assert f"{ROWS} pictures that `embedded` painted" in text
    moved = changed(run, tmp_path, "training_config.json", "config", "dataset", str(tmp_path / "gone"))
    expected = text.replace("--dataset voc", "--dataset gone").replace(
        "| rows | `voc` |", "| rows | `gone` |"
    )
    learnt = "These are the rows that it learnt from: they do not tell how it does on others.\n\n"
    assert model_card(moved, REPO).text == expected.replace(learnt, "")


def test_a_run_does_not_go_on_with_other_rows(run, tmp_path):
    config = TrainConfig(
        **json.loads((run / "training_config.json").read_text())["config"] | {"resume": True}
    )
    rows = train.rows_record(config.dataset)
    assert train.steps_done(run, config, rows) == 4
    for other_rows in (rows | {"num_images": ROWS + 1}, {}):
        with pytest.raises(UserError, match="began with other rows"):
            train.steps_done(run, config, other_rows)
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "run.json").write_text(json.dumps(config.identity()))  # of a run from before rows were recorded
    assert train.steps_done(copy, config, rows) == 4


def test_the_license_of_a_model_is_that_of_rows_and_backbone_of_ones_own(run, no_figures, tmp_path):
    def license(folder: Path) -> str:
        return split(model_card(folder, REPO).text)[0]["license"]

    assert license(run) == "unknown"
    own = changed(run, tmp_path, "training_config.json", "settings", "backbone", "embedded")
    assert license(own) == "apache-2.0"
    for number, keys in enumerate(
        [("identity", "model", "owner/it"), ("identity", "lora", "x"), ("license", None)]
    ):
        other = changed(own, tmp_path / str(number), "training_config.json", "rows", *keys)
        assert license(other) == "unknown"


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("training_config.json", ("seconds", 4000), "| time | 1 h 6 min |"),
        ("training_config.json", ("hardware", "2 x NVIDIA H100"), "| hardware | 2 x NVIDIA H100 |"),
        ("training_config.json", ("step", 3), "| steps | 3 |"),
        ("training_config.json", ("config", "seed", 5), "| seed | 5 |"),
        ("training_config.json", ("settings", "batch_size", 12), "| batch size | 12 | the paper, Table 1 |"),
        (
            "training_config.json",
            ("settings", "clip", 0.8),
            "| clip | 0.8 | ours; **not verified** |",
        ),
        ("training_config.json", ("settings", "mixing", False), "| mixing | no | switched off here |"),
        ("training_config.json", ("versions", "torch", "9.9"), "| torch | 9.9 |"),
        ("config.json", ("class_table", "other"), "`other`"),
        ("metrics.json", ("networks", "a", "mean_iou", 0.4321), "| **mean IoU** | 43.2 |"),
        ("metrics.json", ("networks", "a", "per_class_iou", "cat", 0.9876), "| cat | 98.8 |"),
        ("metrics.json", ("networks", "a", "num_images", 1449), "1,449 pictures"),
        ("metrics.json", ("networks", "a", "mean_iou", 0.25), "\n      value: 0.25\n"),
    ],
)
def test_what_the_card_of_a_model_says_is_recorded(run, no_figures, tmp_path, file, change, said):
    assert said not in told(model_card(run, REPO))
    assert said in told(model_card(changed(run, tmp_path, file, *change), REPO))


def test_a_card_of_a_model_follows_every_value_of_its_records(run, report, no_figures, tmp_path):
    """As for datasets. Options of the run itself, and what the rows' own card says, are silent."""
    copy = shutil.copytree(run, tmp_path / "run")
    training = json.loads((run / "training_config.json").read_text())
    training["settings"] |= {"optimizer": "sgd", "backbone": "embedded"}
    training["rows"]["revision"] = "0a1b"
    hubs = {"dataset": "owner/rows", "eval_dataset": None, "backbone": "owner/bone"}
    found = json.loads(report.read_text())
    looks = {"split": "val", "limit": 4, "scales": "1,2", "flip": True, "window": 64, "hub": "owner/scores"}
    found["evaluated"] |= looks
    for figures in (found, *found["networks"].values()):
        figures["per_class_iou"] = {n: 0.01 * k for k, n in enumerate(figures["per_class_iou"], start=1)}
    config = json.loads((run / "config.json").read_text()) | {"backbone_from_scratch": False}
    kept = ("model_type", "id2label", "class_table", "backbone_from_scratch")
    config["backbone_config"] = {"model_type": config["backbone_config"]["model_type"]}
    records = {
        "training_config.json": training | {"on_hub": hubs}, "config.json": config, "report.json": found,
    }  # fmt: skip
    folder_alone = training | {"on_hub": {}}  # of an own backbone: then the license of the rows counts
    silent = re.compile(
        "table|on_hub/eval_dataset|(num_images|networks/b/num_images)|evaluated/(checkpoint|table|out|seconds)"
        "|config/(output_dir|workers|eval_.*|micro_batch|checkpoint_every|report_to|resume|push_to_hub)"
        "|rows/identity/(?!model$|model_version|seed|rules/threshold|rules/reliability).*"
    )

    def card(records: dict[str, dict]) -> str:
        for file, record in records.items():
            (copy / file).write_text(json.dumps(record))
        return told(model_card(copy, REPO, [copy / "report.json"]))

    bases = [records, records | {"training_config.json": folder_alone}]
    texts, followed = [card(base) for base in bases], set()
    for file, sound in records.items():
        for keys, value in leaves(sound):
            if file == "config.json" and keys[0] not in (*kept, "backbone_config"):
                continue  # of the architecture
            now = [card(base | {file: with_value(base[file], keys, other(value))}) for base in bases]
            is_silent = silent.fullmatch("/".join(map(str, keys))) is not None
            assert (now == texts) == is_silent, (file, keys)
            for before, after in zip(texts, now, strict=True):
                followed |= rows_of(before, *TRAINED) - rows_of(after, *TRAINED)
    (copy / "log.jsonl").write_text('{"step": 1, "images_per_second": 77.5}\n')
    followed |= rows_of(texts[1], *TRAINED) - rows_of(card(bases[1]), *TRAINED)
    assert followed == set().union(*(rows_of(text, *TRAINED) for text in texts))


TRAINED = ("", "setting", "%", "class")  # tables of what training and evaluation recorded


def told(made) -> str:
    """The words of a card and of the results for the Hub."""
    return made.text + "".join(made.files[name].decode() for name in made.files if name.endswith(".yaml"))


def test_a_run_alone_shows_its_own_scores_and_pictures(run, tmp_path):
    made = model_card(run, REPO)
    assert "Measured by the training itself, at step 4." in made.text
    learnt = "These are the rows that it learnt from"
    assert learnt in made.text
    elsewhere = changed(run, tmp_path, "training_config.json", "config", "eval_dataset", "VOCdevkit/VOC2012")
    assert learnt not in model_card(elsewhere, REPO).text
    assert "| momentum |" not in made.text  # AdamW does not read it
    last = max((run / "predictions").glob("*.png"))
    assert made.files["assets/predictions.png"] == last.read_bytes()
    assert {"assets/training.png", "assets/metrics-iou.png"} <= set(made.files)


def test_the_curves_are_those_of_the_log():
    log = [{"step": 20, "loss_a": 3.0, "loss_b": 2.5}, {"step": 40, "loss_a": 1.0, "loss_b": 1.5}]
    log.append({"step": 40, "eval_mean_iou": 0.25})
    losses, scores = curves(log, {"warmup": 0.25, "max_steps": 40, "mixing": True}).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert drawn["network A"] == [[20, 3], [40, 1]]
    assert drawn["network B"] == [[20, 2.5], [40, 1.5]]
    assert drawn["end of the warm-up"][0][0] == 10
    assert scores.lines[0].get_xydata().tolist() == [[40, 25]]
    assert len(curves(log[:1], {}).axes) == 1


def test_records_that_are_missing_are_said_to_be(run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    made = model_card(tmp_path, REPO)
    assert made.files == {}
    for said in ("How it was trained is not recorded", "finds its classes is not recorded"):
        assert said in made.text
    data = split(made.text)[0]
    assert "model-index" not in data
    assert data["license"] == "unknown"


def test_results_of_former_weights_do_not_stay(run, report, no_figures, tmp_path):
    old = model_card(run, REPO, [report]).text + "\nMine.\n"
    assert model_card(run, REPO, [report], old).text == old
    shutil.copy(run / "config.json", tmp_path)
    text = model_card(tmp_path, REPO, old=old).text
    assert "model-index" not in split(text)[0]
    assert text.rstrip().endswith("Mine.")


@pytest.mark.parametrize("content", ["{}", "[", '{"mean_iou": 1}'])
def test_what_is_no_report_is_one_line(run, tmp_path, content):
    (tmp_path / "it.json").write_text(content)
    with pytest.raises(UserError, match=r"it\.json") as caught:
        model_card(run, REPO, [tmp_path / "it.json"])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"holds no config\.json"):
        model_card(tmp_path, REPO)


def test_the_python_of_a_models_card_runs(run, report, tmp_path, capsys):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "picture.png")
    first, second, third = blocks_of(model_card(run, REPO, [report]).text, "python")
    block_ours = "import sys\nsys.modules['attn2mask'] = None\n"
    alone = run_python((block_ours + first + second).replace(REPO, str(run)), tmp_path)
    assert "(80, 60)" in alone
    exec(third.replace(REPO, str(run)), {})
    assert (
        "DeepLabV3PlusForSemanticSegmentation DeepLabV3PlusForSemanticSegmentation" in capsys.readouterr().out
    )


def test_the_commands_of_a_models_card_run(run, report):
    measure, learn = commands_of(model_card(run, REPO, [report]).text)
    config = parse(EvaluateConfig, measure[2:], "evaluate", "")
    assert (config.checkpoint, config.dataset, config.out) == (REPO, "voc", "report.json")
    launch = launch_command_parser().parse_args(learn[2:])
    config = parse(TrainConfig, launch.training_script_args, "train", "")
    recorded = json.loads((run / "run.json").read_text())
    del recorded["rows"]
    assert config.identity() == recorded | {"dataset": "voc", "backbone": "backbone"}


# The card of an adapter


@pytest.fixture(scope="module")
def adapted(tiny_model, tmp_path_factory) -> Path:
    """The output directory of an adaptation of one step."""
    folder = tmp_path_factory.mktemp("adaptation")
    (folder / "frames").mkdir()
    for index in range(4):
        scene = draw_scene("streets", np.random.default_rng([6, index]), (64, 128))
        Image.fromarray(scene.image).save(folder / "frames" / f"{index}.png")
    adapt.adapt(
        AdaptConfig(
            data=str(folder / "frames"), output_dir=str(folder / "adapter"), model=str(tiny_model("sd15")),
            instance_prompt="a photo of a sks street", max_steps=1, batch_size=1, rank=2, crop_size=64,
            sample_every=0, report_to="none",
        )
    )  # fmt: skip
    return folder / "adapter"


@pytest.fixture
def adapter(adapted, tmp_path) -> Path:
    """One of a painter of the Hub, with samples."""
    folder = shutil.copytree(adapted, tmp_path / "adapter")
    record = json.loads((folder / "training_config.json").read_text())
    record |= {"base_model": "owner/painter", "license": "openrail", "git_commit": "0a1b"}
    record |= {"prior": {"class_prompt": "a street", "pictures": 7}}
    record["settings"] |= {"prior_weight": 0.5}
    (folder / "training_config.json").write_text(json.dumps(record))
    (folder / "samples").mkdir(exist_ok=True)
    for step in (1, 2):
        (folder / "samples" / f"step-{step:06d}.png").write_bytes(
            encode_png(np.full((2, 2, 3), step, np.uint8))
        )
    return folder


def test_the_card_of_an_adapter(adapter):
    record = json.loads((adapter / "training_config.json").read_text())
    made = adapter_card(adapter, "me/it")
    data = ModelCard(made.text).data
    assert (data.base_model, data.library_name, data.license) == ("owner/painter", "diffusers", "openrail")
    assert (data.pipeline_tag, data.instance_prompt) == ("text-to-image", "a photo of a sks street")
    for said in (
        f"| its revision | `{record['base_version']}` |",
        "| rank of the weights | 2 |",
        "| pictures | 4 of frames, 0 with a caption |",
        "| power | 1 | the paper, Table 2 |",
        "| rank | 2 | ours; **not verified** |",
    ):
        assert said in made.text
    assert made.files == {"assets/samples.png": (adapter / "samples" / "step-000002.png").read_bytes()}
    build_it, learn = commands_of(made.text)
    config = parse(BuildConfig, build_it[2:], "build", "")
    assert (config.table, config.model, config.lora) == ("cityscapes", "owner/painter", "me/it")
    launch = launch_command_parser().parse_args(learn[2:])
    assert launch.training_script == "attn2mask.training.adapt"
    config = parse(AdaptConfig, launch.training_script_args, "adapt", "")
    assert asdict(config.settings()) == record["settings"]
    assert (config.data, config.model, config.revision) == ("frames", "owner/painter", record["base_version"])
    assert (config.class_prompt, config.prior_images) == ("a street", 7)


def test_a_card_of_an_adapter_follows_every_value_of_its_record(adapter):
    file = adapter / "training_config.json"
    record, text, followed = json.loads(file.read_text()), adapter_card(adapter, "me/it").text, set()
    tables = ("", "setting")
    for keys, value in leaves(record):
        new = "cityscapes" if keys == ("preset",) else other(value)
        file.write_text(json.dumps(with_value(record, keys, new)))
        changed_text = adapter_card(adapter, "me/it").text
        is_silent = re.fullmatch(SILENT_OF_ADAPTERS, "/".join(map(str, keys))) is not None
        assert (changed_text == text) == is_silent, keys
        followed |= rows_of(text, *tables) - rows_of(changed_text, *tables)
    of_weights = {
        line for line in rows_of(text, "") if line.startswith(("| tensors |", "| rank of the weights |"))
    }
    assert followed == rows_of(text, *tables) - of_weights


SILENT_OF_ADAPTERS = (
    "base_fingerprint|revision|loss_curve|data/(digest|skipped.*)"  # for `--resume` and `--lora`
)


def test_the_python_of_an_adapters_card_runs(tiny_model, tiny_lora, tmp_path, monkeypatch):
    shutil.copytree(tiny_lora, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for base in (str(tiny_model("sd15")), "embedded"):
        config = {"base_model": base, "instance_prompt": 'a "red" street'}
        (tmp_path / "training_config.json").write_text(json.dumps(config))
        made = adapter_card(tmp_path, "me/it")
        assert "base_model" not in split(made.text)[0]
        (code,) = blocks_of(made.text, "python")
        if base != "embedded":  # its U-Net is another one, which these weights do not fit
            name = f'"{Path(base).name}"'
            code = code.replace("me/it", str(tmp_path)).replace(name, f'"{base}"')
            exec(code.replace(").images", ", num_inference_steps=1).images"), {})
            assert (tmp_path / "picture.png").exists()
        compile(code, "card", "exec")


def test_an_adapter_without_weights_or_base_model_is_one_line(adapter):
    (adapter / "training_config.json").write_text("{}")
    with pytest.raises(UserError, match="base_model"):
        adapter_card(adapter, "me/it")
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/painter", "r": 4}')
    made = adapter_card(adapter, "me/it").text
    assert "| rank | 4 |" in made
    assert "## Training" not in made
    assert split(made)[0]["license"] == "unknown"
    (adapter / "pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="can't be read"):
        adapter_card(adapter, "me/it")
    (adapter / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(UserError, match="holds no pytorch_lora_weights"):
        adapter_card(adapter, "me/it")
