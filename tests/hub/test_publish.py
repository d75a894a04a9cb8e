"""Publishing, against a Hub on this machine: whole or not at all, nothing twice, and loaded by anyone."""

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard
from loopback_hub import READER, TOKEN, Fault, File, LoopbackHub, Repo
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig

from attn2mask.builders import build
from attn2mask.builders.build import BuildConfig
from attn2mask.builders.provenance import license_of
from attn2mask.builders.seals import sealed, with_seal
from attn2mask.builders.shards import BuildDirectory, plan
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cards.markdown import Card, split
from attn2mask.hub.cli import main
from attn2mask.training.checkpoint import load_checkpoint, make_processor, save_checkpoint
from attn2mask.training.models import build_network

DATA, MODEL = "org/data", "org/model"


def make_checkpoint(folder: Path, architecture: str, seed: int = 0, peer: bool = True) -> Path:
    """A tiny checkpoint, and what a training leaves beside it."""
    backbone = folder / "backbone"
    ResNetConfig(
        layer_type="basic", embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4
    ).save_pretrained(backbone)
    networks = [build_network(architecture, str(backbone), load_table("voc"), seed + n) for n in range(2)]
    shutil.rmtree(backbone)
    config = {"table": "voc", "step": 3, "options": {"architecture": architecture}}
    save_checkpoint(folder, networks[0], networks[1] if peer else None, make_processor(32), config)
    for name in ("state.safetensors", "log.jsonl", "best/model.safetensors", "events.out.tfevents.1"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory, make_build) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("builds")
    return {name: make_build(folder / name, name, 5, scores=False) for name in ("voc", "kitchen")}


@pytest.fixture
def voc(built, tmp_path) -> Path:
    """A build of one's own."""
    return shutil.copytree(built["voc"], tmp_path / "voc")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_checkpoint(folder / name, name) for name in ("deeplabv3plus", "upernet")}


@pytest.fixture(autouse=True)
def small_figures(monkeypatch) -> None:
    """In place of those that take seconds, which tests/hub/cards checks."""
    for name in ("hub.cards.dataset.class_chart", "builders.show.sheet"):
        monkeypatch.setattr(f"attn2mask.{name}", lambda *_: Image.new("RGB", (4, 4)))


