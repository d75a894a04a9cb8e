"""The card of a dataset: all its values are recorded, it follows every record, and its code runs."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from card_text import (
    REPO,
    blocks_of,
    changed,
    commands_of,
    leaves,
    links_of,
    other,
    rows_of,
    run_python,
    with_value,
)
from datasets import load_dataset
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard
from places import ROOT

from attn2mask.builders.build import BuildConfig, Inputs
from attn2mask.builders.errors import UserError
from attn2mask.builders.markdown import escaped
from attn2mask.builders.options import parse, to_yaml
from attn2mask.builders.remask import RemaskConfig
from attn2mask.builders.sample import OPTIONAL, features
from attn2mask.builders.seals import sealed
from attn2mask.builders.shards import BuildDirectory, write_parquet
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cards.dataset import SHEET_ROWS, dataset_card
from attn2mask.hub.cards.markdown import split
from attn2mask.hub.cards.sources import OURS, read_sources, source_of
from attn2mask.hub.cards.statistics import sampled_rows
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.config import TrainConfig

ROWS = 6
PAPER, REPLICATION, LIKELY = "the paper", "a published replication", "likely the paper's; **not verified**"
REPLICATED = "the paper, as a published replication says"
# Tables of what a build recorded, by their first heads.
RECORDED = ("painting", "option", "library", "reason", "row")


@pytest.fixture(scope="module")
def card(voc):
    return dataset_card({"voc": voc}, REPO)


OTHER = {"config_name": "streets", "features": [{"name": "classes"}], "splits": [{"num_examples": 5}]}


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ({"license": 3}, "license is not"),
        ({"dataset_info": [3]}, r"dataset_info\[0\] is not a mapping"),
        ({"dataset_info": {**OTHER, "splits": [{}]}}, r"splits\[0\] has no num_examples"),
        ({"dataset_info": {**OTHER, "features": ["classes"]}}, r"features\[0\] is not a mapping"),
        ({"configs": "voc"}, "configs is not"),
    ],
)
def test_damaged_metadata_of_an_old_card_are_one_line(voc, no_figures, metadata, fault):
    old = f"---\n{yaml.safe_dump(metadata)}---\n# A card\n"
    with pytest.raises(UserError, match=f"README.md of the repository is damaged, .*{fault}"):
        dataset_card({"voc": voc}, REPO, old)


def test_other_configurations_may_have_any_columns_and_many_rows(voc, no_figures):
    many = {**OTHER, "splits": [{"num_examples": 10**12}]}
    old = f"---\n{yaml.safe_dump({'dataset_info': many})}---\n# A card\n"
    text = dataset_card({"voc": voc}, REPO, old).text
    assert f"{10**12:,}" in text
    assert DatasetCard(text).data.size_categories == ["100M<n<1B"]


def stage(folder: Path, made, **builds: Path) -> Path:
    """A folder as the repository will be."""
    (folder / "assets").mkdir(parents=True)
    (folder / "README.md").write_text(made.text)
    for name, path in builds.items():
        shutil.copytree(path / "data", folder / name)
        shutil.copy(path / "build.yaml", folder / name)
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
        assert rows[0]["mask"].mode == rows[0]["label"].mode == "P"


def test_every_figure_and_file_that_the_card_names_is_there(card, voc, tmp_path):
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", card.text)
    assert len(figures) == 3
    assert {*figures, "id2label.json"} == set(card.files)
    assert all(card.files[figure].startswith(b"\x89PNG") for figure in figures)
    labels = json.loads(card.files["id2label.json"])
    assert labels == {str(k): name for k, name in enumerate(load_table("voc").names)}
    assert "`id2label.json`" in card.text
    assert links_of(card.text) == {"voc/build.yaml"}
    folder = stage(tmp_path / "repo", card, voc=voc)
    assert all((folder / link).exists() for link in links_of(card.text))


def test_the_card_names_no_folder_of_this_machine(card, tmp_path_factory):
    assert str(tmp_path_factory.getbasetemp()) not in card.text
    assert str(ROOT) not in card.text


@pytest.mark.parametrize(
    ("file", "change", "text"),
    [
        ("build.json", ("identity", "seed", 4711), "| seed | 4711 |"),
        ("build.json", ("identity", "steps", 50), f"| denoising steps | 50 | {OURS} |"),
        ("build.json", ("identity", "steps", 100), f"| denoising steps | 100 | {REPLICATED} |"),
        ("build.json", ("identity", "guidance_scale", 7.5), f"| guidance scale | 7.5 | {LIKELY} |"),
        ("build.json", ("identity", "alias_probability", 0.25), f"of an alias | 0.25 | {OURS} |"),
        (
            "build.json",
            ("identity", "scheduler", "class", "EulerScheduler"),
            "| scheduler | EulerScheduler |",
        ),
        ("build.json", ("identity", "scheduler", "beta_start", 0.5), '"beta_start": 0.5'),
        ("build.json", ("identity", "crf_iterations", 7), f"| dense CRF: iterations | 7 | {OURS} |"),
        ("build.json", ("identity", "threshold", "fixed"), f"to class | fixed | {REPLICATION} |"),
        ("build.json", ("identity", "model_version", "sha256:def"), "`sha256:def`"),
        ("build.json", ("versions", "torch", "9.9.9"), "| torch | 9.9.9 |"),
        ("build.json", ("git_commit", "0123abc"), "`0123abc`"),
        ("build.json", ("git_commit", None), "| git commit | not recorded |"),
        (
            "report.json",
            ("made_under", 0, "dtype", "float16"),
            "| rows 0 to 5 | painted on cpu in float16, with 2 threads, CPU kernels AVX2, and 8 images at a",
        ),
        ("build.json", ("latent_side", 64), "| shorter side of the latents | 64 |"),
        (
            "build.json",
            ("identity", "store_maps", True),
            "The rows hold the attention maps of each class, from",
        ),
        (
            "build.json",
            ("identity", "propagation_power", 4),
            "multiplied by | 4 | the code of Dataset Diffusion |",
        ),
        (
            "build.json",
            ("identity", "propagation_power", 2),
            "latents' side) | 0.5 | the code of Dataset Diff",
        ),
        ("build.json", ("identity", "background_words", True), f"background words | yes | {OURS} |"),
        (
            "build.json",
            ("identity", "uncertain_band", 0.1),
            "thresholds | 0.1 | the code of Dataset Diffusion |",
        ),
        ("report.json", ("rows_with_foreground", 3), "3 rows have at least one class"),
        ("report.json", ("foreground", 0.123), "cover 12.3% of the pixels"),
        ("report.json", ("rejected_attempts", 77), "rejected 77 attempts"),
        ("report.json", ("dropped", {"voc-x": ["cup: its map is empty"]}), "| its map is empty | 1 |"),
    ],
)
def test_what_the_card_says_is_recorded(card, voc, no_figures, tmp_path, file, change, text):
    assert text not in card.text
    assert text in dataset_card({"voc": changed(voc, tmp_path, file, *change)}, REPO).text


def test_the_card_follows_every_value_of_its_records(voc, no_figures, tmp_path):
    """Each value changed alone changes the card, except values that the rows show themselves. Each line of
    its tables is changed by one of them.
    """
    copy = shutil.copytree(voc, tmp_path / "voc")
    record = BuildDirectory(voc).record() | {"license": "openrail", "lora_license": "mit"}
    record["captions"] = {"source": "captions.jsonl", "read": 100, "selected": 77}
    record["identity"] |= {
        "model": "owner/painter",
        "lora": "owner/lora",
        "lora_scale": 0.7,
        "lora_version": "sha256:def",
        "instance_prompt": "in sks style",
        "captions": "sha256:abc",
        "threshold": "fixed",
        "beta": 0.4,
        "propagation_power": 1,
        "store_maps": True,
        "score_model": "owner/clip",
        "score_model_version": "0a1b",
        "min_presence": 0.2,
    }
    report = BuildDirectory(voc).report()
    report["untrusted"] = {"voc-0-00000003": ["cat: its presence 0.100 is below 0.2"]}
    report["filters"] = [{"rows": 9, "kept": 6, "dropped": {"listed": ["voc-0-00000006"]}}]
    report["dropped"] = {"voc-0-00000002": ["cup: its map is empty"]}
    records = {"build.json": record, "report.json": report}
    for file, sound in records.items():
        (copy / file).write_bytes(sealed(sound))
    silent = [("identity", "table_version"), ("rows",), ("reliable",), ("table", "name")]
    silent += [("begun_under", name) for name in record["begun_under"]]  # report.json has them for all rows
    text, followed = dataset_card({"voc": copy}, REPO).text, set()
    for file, sound in records.items():
        for keys, value in leaves(sound):
            if keys[0] == "table" and keys[1:] not in [("background",), ("ignore",)] and keys[-1] != "name":
                continue  # words and colors, which build.json holds
            if keys == ("format_version",):
                continue  # builds of another format are refused
            new = {("command",): "remask", ("table", "ignore"): 250}.get(keys, other(value))
            (copy / file).write_bytes(sealed(with_value(sound, keys, new)))
            changed_text = dataset_card({"voc": copy}, REPO).text
            is_silent = keys in silent or keys[0] in ("classes", "shards", "untrusted")
            is_silent = is_silent or keys[:3] == ("filters", 0, "dropped")  # the card counts the rows
            assert (changed_text == text) == is_silent, (file, keys)
            followed |= rows_of(text, *RECORDED) - rows_of(changed_text, *RECORDED)
        (copy / file).write_bytes(sealed(sound))
    assert followed == rows_of(text, *RECORDED)
    assert len(followed) > 40


def test_the_numbers_of_the_card_are_those_of_its_rows(card, voc, tmp_path):
    """Counted once more, with `datasets`."""
    rows = load_dataset(str(voc), split="train", cache_dir=str(tmp_path))
    names = load_table("voc").names
    masks, trust = ([np.asarray(image) for image in rows[column]] for column in ("mask", "reliability"))
    expected = set()
    for k, name in enumerate(names):
        naming = [i for i in range(len(rows)) if k in rows[i]["classes"]]
        here = np.concatenate([t[m == k] for m, t in zip(masks, trust, strict=True)])
        reliable = (here == 255).sum() / max(here.size, 1)
        if k == 0:
            expected.add(f"| 0 | {name} |  | {np.mean(np.stack(masks) == 0):.1%} | {reliable:.1%} |  |")
        elif naming:
            area = np.mean([np.mean(masks[i] == k) for i in naming])
            shared = [sum(n in rows[i]["classes"] for i in naming) * (n != k) for n in range(len(names))]
            companion = f"{names[np.argmax(shared)]} ({max(shared)})" if max(shared) else "-"
            expected.add(f"| {k} | {name} | {len(naming)} | {area:.1%} | {reliable:.1%} | {companion} |")
    assert rows_of(card.text, "id") == expected
    assert f"{np.mean(np.stack(trust) == 255):.1%} of all pixels" in card.text


def test_a_painter_on_the_hub_is_linked_and_its_license_not_guessed(voc, no_figures, tmp_path):
    hub = changed(voc, tmp_path, "build.json", "identity", "model", "owner/painter")
    hub = changed(hub, tmp_path / "silent", "build.json", "license", None)
    made = dataset_card({"voc": hub}, REPO)
    assert "(https://huggingface.co/owner/painter/tree/sha256:abc)" in made.text
    assert "| license of the painter | not recorded |" in made.text
    data = split(made.text)[0]
    assert data["license"] == "unknown"
    assert "source_models" not in data  # no specification has it
    known = changed(hub, tmp_path / "known", "build.json", "license", "creativeml-openrail-m")
    assert split(dataset_card({"voc": known}, REPO).text)[0]["license"] == "creativeml-openrail-m"
    lora = changed(known, tmp_path / "lora", "build.json", "identity", "lora", "owner/lora")
    made = dataset_card({"voc": lora}, REPO)
    assert split(made.text)[0]["license"] == ["creativeml-openrail-m", "unknown"]
    assert "| license of the LoRA | not recorded |" in made.text


def test_the_license_of_the_painter_is_stated(card, voc, no_figures, tmp_path):
    assert "the embedded painter, which ships with attn2mask." in card.text
    assert "The license of its weights and images is apache-2.0." in card.text
    hub = changed(voc, tmp_path, "build.json", "identity", "model", "owner/painter")
    hub = changed(hub, tmp_path / "openrail", "build.json", "license", "openrail")
    silent = changed(hub, tmp_path / "silent", "build.json", "license", None)
    assert "Its license is openrail." in dataset_card({"voc": hub}, REPO).text
    assert "Its license was not recorded: read the page" in dataset_card({"voc": silent}, REPO).text
    lora = changed(hub, tmp_path / "lora", "build.json", "identity", "lora", "owner/lora")
    assert "The license of the LoRA was not recorded" in dataset_card({"voc": lora}, REPO).text
    for made in (card, dataset_card({"voc": silent}, REPO)):
        assert "The images can repeat the biases of the painter." in made.text


def test_an_example_row_is_shown(card, voc):
    row = sampled_rows(sorted((voc / "data").glob("*.parquet")), SHEET_ROWS)[0]
    names = load_table("voc").names
    rows = rows_of(card.text, "column")
    assert f"| `prompt` | {escaped(row['prompt'])} |" in rows
    assert f"| `seed` | {row['seed']} |" in rows
    assert f"| `classes` | {', '.join(f'{k} ({names[k]})' for k in row['classes'])} |" in rows


def test_the_code_follows_the_first_paragraph(card):
    heads = re.findall(r"^##? .*", split(card.text)[1], re.MULTILINE)
    assert heads[:2] == ["# attn2mask-things", "## Use"]
    assert card.text.index("```python") < card.text.index("| configuration |")


def test_rows_of_several_conditions_are_named(card, voc, no_figures, tmp_path):
    """The card names the rows of each, and promises no command that makes exactly these images."""
    first = json.loads((voc / "report.json").read_text())["made_under"][0]
    entries = [{**first, "rows": "0 to 1, 4 to 5"}, {**first, "rows": "2 to 3", "threads": 1}]
    text = dataset_card({"voc": changed(voc, tmp_path, "report.json", "made_under", entries)}, REPO).text
    assert "| rows 0 to 1, 4 to 5 | painted on cpu in float32, with 2 threads," in text
    assert "| rows 2 to 3 | painted on cpu in float32, with 1 thread," in text
    sentence = "no single run makes exactly these images"
    assert sentence in text
    assert sentence not in card.text


def test_a_build_without_a_report_says_so(voc, no_figures, tmp_path):
    shutil.copytree(voc, tmp_path / "voc")
    (tmp_path / "voc" / "report.json").unlink()
    text = dataset_card({"voc": tmp_path / "voc"}, REPO).text
    assert "What the gate rejected is not recorded.\n" in text
    assert "not recorded, because the build has no `report.json`" in text


def test_what_is_no_build_is_one_line(voc, tmp_path):
    with pytest.raises(UserError, match="holds no build"):
        dataset_card({"voc": tmp_path}, REPO)
    shutil.copy(voc / "build.json", tmp_path)
    with pytest.raises(UserError, match="holds no rows"):
        dataset_card({"voc": tmp_path}, REPO)


def test_configurations_are_kept_beside_one_another(make_build, card, voc, tmp_path):
    streets = make_build(tmp_path / "streets", "streets")
    both = dataset_card({"voc": voc, "streets": streets}, REPO)
    later = dataset_card({"streets": streets}, REPO, old=card.text.replace("## Limits", "## Changed"))
    for made in (both, later):
        data = DatasetCard(made.text).data
        assert set(DatasetInfosDict.from_dataset_card_data(data)) == {"voc", "streets"}
        assert MetadataConfigs.from_dataset_card_data(data).get_default_config_name() == "voc"
        for name in ("voc", "streets"):
            assert f"## `{name}`" in made.text
            assert f"| `{name}` | {ROWS} | 21 |" in made.text
        assert "Other configurations: `streets`." in made.text
        assert "Changed" not in made.text
    kinds = ("sheet", "legend", "classes")
    assert set(later.files) == {f"assets/streets-{kind}.png" for kind in kinds}
    folder = stage(tmp_path / "repo", both, voc=voc, streets=streets)
    rows = load_dataset(str(folder), "streets", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == ROWS


def test_publishing_again_changes_nothing_but_what_is_new(card, voc):
    old = card.text + "\nMy own words.\n"
    again = dataset_card({"voc": voc}, REPO, old).text
    assert again == old


def test_the_python_of_the_card_runs(card, voc, tmp_path):
    folder = stage(tmp_path / "repo", card, voc=voc)
    code = "\n".join(blocks_of(card.text, "python"))
    assert code.count(REPO) == 2
    check = "\nimport sys\nassert not any(name.startswith('attn2mask') for name in sys.modules)\n"
    output = run_python(code.replace(REPO, str(folder)) + check, tmp_path)
    assert "voc-0-00000001" in output


def test_the_commands_of_the_card_read_what_was_recorded(card, voc, monkeypatch):
    monkeypatch.chdir(voc)  # where build.yaml is
    build, train = commands_of(card.text)
    config = parse(BuildConfig, build[2:], "build", "")
    record = BuildDirectory(voc).record()
    identity = Inputs(config, load_table("voc"), None).identity()
    assert identity == {name: value for name, value in record["identity"].items() if name in identity}
    assert set(record["identity"]) - set(identity) == {"model", "model_version", "pipeline", "scheduler"}
    assert config.num_images == ROWS
    assert train[:2] == ["attn2mask", "train"]
    config = parse(TrainConfig, train[2:], "train", "")
    assert (config.dataset, config.preset, config.output_dir) == ([REPO], "demo", "runs/segmenter")


def test_the_commands_of_a_remasked_dataset_are_a_build_and_a_remask(voc, no_figures, tmp_path, monkeypatch):
    remasked = changed(voc, tmp_path, "build.json", "command", "remask")
    options = RemaskConfig(dir="data/voc", threshold="fixed", beta=0.4)
    (remasked / "remask.yaml").write_text(to_yaml(options, "attn2mask remask --config remask.yaml"))
    text = dataset_card({"voc": remasked}, REPO).text
    assert links_of(text) == {"voc/build.yaml", "voc/remask.yaml"}
    monkeypatch.chdir(remasked)
    build, remask, _ = commands_of(text)
    assert parse(BuildConfig, build[2:], "build", "").out == "data/voc-painted"
    config = parse(RemaskConfig, remask[2:], "remask", "")
    assert (config.dir, config.out, config.threshold) == ("data/voc-painted", "data/voc", "fixed")


def test_the_card_names_the_files_that_the_command_needs(card, voc, no_figures, tmp_path):
    assert "You also need" not in card.text
    folder = changed(voc, tmp_path, "build.json", "identity", "model", "my-painter")
    folder = changed(folder, tmp_path / "2", "build.json", "identity", "table", "kitchen")
    folder = changed(folder, tmp_path / "3", "build.json", "identity", "captions", "sha256:abc")
    folder = changed(folder, tmp_path / "4", "build.json", "captions", "source", "mine.txt")
    (line,) = [
        line
        for line in dataset_card({"voc": folder}, REPO).text.splitlines()
        if line.startswith("You also need")
    ]
    assert "`my-painter`" in line
    assert "`mine.txt`" in line
    assert "`kitchen.yaml`" in line


def test_the_constants_of_a_crf_that_does_not_run_are_not_shown(card, voc, no_figures, tmp_path):
    assert "| dense CRF: weight of the Gaussian kernel |" in card.text
    text = dataset_card(
        {"voc": changed(voc, tmp_path, "build.json", "identity", "crf_iterations", 0)}, REPO
    ).text
    assert "| dense CRF: iterations | 0 |" in text
    assert text.count("dense CRF: ") == 1


def test_the_columns_of_stored_attention_are_described(make_build, voc, no_figures, tmp_path):
    assert "`self_attention`" not in dataset_card({"voc": voc}, REPO).text
    shard = next((voc / "data").glob("*.parquet"))
    rows = load_dataset("parquet", data_files=str(shard), split="train", cache_dir=str(tmp_path / "cache"))
    packed = {"peak": 0.5, "values": np.ones((4, 4), np.float16)}
    with_maps = [
        {
            **rows.with_format("arrow")[k].to_pylist()[0],
            "maps": [[packed]] * len(rows[k]["classes"]),
            "self_attention": {"height": 2, "width": 2, **packed},
        }
        for k in range(len(rows))
    ]
    folder = shutil.copytree(voc, tmp_path / "voc")
    columns = features(load_table("voc"), OPTIONAL)
    for file in (folder / "data").glob("*.parquet"):
        with open(file, "wb") as stream:
            write_parquet(stream, columns, with_maps)
    text = dataset_card({"voc": folder}, REPO).text
    assert "| `maps` | for each of `classes`, its attention maps of all sizes, the largest first;" in text
    assert "| `self_attention` | the probability that each pixel of `height` x `width`" in text
    info = DatasetInfosDict.from_dataset_card_data(DatasetCard(text).data)["voc"]
    assert info.features == columns


def test_where_values_come_from():
    assert source_of(BuildConfig, ("alias_probability",), 0.5) == PAPER
    for rule, value in (("steps", 100), ("record_from", 0.5), ("record_to", 0.5), ("beta", 0.2)):
        assert source_of(BuildConfig, (rule,), value) == REPLICATED
    assert "likely the paper's" not in source_of(BuildConfig, ("record_to",), 1.0)
    assert source_of(BuildConfig, ("normalization",), "minmax") == REPLICATION
    assert source_of(BuildConfig, ("map_fraction_min",), 0.25) == LIKELY
    assert source_of(BuildConfig, ("crf_gt_prob",), 0.7) == OURS
    assert source_of(BuildConfig, ("what nobody states",), None) == OURS


@pytest.mark.parametrize("command", [BuildConfig, TrainConfig, AdaptConfig])
def test_every_value_with_a_source_is_one_of_its_option(command):
    options = {f.name: f for f in fields(command)}
    for sourced in read_sources()[command.__name__].values():
        for name, values in sourced.items():
            option = options[name.partition(" of ")[0]]
            choices = option.metadata.get("choices")
            assert all(value in choices for value in values) if choices else values