def fresh(hub: LoopbackHub, home: Path, code: str, token: str | None = None) -> str:
    """What a new process prints that has no cache, and can't import this package."""
    program = (
        f"import sys\nsys.modules['attn2mask'] = None\n{code}\n"
        "assert not [name for name in sys.modules if name.startswith('attn2mask.')]\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=home,
        env=hub.environment(home / "hf", token),
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def rows_of(path: Path) -> list[dict]:
    directory = BuildDirectory(path)
    record = directory.record()
    return [row for shard in plan(record["num_images"], 2) for row in directory.rows(shard)]


def expected(name: str, path: Path) -> dict[str, bytes]:
    """The files of a build as they stand in the repository."""
    files = {f"{name}/{file.name}": file.read_bytes() for file in sorted((path / "data").iterdir())}
    records = ("build.json", "build.yaml", "id2label.json", "report.json")
    return files | {f"{name}/{file}": (path / file).read_bytes() for file in records}


# What lies outside the folder stays there.


def refused_without_a_request(hub, publish, kind: str, folder: Path, *messages: str) -> None:
    status, _, error = publish(kind, folder, DATA)
    assert status == 2
    assert all(message in error for message in messages), error
    assert not hub.log


@pytest.mark.parametrize(
    "name",
    ["build.json", "build.yaml", "report.json", "remask.yaml", "data/train-00000.parquet", "data", "else/x"],
)
def test_a_link_that_leads_out_of_a_build_is_refused(hub, publish, voc, tmp_path, name):
    """Also a link to a folder, and one that the build does not need."""
    file, outside = voc / name, tmp_path / "outside"
    file.parent.mkdir(exist_ok=True)
    if file.exists():
        file.rename(outside)
    file.symlink_to(outside)  # a link to nothing, where the build had no such file
    refused_without_a_request(hub, publish, "dataset", voc, f"{file} is a link that leads outside {voc}: ")


@pytest.mark.parametrize(
    "name",
    [
        "training_config.json",
        "train.yaml",
        "config.json",
        "model.safetensors",
        "model-extra.safetensors",
        "deeplabv3plus.py",
        "peer/model.safetensors",
        "peer",
        "log.jsonl",
        "metrics.json",
        "metrics_images.png",
        "predictions/step-1.png",
    ],
)
def test_a_link_that_leads_out_of_a_checkpoint_is_refused(hub, publish, trained, tmp_path, name):
    folder = shutil.copytree(trained["deeplabv3plus"], tmp_path / "run")
    file, outside = folder / name, tmp_path / "outside"
    file.parent.mkdir(exist_ok=True)
    if file.exists():
        file.rename(outside)
    else:
        outside.write_bytes(b"secret")
    file.symlink_to(Path("..") / ("../outside" if "/" in name else "outside"))
    refused_without_a_request(hub, publish, "model", folder, f"{file} is a link that leads outside {folder}")


def test_a_link_inside_the_folder_and_a_link_to_the_folder_are_followed(hub, publish, voc, tmp_path):
    (voc / "report.json").rename(voc / "report-1.json")
    (voc / "report.json").symlink_to("report-1.json")
    (tmp_path / "link").symlink_to(voc)
    assert publish("dataset", tmp_path / "link", DATA)[0] == 0
    assert hub.files("dataset", DATA)["voc/report.json"] == (voc / "report-1.json").read_bytes()


def test_a_pipe_is_not_read(hub, publish, voc):
    (voc / "report.json").unlink()
    os.mkfifo(voc / "report.json")
    refused_without_a_request(hub, publish, "dataset", voc, "report.json is neither a file nor a folder")


def test_a_license_and_datasets_can_be_stated(hub, publish, trained):
    options = ("--license", "mit", "--dataset", "org/rows", "org/more")
    assert publish("model", trained["upernet"], MODEL, *options)[0] == 0
    data, _ = split(hub.files("model", MODEL)["README.md"].decode())
    assert (data["license"], data["datasets"]) == ("mit", ["org/rows", "org/more"])
    hub.log.clear()
    status, _, error = publish("model", trained["upernet"], MODEL, "--dataset", "data/../rows")
    assert (status, "--dataset data/../rows: a dataset of the Hub has a name such as" in error) == (2, True)
    assert not hub.log


def test_links_beside_a_report_are_refused(hub, publish, trained, tmp_path):
    """The report itself may be a link, because the user names it."""
    figures = {"mean_iou": 0.5, "per_class_iou": {"cat": 0.5}, "pixel_accuracy": 0.6, "num_images": 3}
    (tmp_path / "real.json").write_text(json.dumps(figures | {"networks": {}}))
    (tmp_path / "scores").mkdir()
    report = tmp_path / "scores" / "of.json"
    report.symlink_to(tmp_path / "real.json")
    assert publish("model", trained["upernet"], MODEL, "--metrics", report)[0] == 0
    assert "metrics/of.json" in hub.files("model", MODEL)
    hub.log.clear()
    for name in ("of.yaml", "of_images.png"):
        (tmp_path / "secret").write_text("password: 1")
        (report.parent / name).symlink_to(tmp_path / "secret")
        status, _, error = publish("model", trained["upernet"], MODEL, "--metrics", report)
        assert (status, f"{name} is a link that leads outside" in error) == (2, True), error
        (report.parent / name).unlink()
    assert not hub.log


@pytest.mark.parametrize("part", ["", "peer"])
@pytest.mark.parametrize(
    "named",
    [
        "{outside}/secret.X",
        "../secret.X",
        "secret.X",
        "other/repository--secret.X",
        "deeplabv3plus/../secret.X",
        "deeplabv3plus.secret.X",
        ["secret.X", None],
        "",
    ],
)
def test_code_that_this_project_did_not_write_is_refused(hub, publish, trained, tmp_path, part, named):
    folder = shutil.copytree(trained["deeplabv3plus"], tmp_path / "run")
    for file in (tmp_path / "secret.py", folder / "secret.py", folder / "peer" / "secret.py"):
        file.write_text("password = 1")
    config = json.loads((folder / part / "config.json").read_text())
    config["auto_map"]["AutoModel"] = named.format(outside=tmp_path) if isinstance(named, str) else named
    (folder / part / "config.json").write_text(json.dumps(config))
    refused_without_a_request(hub, publish, "model", folder, "names the code ", "in auto_map")


def test_only_weights_that_are_read_are_published(hub, publish, trained, tmp_path):
    folder = shutil.copytree(trained["upernet"], tmp_path / "run")
    for name in ("model-extra.safetensors", "model-00001-of-00002.safetensors", "modelling.safetensors"):
        shutil.copy(folder / "model.safetensors", folder / name)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-extra.safetensors"}}')
    assert publish("model", folder, MODEL)[0] == 0
    weights = {path for path in hub.files("model", MODEL) if "safetensors" in path}
    assert weights == {"model.safetensors", "peer/model.safetensors"}


def split_weights(folder: Path) -> tuple[dict[str, str], set[str]]:
    """Weights in two parts with an index; returns the part of each tensor and the names of the files."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    record = json.loads((folder / "training_config.json").read_text())
    del record["weights"], record["seal"]
    (folder / "training_config.json").write_text(json.dumps(record))
    places = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places, {*parts, "model.safetensors.index.json"}


def test_weights_in_parts_are_those_of_the_index(hub, publish, trained, tmp_path):
    folder = shutil.copytree(trained["upernet"], tmp_path / "run")
    places, files = split_weights(folder)
    shutil.copy(folder / min(files), folder / "model-extra.safetensors")
    assert publish("model", folder, MODEL)[0] == 0
    published = {path for path in hub.files("model", MODEL) if "safetensors" in path}
    assert published == files | {"peer/model.safetensors"}
    secret = shutil.copy(folder / places[min(places)], tmp_path / "secret.safetensors")
    hub.log.clear()
    for place in ("../secret.safetensors", str(secret)):
        index = {"metadata": {}, "weight_map": places | {min(places): place}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        refused_without_a_request(hub, publish, "model", folder, f"index.json names {place!r}")


# Datasets.


def test_two_configs_load_for_anyone(hub, publish, built, tmp_path):
    """Plain, by name and streaming, in a process with an empty cache and without this package."""
    status, out, _ = publish("dataset", built["voc"], built["kitchen"], DATA)
    assert status == 0
    assert f"published {DATA}: " in out
    assert 'next: load_dataset("org/data", "voc", split="train")' in out
    files = hub.files("dataset", DATA)
    wanted = expected("voc", built["voc"]) | expected("kitchen", built["kitchen"])
    assert {path: files[path] for path in wanted} == wanted
    rest = {path for path in files if path not in wanted}
    assert {path.split("/")[0] for path in rest} == {".gitattributes", "README.md", "assets", "id2label.json"}
    assert files["id2label.json"] == files["voc/id2label.json"]  # of the default config
    assert len(hub.repos["dataset", DATA].commits) == 2

    code = f"""{SHOWN}
plain = load_dataset("{DATA}", split="train")
assert plain[0]["image"].mode == "RGB" and plain[0]["mask"].mode == plain[0]["label"].mode == "P"
assert plain.features["classes"].feature.names[1] == "aeroplane"
print(json.dumps([shown(plain), shown(load_dataset("{DATA}", "kitchen", split="train")),
                  shown(load_dataset("{DATA}", "voc", split="train", streaming=True))]))
"""
    found = json.loads(fresh(hub, tmp_path, code).splitlines()[-1])
    assert found == [shown_rows(built[name]) for name in ("voc", "kitchen", "voc")]


def test_the_script_of_transformers_for_segmentation_reads_the_rows(hub, publish, built, tmp_path):
    """`run_semantic_segmentation.py` names no config, splits off rows to validate, and reads the columns
    `image` and `label` and the file id2label.json. This process reads as it does.
    """
    assert publish("dataset", built["voc"], built["kitchen"], DATA)[0] == 0
    code = f"""
import json
import numpy as np
from datasets import load_dataset
from huggingface_hub import hf_hub_download
dataset = load_dataset("{DATA}")
columns = dataset["train"].column_names
assert "pixel_values" not in columns and "annotation" not in columns and "validation" not in dataset
split = dataset["train"].train_test_split(0.4)
id2label = json.load(open(hf_hub_download("{DATA}", "id2label.json", repo_type="dataset")))
id2label = {{int(k): v for k, v in id2label.items()}}
read = {{}}
for example in [*split["train"], *split["test"]]:
    read["image " + example["sample_id"]] = np.array(example["image"].convert("RGB"))
    read["label " + example["sample_id"]] = np.array(example["label"])
np.savez("read.npz", **read)
print(json.dumps([[len(split["train"]), len(split["test"])], list(id2label), list(id2label.values())]))
"""
    sizes, ids, names = json.loads(fresh(hub, tmp_path, code).splitlines()[-1])
    assert sizes == [3, 2]
    assert ids == list(range(21))
    assert tuple(names) == load_table("voc").names
    read, processor, ignored = np.load(tmp_path / "read.npz"), make_processor(None), 0
    assert not processor.do_reduce_labels
    assert len(read) == 10
    for row in rows_of(built["voc"]):
        mask, trust = (np.asarray(Image.open(io.BytesIO(row[n]["bytes"]))) for n in ("mask", "reliability"))
        expected = np.where(trust >= 128, mask, 255)
        image, label = (read[f"{name} {row['sample_id']}"] for name in ("image", "label"))
        inputs = processor(image, label, return_tensors="np")
        assert inputs["pixel_values"].shape == (1, 3, 64, 64)
        np.testing.assert_array_equal(inputs["labels"], expected[None])
        ignored += np.count_nonzero((inputs["labels"][0] == 255) & (mask != 255))
    assert ignored  # pixels that the mask alone would label


def test_id2label_is_that_of_the_default_config(hub, publish, voc, make_build, tmp_path):
    """Also if another config is published later. A file that was changed is refused."""
    assert publish("dataset", voc, DATA)[0] == 0
    streets = make_build(tmp_path / "streets", "cityscapes", 2, like="cityscapes", scores=False)
    assert publish("dataset", streets, DATA)[0] == 0
    files = {path: json.loads(file) for path, file in hub.files("dataset", DATA).items() if "id2l" in path}
    assert set(files) == {f"{folder}id2label.json" for folder in ("", "voc/", "cityscapes/")}
    assert files["id2label.json"] == files["voc/id2label.json"]
    assert files["id2label.json"]["20"] == "tvmonitor"
    assert files["cityscapes/id2label.json"]["0"] == "road"
    (voc / "id2label.json").write_text('{"0": "cat"}')
    hub.log.clear()
    refused_without_a_request(hub, publish, "dataset", voc, "id2label.json is not as it was written")
    (voc / "id2label.json").unlink()  # the names are those of the record
    assert publish("dataset", voc, DATA)[0] == 0
    assert json.loads(hub.files("dataset", DATA)["id2label.json"]) == files["id2label.json"]


SHOWN = """
import hashlib, json
from datasets import load_dataset, Image
def shown(rows):
    for column in ("image", "mask", "label", "reliability"):
        rows = rows.cast_column(column, Image(decode=False))
    digest = lambda v: hashlib.sha256(v["bytes"]).hexdigest() if isinstance(v, dict) else v
    return [{name: digest(value) for name, value in row.items()} for row in rows]
"""


def shown_rows(path: Path) -> list[dict]:
    """The rows of a build as `SHOWN` shows them."""
    return [
        {k: hashlib.sha256(v["bytes"]).hexdigest() if isinstance(v, dict) else v for k, v in row.items()}
        for row in rows_of(path)
    ]


def test_streets_and_many_classes_stand_beside_voc(hub, publish, built, make_build, tmp_path):
    """Configs without background and with masks of 16 bits, published later: all load, and the card speaks of
    each, but learns nothing of one from another.
    """
    tables = {"cityscapes": "cityscapes", "imagenet_s_300": "imagenet_s_300"}
    builds = {
        name: make_build(tmp_path / name, name, 3, like=like, scores=False) for name, like in tables.items()
    }
    assert publish("dataset", built["voc"], DATA)[0] == 0
    assert publish("dataset", *builds.values(), DATA)[0] == 0
    code = f"""{SHOWN}
import numpy
for name, mode, ignored in (("cityscapes", "P", 255), ("imagenet_s_300", "I;16", None)):
    rows = load_dataset("{DATA}", name, split="train")
    ids = numpy.array(rows[0]["mask"])
    assert rows[0]["mask"].mode == mode and rows.features["mask"].mode == mode
    assert ids.max() == max([ignored or 0, *rows[0]["classes"]]), ids.max()
    stream = load_dataset("{DATA}", name, split="train", streaming=True)
    for one, other in zip(rows, stream, strict=True):
        assert numpy.array_equal(numpy.array(one["mask"]), numpy.array(other["mask"]))
    print(json.dumps([shown(rows), shown(stream)]))
assert len(load_dataset("{DATA}", split="train")) == 5
"""
    lines = fresh(hub, tmp_path, code).splitlines()
    for line, path in zip(lines, builds.values(), strict=True):
        assert json.loads(line) == [shown_rows(path)] * 2
    card = DatasetCard(hub.files("dataset", DATA)["README.md"].decode())
    assert [config["config_name"] for config in card.data.configs] == ["voc", *tables]
    parts = {name: card.text.split(f"config:{name} -->")[1] for name in ("voc", *tables)}
    for name, ignored, classes in (("voc", 255, 20), ("cityscapes", 255, 19), ("imagenet_s_300", 65535, 300)):
        assert f"Its masks have {classes} classes of the class table `{name}`" in parts[name]
        assert f"Ignore mask pixels with the value {ignored}." in parts[name]
    assert "added without being asked is `background` in the mask" in parts["voc"]
    assert "added without being asked is ignored in the mask" in parts["cityscapes"]
    assert [name for name, part in parts.items() if "$ attn2mask train " in part] == ["voc"]
    assert f'load_dataset("{DATA}", "voc", split="train")' in card.text


def test_the_card_is_valid_and_speaks_of_its_files(hub, publish, built):
    publish("dataset", built["voc"], built["kitchen"], DATA)
    files = hub.files("dataset", DATA)
    card = DatasetCard(files["README.md"].decode())
    assert [config["config_name"] for config in card.data.configs] == ["voc", "kitchen"]
    assert "attn2mask" in card.data.tags
    for path in files:
        assert not path.startswith("assets/") or path in card.text


def test_publishing_twice_sends_nothing_and_makes_no_commit(hub, publish, built):
    publish("dataset", built["voc"], DATA)
    seen, commits = len(hub.log), len(hub.repos["dataset", DATA].commits)
    status, out, _ = publish("dataset", built["voc"], DATA)
    assert status == 0
    assert "nothing is new" in out
    assert len(hub.repos["dataset", DATA].commits) == commits
    assert all(request.method in ("GET", "HEAD") for request in hub.log[seen:])


def test_a_build_that_grew_sends_what_is_new(hub, publish, make_build, tmp_path):
    path = make_build(tmp_path / "voc", "voc", rows=4)
    publish("dataset", path, DATA)
    before = hub.files("dataset", DATA)
    make_build(path, "voc", rows=6)
    seen = len(hub.log)
    assert publish("dataset", path, DATA)[0] == 0
    sent = [r.path for r in hub.log[seen:] if r.method == "PUT"]
    assert len(set(sent)) == len(sent)
    after = hub.files("dataset", DATA)
    assert {p for p in after if p not in before} == {"voc/train-00002.parquet"}
    first = ("voc/train-00000.parquet", "voc/train-00001.parquet")
    assert all(before[p] == after[p] for p in first)
    bodies = [r.body for r in hub.log[seen:] if r.method == "PUT"]
    assert not [p for p in first if before[p] in bodies]


def test_orphans_of_the_same_config_go_and_nothing_else(hub, publish, make_build, tmp_path):
    """Fewer shards, another config of a name that starts alike, and a file that a person put there."""
    alike = make_build(tmp_path / "voc-b", "voc-b", rows=2)
    publish("dataset", make_build(tmp_path / "large", "voc", rows=6, scores=False), alike, DATA)
    hub.put("dataset", DATA, {"notes.md": b"mine", "voc/mine.txt": b"mine", "assets/voc-old.png": b"old"})
    before = hub.files("dataset", DATA)
    status, out, _ = publish("dataset", make_build(tmp_path / "small", "voc", rows=2, seed=3), DATA)
    assert status == 0
    after = hub.files("dataset", DATA)
    gone = {"voc/train-00001.parquet", "voc/train-00002.parquet", "assets/voc-old.png"}
    assert set(before) - set(after) == gone
    assert "3 removed" in out
    of_alike = [p for p in before if "voc-b" in p]
    assert len(of_alike) > 3
    assert all(before[p] == after[p] for p in of_alike)
    metadata, _ = split(after["README.md"].decode())
    assert {config["config_name"] for config in metadata["configs"]} == {"voc", "voc-b"}


def test_options_of_a_build_are_published_without_local_paths(hub, publish, voc):
    """With those of a remask. Options that the build no longer has are removed."""
    options = (voc / "build.yaml").read_text()
    (voc / "build.yaml").write_text(f"{options}captions: /home/me/captions.txt\n")
    (voc / "remask.yaml").write_text("dir: ../voc\nthreshold: fixed\n")
    assert publish("dataset", voc, DATA)[0] == 0
    files = hub.files("dataset", DATA)
    assert files["voc/build.yaml"].decode() == f"{options}captions: captions.txt\n"
    assert files["voc/remask.yaml"] == b"dir: voc\nthreshold: fixed\n"
    (voc / "remask.yaml").unlink()
    assert publish("dataset", voc, DATA)[0] == 0
    assert "voc/remask.yaml" not in hub.files("dataset", DATA)
    (voc / "build.yaml").write_text("table: [")
    status, _, error = publish("dataset", voc, DATA)
    assert (status, "build.yaml cannot be read" in error) == (2, True)


def test_what_a_person_wrote_into_the_card_stays(hub, publish, built):
    publish("dataset", built["voc"], DATA)
    card = hub.files("dataset", DATA)["README.md"].decode()
    hub.put("dataset", DATA, {"README.md": (card + "\n## Thanks\n\nTo the painter.\n").encode()})
    assert publish("dataset", built["voc"], built["kitchen"], DATA)[0] == 0
    after = hub.files("dataset", DATA)["README.md"].decode()
    assert "## Thanks\n\nTo the painter.\n" in after
    assert "config:kitchen" in after


def test_config_names_one_build(hub, publish, built):
    assert publish("dataset", built["voc"], DATA, "--config-name", "small")[0] == 0
    assert "small/train-00000.parquet" in hub.files("dataset", DATA)
    status, _, error = publish("dataset", *built.values(), DATA, "--config-name", "small")
    assert (status, "--config-name small names one build, but 2 are given" in error) == (2, True)


def test_a_branch_is_made_and_main_left_alone(hub, publish, built):
    assert publish("dataset", built["voc"], DATA, "--revision", "v2")[0] == 0
    assert set(hub.files("dataset", DATA)) == {".gitattributes"}
    assert "voc/train-00000.parquet" in hub.files("dataset", DATA, "v2")
    assert publish("dataset", built["voc"], built["kitchen"], DATA, "--revision", "v2")[0] == 0
    assert "kitchen/train-00000.parquet" in hub.files("dataset", DATA, "v2")


def test_a_pull_request_is_opened_once(hub, publish, built):
    publish("dataset", built["voc"], DATA)
    before = hub.files("dataset", DATA)
    command = ("dataset", built["kitchen"], DATA, "--create-pr")
    for _ in range(2):
        status, out, _ = publish(*command)
        assert status == 0
        assert f"{hub.url}/datasets/{DATA}/discussions/1" in out
    repo = hub.repos["dataset", DATA]
    assert list(repo.requests) == [1]
    assert hub.files("dataset", DATA) == before
    assert "kitchen/train-00000.parquet" in hub.files("dataset", DATA, "refs/pr/1")
    hub.fault = Fault(1, "lost")
    publish("dataset", built["voc"], DATA)  # the answer to any request may be lost
    status, _, error = publish("dataset", built["voc"], "org/none", "--create-pr")
    assert (status, "there is no dataset org/none for a pull request" in error) == (2, True)
    status, _, error = publish(*command, "--revision", "v2")
    assert (status, "leave out --revision v2" in error) == (2, True)


def test_private_is_for_new_repositories(hub, publish, built):
    assert publish("dataset", built["voc"], DATA, "--private")[0] == 0
    assert hub.repos["dataset", DATA].private
    assert publish("dataset", built["voc"], DATA, "--private")[0] == 0
    hub.repos["dataset", DATA].private = False
    status, _, error = publish("dataset", built["voc"], DATA, "--private")
    assert (status, "exists and is public" in error) == (2, True)


def test_a_dry_run_shows_all_and_changes_nothing(hub, publish, voc, monkeypatch):
    status, out, _ = publish("dataset", voc, DATA, "--dry-run")
    assert status == 0
    for path in (*expected("voc", voc), "README.md"):
        assert any(line.startswith("new ") and line.endswith(f"  {path}") for line in out.splitlines())
    assert "task_categories" in out
    assert not hub.repos
    publish("dataset", voc, DATA)
    hub.put("dataset", DATA, {"voc/train-00009.parquet": b"old"})
    report = BuildDirectory(voc).report()
    (voc / "report.json").write_bytes(sealed(report | {"foreground": 0}))
    seen = len(hub.log)
    _, out, _ = publish("dataset", voc, DATA, "--dry-run")
    listed = [line.split() for line in out.split("README.md:")[0].splitlines()]
    states = {words[-1]: words[0] for words in listed if words}
    assert states["voc/train-00000.parquet"] == "same"
    assert states["voc/report.json"] == "changed"
    assert states["voc/train-00009.parquet"] == "removed"
    assert all(request.method in ("GET", "HEAD") for request in hub.log[seen:])
    monkeypatch.delenv("HF_TOKEN")
    status, _, warning = publish("dataset", voc, DATA, "--dry-run")
    said = f"attn2mask: warning: the files are not compared with those of {DATA}: there is no token"
    assert (status, warning.startswith(said)) == (0, True)


def test_a_change_in_between_is_never_overwritten(hub, publish, built):
    """Somebody commits after the plan was made: it is made anew, upon what they wrote."""
    publish("dataset", built["voc"], DATA)
    done = []

    def meddle(method: str, path: str) -> None:
        if method == "POST" and "/commit/" in path and not done:
            card = hub.files("dataset", DATA)["README.md"] + b"\nA word in between.\n"
            done.append(hub.put("dataset", DATA, {"README.md": card, "notes.md": b"mine"}))

    hub.before = meddle
    assert publish("dataset", built["kitchen"], DATA)[0] == 0
    files = hub.files("dataset", DATA)
    assert files["notes.md"] == b"mine"
    assert b"A word in between." in files["README.md"]
    assert "kitchen/train-00000.parquet" in files
    assert [r.status for r in hub.requests("POST .*/commit/")][-2:] == [412, 200]


def test_files_that_the_repository_ignores_are_not_left_out_silently(hub, publish, built):
    """No commit is made. Once the patterns are gone, the same command publishes everything."""
    hub.put("dataset", DATA, {".gitignore": b"*.parquet\n"})
    before = hub.files("dataset", DATA)
    status, out, error = publish("dataset", built["voc"], DATA)
    shards = sorted(f"voc/{file.name}" for file in (built["voc"] / "data").iterdir())
    assert status == 2
    assert re.search(rf"{DATA} does not keep {len(shards)} of \d+ files as they were sent: ", error)
    assert ", ".join(shards) in error
    assert ".gitignore" in error
    assert "published" not in out
    assert hub.files("dataset", DATA) == before
    hub.put("dataset", DATA, {".gitignore": b"*.log\n"})
    assert publish("dataset", built["voc"], DATA)[0] == 0
    assert expected("voc", built["voc"]).items() <= hub.files("dataset", DATA).items()


@pytest.mark.parametrize("options", [(), ("--revision", "v2"), ("--create-pr",)])
@pytest.mark.parametrize("path", ["voc/train-00001.parquet", "voc/build.json"])
@pytest.mark.parametrize("change", ["lost", "shorter", "other bytes"])
@pytest.mark.usefixtures("plain_card")
def test_what_stands_in_the_repository_is_what_was_sent(
    hub, publish, built, monkeypatch, options, path, change
):
    """A Hub that loses or alters a large or a small file of the commit, and answers that all went well."""
    hub.put("dataset", DATA, {"README.md": b"---\ntags: [attn2mask]\n---\n"})
    add = Repo.add

    def altered(repo, ref, tree, title, parent):
        if path in tree:
            file = tree.pop(path)
            shorter, other = file.content[:-1], bytes([file.content[0] ^ 1]) + file.content[1:]
            content = {"shorter": shorter, "other bytes": other}.get(change)
            tree |= {} if content is None else {path: File(content, file.is_lfs)}
        return add(repo, ref, tree, title, parent)

    monkeypatch.setattr(Repo, "add", altered)
    status, out, error = publish("dataset", built["voc"], DATA, *options)
    assert status == 2
    assert re.search(rf"{DATA} does not keep 1 of \d+ files as they were sent: {path}\.", error)
    assert "published" not in out


# Faults.


@pytest.fixture
def plain_card(monkeypatch) -> None:
    """In place of the real one, whose figures take seconds."""
    card = Card(
        "---\ntags: [attn2mask]\n---\n![](assets/voc-sheet.png)\n", {"assets/voc-sheet.png": b"sheet"}
    )
    monkeypatch.setattr("attn2mask.hub.cards.dataset.dataset_card", lambda builds, repo_id, old: card)


def requests_of(hub: LoopbackHub, run: Callable[[], object]) -> int:
    seen = len(hub.log)
    run()
    return len(hub.log) - seen


@pytest.mark.parametrize(
    ("times", "kind"),
    [
        *((1, "cut"), (1000, "lost")),
        *(
            pytest.param(times, kind, marks=pytest.mark.slow)
            for times, kind in itertools.product((1, 1000), ("429", "500", "cut", "lost"))
        ),
    ],
)
@pytest.mark.usefixtures("plain_card")
def test_whichever_request_fails_all_is_there_or_nothing_changed(publish, hub, built, kind, times):
    """One failure is got over; where the Hub stays away, the former revision stands, and running the command
    again finishes it.
    """
    name = iter(range(1000))

    def prepare() -> tuple[str, tuple]:
        repo = f"org/data{next(name)}"
        hub.fault = None
        card = b"---\ntags: [attn2mask]\n---\n"
        hub.put("dataset", repo, {"README.md": card, "voc/train-00009.parquet": b"x"})
        return repo, ("dataset", built["voc"], repo)

    repo, command = prepare()
    hub.lfs.clear()
    total = requests_of(hub, lambda: publish(*command))
    complete = {p: c for p, c in hub.files("dataset", repo).items() if p != "README.md"}
    assert "voc/train-00009.parquet" not in complete
    for step in range(1, total + 1):
        repo, command = prepare()
        hub.lfs.clear()
        former = hub.files("dataset", repo)
        hub.fault = Fault(step, kind, times)
        status, _, error = publish(*command)
        files = {p: c for p, c in hub.files("dataset", repo).items() if p != "README.md"}
        if times == 1:
            assert status == 0, (step, error)
            assert files == complete
        else:
            assert status in (0, 2), step
            whole = files == complete
            assert whole or hub.files("dataset", repo) == former, step
            assert whole or status == 2
            assert status == 0 or "run the same command again" in error
        hub.fault = None
        stored = set(hub.lfs)
        seen = len(hub.log)
        assert publish(*command)[0] == 0
        assert {p: c for p, c in hub.files("dataset", repo).items() if p != "README.md"} == complete
        again = [r for r in hub.log[seen:] if r.method == "PUT" and r.path.rsplit("/")[-1] in stored]
        assert not again, "what the server has is sent again"
        assert len(hub.repos["dataset", repo].commits) == 3, step


@pytest.mark.parametrize(
    "kind",
    ["cut", pytest.param("500", marks=pytest.mark.slow), pytest.param("lost", marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("plain_card")
def test_a_new_repository_and_a_pull_request_survive_failures_too(publish, hub, built, kind):
    total = requests_of(hub, lambda: publish("dataset", built["voc"], DATA, "--revision", "v2"))
    for step in range(1, total + 1):
        hub.fault = Fault(step, kind)
        status, _, error = publish("dataset", built["voc"], f"org/new{step}", "--revision", "v2")
        assert status == 0, (step, error)
        assert "voc/train-00000.parquet" in hub.files("dataset", f"org/new{step}", "v2")
    hub.fault = None
    publish("dataset", built["voc"], "org/main")
    total = requests_of(hub, lambda: publish("dataset", built["kitchen"], "org/main", "--create-pr"))
    for step in range(1, total + 1):
        hub.fault = None
        publish("dataset", built["voc"], f"org/main{step}")
        hub.fault = Fault(step, kind)
        status, _, error = publish("dataset", built["kitchen"], f"org/main{step}", "--create-pr")
        assert status == 0, (step, error)
        assert list(hub.repos["dataset", f"org/main{step}"].requests) == [1]


# Refusals.


def test_a_token_appears_nowhere_but_in_its_header(hub, built, trained, tmp_path):
    """Not in output, commits, cards or bodies, also with the clients' debug output, and where things fail."""
    environment = hub.environment(tmp_path / "hf") | {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
    environment |= {"OMP_NUM_THREADS": "1"}
    hub.fault = Fault(4, "500")
    code = (
        "import sys\nfrom attn2mask.hub.cli import main\n"
        f"assert main(['publish', 'dataset', {str(built['voc'])!r}, {DATA!r}]) == 0\n"
        f"assert main(['publish', 'model', {str(trained['upernet'])!r}, {MODEL!r}]) == 0\n"
        f"assert main(['publish', 'dataset', {str(built['voc'])!r}, 'others/data']) == 2\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert TOKEN not in run.stdout + run.stderr
    assert "no right to write to others/data" in run.stderr
    for request in hub.log:
        headers = {name.lower(): value for name, value in request.headers.items()}
        # Large files go to an address that is a secret itself, without the token.
        assert headers.pop("authorization", None) == (None if request.method == "PUT" else f"Bearer {TOKEN}")
        assert TOKEN not in str(headers) + request.path
        assert TOKEN.encode() not in request.body
    for repo in hub.repos.values():
        for commit in repo.commits.values():
            assert TOKEN not in commit.title
            assert not [path for path, file in commit.tree.items() if TOKEN.encode() in file.content]
    for file in (tmp_path / "hf").rglob("*"):
        assert file.is_dir() or TOKEN.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "no token of the Hub: log in with `hf auth login`"),
        ("hf_unknown", "does not accept the token"),
        ("hf_with\x01control", "holds characters that no token has"),
        (READER, f"no right to write to {DATA}"),
    ],
)
def test_no_token_or_no_right(hub, publish, built, monkeypatch, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    for there in (False, True):
        if there:
            hub.repo("dataset", DATA)
        status, out, error = publish("dataset", built["voc"], DATA)
        assert (status, message in error) == (2, True), error
        assert not token or token not in out + error
    assert len(hub.repos["dataset", DATA].commits) == 1


@pytest.mark.parametrize("name", ["a/b/c", "org/-data", "org/da ta", "org/da--ta", "org/data.git", ""])
def test_names_that_the_hub_does_not_allow(hub, publish, built, name):
    status, _, error = publish("dataset", built["voc"], name)
    assert (status, f"the Hub does not allow the name {name!r}" in error) == (2, True)
    assert not hub.log


def test_a_name_without_a_namespace_is_ones_own(hub, publish, built):
    assert publish("dataset", built["voc"], "data")[0] == 0
    assert ("dataset", "me/data") in hub.repos


def test_a_repository_of_another_kind(hub, publish, built):
    hub.repo("model", DATA)
    status, _, error = publish("dataset", built["voc"], DATA)
    assert (status, f"{DATA} is a model, but you publish a dataset" in error) == (2, True)
    assert list(hub.repos) == [("model", DATA)]
    assert publish("dataset", built["voc"], DATA, "--force")[0] == 0
    assert ("dataset", DATA) in hub.repos


def test_somebody_elses_data(hub, publish, built):
    hub.put("dataset", DATA, {"README.md": b"---\ntags: [cats]\n---\n# Cats\n", "cats.csv": b"cat"})
    before = hub.files("dataset", DATA)
    status, _, error = publish("dataset", built["voc"], DATA)
    assert (status, "holds files that attn2mask did not publish, such as cats.csv" in error) == (2, True)
    assert hub.files("dataset", DATA) == before
    assert publish("dataset", built["voc"], DATA, "--force")[0] == 0
    after = hub.files("dataset", DATA)
    assert after["cats.csv"] == b"cat"
    assert b"# Cats" in after["README.md"]


def test_no_network(publish, built, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    status, _, error = publish("dataset", built["voc"], DATA)
    assert (status, "no connection to http://127.0.0.1:9 (" in error) == (2, True)
    status, _, warning = publish("dataset", built["voc"], DATA, "--dry-run")
    said = f"attn2mask: warning: the files are not compared with those of {DATA}: no connection"
    assert (status, warning.startswith(said)) == (0, True)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError])
def test_a_fault_of_our_own_is_no_mistake_of_the_user(publish, built, monkeypatch, error):
    def fail(*_):
        raise error("of a card")

    monkeypatch.setattr("attn2mask.hub.cards.dataset.dataset_card", fail)
    with pytest.raises(error, match="of a card"):
        publish("dataset", built["voc"], DATA)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (b"\xff", "README.md of org/model is not UTF-8 text"),
        (b"---\na: [\n---\n", "README.md starts with metadata that is not YAML"),
        (b"---\nlanguage: klingon\n---\n", 'Invalid metadata in README.md. - "language" must be'),
    ],
)
def test_a_card_of_a_person_that_can_not_stay(hub, publish, trained, card, message):
    hub.put("model", MODEL, {"README.md": card})
    before = hub.files("model", MODEL)
    status, _, error = publish("model", trained["upernet"], MODEL)
    assert (status, message in error) == (2, True), error
    assert hub.files("model", MODEL) == before


def damage(path: Path, how: str) -> None:
    shard = path / "data" / "train-00001.parquet"
    if how == "rows missing":
        shard.unlink()
        (path / "manifest" / "00001.json").unlink()
    elif how == "a byte changed":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 255
        shard.write_bytes(content)
    elif how == "a shard gone":
        shard.unlink()
    elif how == "growing":
        record = BuildDirectory(path).record()
        (path / "build.json").write_bytes(sealed(record | {"num_images": 9}))
    elif how == "a leftover":
        shutil.copy(shard, path / "data" / "train-00007.parquet")
    elif how == "no report":
        (path / "report.json").unlink()
    else:
        (path / "build.json").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("rows missing", "train-00001.parquet is missing: run the command that made it again"),
        ("a byte changed", "train-00001.parquet is damaged"),
        ("a shard gone", "train-00001.parquet is missing"),
        ("growing", "is not complete, "),
        ("a leftover", "holds train-00007.parquet, which is not a shard of the build"),
        ("no report", "has no report.json: run the command that made it again"),
        ("no build", "holds no build"),
    ],
)
def test_builds_that_are_not_whole(hub, publish, voc, how, message):
    damage(voc, how)
    status, _, error = publish("dataset", voc, DATA)
    assert (status, message in error) == (2, True), error
    assert not hub.log


def test_two_builds_of_one_name_and_names_that_are_no_folders(hub, publish, built, tmp_path):
    status, _, error = publish("dataset", built["voc"], built["voc"], DATA)
    assert (status, "would both be config voc" in error) == (2, True)
    for name in ("my table", "assets", "../up"):
        status, _, error = publish("dataset", built["voc"], DATA, "--config-name", name)
        assert (status, f"{name!r} cannot be the name of a config" in error) == (2, True)
    assert not hub.log


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["thing", "a", "b"], "no command 'publish thing'; the commands are publish dataset, publish model"),
        (["dataset", "only"], "REPO is missing"),
        (["dataset"], "BUILD is missing"),
        (["model", "a", DATA, "--config-name", "x"], "unrecognized arguments"),
        (["model", "a", DATA, "more"], "unrecognized arguments: more"),
        (["model", "no/such", MODEL], "no/such is not a folder"),
    ],
)
def test_mistakes_of_the_command_line(publish, argv, message):
    status, _, error = publish(*argv)
    assert (status, message in error) == (2, True), error


def test_help(capsys):
    assert main(["publish"]) == main(["publish", "--help"]) == 0
    assert "  publish dataset BUILD ... REPO " in capsys.readouterr().out
    for words in ("dataset BUILD [BUILD ...] REPO", "model DIR REPO"):
        with pytest.raises(SystemExit):
            main(["publish", words.split()[0], "--help"])
        text = capsys.readouterr().out
        assert f"usage: attn2mask publish {words} [--option VALUE ...]\n" in text
        assert "--dry-run" in text


def test_options_come_from_a_yaml_file_too(hub, publish, built, tmp_path):
    """A positional argument on the command line stands for all of those in the file."""
    file = tmp_path / "publish.yaml"
    builds = "\n".join(f"- {path}" for path in built.values())
    file.write_text(f"builds:\n{builds}\nrepo: {DATA}\nprivate: true\n")
    assert publish("dataset", "--config", file)[0] == 0
    assert hub.repos["dataset", DATA].private
    files = hub.files("dataset", DATA)
    assert {"voc/build.yaml", "kitchen/build.yaml"} <= set(files)
    assert publish("dataset", built["voc"], "org/other", "--config", file)[0] == 0
    assert "kitchen/build.yaml" not in hub.files("dataset", "org/other")


# Models.


def test_checkpoints_load_for_anyone(hub, publish, trained, tmp_path):
    """UperNet with plain transformers, DeepLabv3+ with the code that it brings; both networks here."""
    for name, folder in trained.items():
        status, out, _ = publish("model", folder, f"org/{name}")
        assert status == 0
        assert ("trust_remote_code=True" in out) == (name == "deeplabv3plus")
        files = set(hub.files("model", f"org/{name}"))
        network = {"config.json", "model.safetensors"} | ({"deeplabv3plus.py"} if "deep" in name else set())
        wanted = network | {f"peer/{file}" for file in network}
        wanted |= {"README.md", ".gitattributes", "preprocessor_config.json", "training_config.json"}
        assert wanted <= files
        assert {path.split("/")[0] for path in files - wanted} <= {"assets", "metrics"}
        ModelCard(hub.files("model", f"org/{name}")["README.md"].decode())
    code = """
import numpy, torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline
picture = torch.linspace(-2, 2, 3 * 33 * 47).reshape(1, 3, 33, 47)
for name, options in (("upernet", {}), ("deeplabv3plus", {"trust_remote_code": True})):
    model = AutoModelForSemanticSegmentation.from_pretrained("org/" + name, **options).eval()
    with torch.no_grad():
        numpy.save(name + ".npy", model(pixel_values=picture).logits.numpy())
    found = pipeline("image-segmentation", model="org/" + name, **options)(Image.new("RGB", (50, 40), "red"))
    assert found[0]["label"] in model.config.label2id
"""
    fresh(hub, tmp_path, code)
    picture = torch.linspace(-2, 2, 3 * 33 * 47).reshape(1, 3, 33, 47)
    for name, folder in trained.items():
        ours = load_checkpoint(folder)
        with torch.no_grad():
            logits = ours.network(picture).logits.numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), logits, atol=1e-5)
        theirs = load_checkpoint(f"org/{name}")
        assert (theirs.table_name, theirs.record) == (ours.table_name, ours.record)
        for mine, other in ((ours.network, theirs.network), (ours.peer, theirs.peer)):
            state = other.state_dict()
            assert all(torch.equal(value, state[key]) for key, value in mine.state_dict().items())


def test_another_checkpoint_takes_the_place_of_the_first(hub, publish, trained, tmp_path):
    """Other architecture, no peer: what belonged to the first goes, what a person added stays."""
    publish("model", trained["deeplabv3plus"], MODEL)
    hub.put("model", MODEL, {"demo.ipynb": b"{}", ".eval_results/others.yaml": b"[]"})
    alone = make_checkpoint(tmp_path / "alone", "upernet", peer=False)
    assert publish("model", alone, MODEL)[0] == 0
    files = set(hub.files("model", MODEL))
    assert not [path for path in files if path.startswith("peer/") or path.endswith(".py")]
    assert {"demo.ipynb", ".eval_results/others.yaml"} <= files


def test_the_same_checkpoint_twice(hub, publish, trained):
    for words in ("published", "nothing is new"):
        status, out, _ = publish("model", trained["upernet"], MODEL)
        assert (status, words in out) == (0, True)
    assert len(hub.repos["model", MODEL].commits) == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "holds no config.json"),
        ("model.safetensors", b"broken", "checkpoint"),
        ("peer/model.safetensors", None, "peer/model.safetensors is missing, or is not as it was written"),
        ("deeplabv3plus.py", None, "lacks deeplabv3plus.py, without which others cannot load it"),
        ("metrics.json", b"{", "metrics.json cannot be read: Expecting property name"),
        ("metrics.json", b"[]", "metrics.json is damaged, it is not a mapping of names to values"),
        ("metrics.json", b"{}", "metrics.json is not a report of `attn2mask evaluate`"),
        ("training_config.json", b"{", "training_config.json is damaged"),
    ],
)
def test_checkpoints_that_do_not_load(hub, publish, trained, tmp_path, file, content, message):
    folder = shutil.copytree(trained["deeplabv3plus"], tmp_path / "run")
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)
    status, _, error = publish("model", folder, MODEL)
    assert (status, message in error) == (2, True), error
    assert not hub.log


def test_reports_go_along_and_no_place_of_this_machine(hub, publish, trained, tmp_path):
    """The scores that the card shows stand beside it, each under its own name; paths end where they begin at
    the machine's root.
    """
    figures = {"mean_iou": 0.5, "per_class_iou": {"cat": 0.5}, "pixel_accuracy": 0.6, "num_images": 3}
    report = {**figures, "networks": {}, "evaluated": {"dataset": "/home/me/VOC2012", "scales": "1"}}
    folder = shutil.copytree(trained["upernet"], tmp_path / "run")
    for file in (folder / "metrics.json", tmp_path / "metrics.json"):
        file.write_text(json.dumps(report))
    options = {"dataset": "/home/me/voc", "preset": "demo", "max_steps": 3}
    (folder / "train.yaml").write_text(f"# attn2mask train --config train.yaml\n{yaml.safe_dump(options)}")
    evaluation = {"checkpoint": "~/runs/r50", "dataset": "VOCdevkit/VOC2012"}
    (folder / "metrics.yaml").write_text(yaml.safe_dump(evaluation))
    config = json.loads((folder / "training_config.json").read_text())
    config["config"] = {"dataset": "/home/me/voc", "output_dir": "~/runs/r50", "eval_dataset": "data/there"}
    (folder / "training_config.json").write_bytes(sealed(config))
    assert (
        publish("model", folder, MODEL, "--metrics", folder / "metrics.json", tmp_path / "metrics.json")[0]
        == 0
    )
    files = hub.files("model", MODEL)
    assert json.loads(files["metrics/metrics.json"])["evaluated"]["dataset"] == "VOC2012"
    published = {"dataset": "voc", "output_dir": "r50", "eval_dataset": "data/there"}
    assert json.loads(files["training_config.json"]) == with_seal(config | {"config": published})
    assert files["train.yaml"].startswith(b"# attn2mask train --config train.yaml\n")
    assert yaml.safe_load(files["train.yaml"]) == options | {"dataset": "voc"}
    assert yaml.safe_load(files["metrics/metrics.yaml"]) == evaluation | {"checkpoint": "r50"}
    assert "metrics/metrics_.yaml" not in files  # the other report has no options beside it
    for name in ("metrics", "metrics_"):
        assert {f"metrics/{name}.json", f"assets/{name}-iou.png"} <= set(files)
        assert f"`metrics/{name}.json`" in files["README.md"].decode()
    assert not [path for path, content in files.items() if b"/home/me" in content or b"~/runs" in content]
    assert publish("model", folder, MODEL)[0] == 0
    assert not [path for path in hub.files("model", MODEL) if "metrics_" in path]


def test_an_adapter_of_a_painter(hub, publish, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    weights = {"unet.to_k.lora_A.weight": torch.zeros(2, 4), "unet.to_k.lora_B.weight": torch.zeros(4, 2)}
    save_file(weights, folder / "pytorch_lora_weights.safetensors")
    config = {"base_model": "embedded", "rank": 2, "instance_prompt": "a street", "max_steps": 3}
    (folder / "training_config.json").write_text(json.dumps(config))
    (folder / "adapt.yaml").write_text("# adapt\ndata: ~/frames\nmax_steps: 3\n")
    (folder / "state.safetensors").write_bytes(b"")
    status, out, error = publish("model", folder, MODEL)
    assert status == 0, error
    assert f'next: pipe.load_lora_weights("{MODEL}")' in out
    files = hub.files("model", MODEL)
    assert {"pytorch_lora_weights.safetensors", "training_config.json", "README.md"} <= set(files)
    assert files["adapt.yaml"] == b"# adapt\ndata: frames\nmax_steps: 3\n"
    assert "state.safetensors" not in files
    (tmp_path / "back.safetensors").write_bytes(files["pytorch_lora_weights.safetensors"])
    assert set(load_file(tmp_path / "back.safetensors")) == set(weights)
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"broken")
    status, _, error = publish("model", folder, MODEL)
    assert (status, "pytorch_lora_weights.safetensors cannot be read" in error) == (2, True)


# With the long commands.


@pytest.fixture
def built_at_once(monkeypatch, make_build, tmp_path) -> Path:
    """`attn2mask build`, with its painting done in no time."""

    def run(config: BuildConfig) -> BuildDirectory:
        return BuildDirectory(make_build(tmp_path / "made", "voc", rows=2, scores=False))

    monkeypatch.setattr(build, "run", run)
    return tmp_path / "made"


def test_build_publishes_only_if_it_is_asked_to(hub, publish, built_at_once):
    assert main(["build", "voc"]) == 0
    assert not hub.log
    assert main(["build", "voc", "--push-to-hub", DATA]) == 0
    assert expected("voc", built_at_once).items() <= hub.files("dataset", DATA).items()


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("org/--", TOKEN, "does not allow the name"),
        (DATA, "", "no token"),
        (DATA, READER, "guest may write to guest"),
        ("org/cats", TOKEN, "did not publish"),
    ],
)
def test_build_asks_the_hub_before_it_starts(
    hub, publish, built_at_once, capsys, monkeypatch, repo, token, message
):
    hub.put("dataset", "org/cats", {"cats.csv": b"cat"})
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["build", "voc", "--push-to-hub", repo]) == 2
    assert message in capsys.readouterr().err
    assert not built_at_once.exists()


def test_build_refuses_a_name_that_no_config_can_have_before_it_paints(hub, built_at_once, tmp_path, capsys):
    table = tmp_path / "kitchen.yaml"
    table.write_text("name: my kitchen\nbackground: true\nclasses:\n  - {name: chair}\n")
    assert main(["build", str(table), "--push-to-hub", DATA]) == 2
    assert "'my kitchen' cannot be the name of a config" in capsys.readouterr().err
    assert not built_at_once.exists()
    assert not hub.log
    assert main(["build", str(table)]) == 0


def test_the_license_of_a_painter_is_what_its_card_names(hub, publish, tmp_path, monkeypatch):
    sha = hub.put("model", "org/painter", {"README.md": b"---\nlicense: openrail\n---\n"}).sha
    hub.put("model", "org/painter", {"README.md": b"---\nlicense: mit\n---\n"})
    hub.put("model", "org/silent", {"README.md": b"# Hello\n"})
    assert license_of("org/painter", sha) == "openrail"
    assert license_of("org/painter") == "mit"
    assert license_of("org/silent") is license_of("org/nothing") is None
    (tmp_path / "lora.safetensors").write_bytes(b"")
    assert license_of(str(tmp_path)) is license_of(str(tmp_path / "lora.safetensors")) is None
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    assert license_of(str(tmp_path)) == license_of(str(tmp_path / "lora.safetensors")) == "cc-by-4.0"
    assert license_of("embedded") == "apache-2.0"


def test_training_records_the_revision_of_rows_of_the_hub(hub, publish, monkeypatch):
    from attn2mask.training.train import rows_record

    sha = hub.put("dataset", DATA, {"README.md": b"# Rows\n"}).sha
    assert rows_record(DATA) == {"revision": sha}
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert rows_record(DATA) == {"revision": None}


def test_training_publishes_only_if_it_is_asked_to(hub, publish, trained, monkeypatch, capsys):
    from attn2mask.training import train

    monkeypatch.setattr(train, "train", lambda config: None)
    given = ["--dataset", "rows", "--output-dir", str(trained["upernet"])]
    assert main(["train", *given]) == 0
    assert not hub.log
    assert main(["train", *given, "--push-to-hub", MODEL]) == 0
    assert "peer/model.safetensors" in hub.files("model", MODEL)
    monkeypatch.setenv("RANK", "1")
    seen = len(hub.log)
    assert main(["train", *given, "--push-to-hub", MODEL]) == 0
    assert len(hub.log) == seen
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert main(["train", *given, "--push-to-hub", MODEL]) == 2
    assert "no right to write" in capsys.readouterr().err
