"""The card of a segmenter: all its values are recorded, it follows every record, and its code runs."""

import json
import re
import shutil

import pytest
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
from huggingface_hub import ModelCard
from PIL import Image
from places import ROOT

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import facts_of, parse, stored_options
from attn2mask.hub.cards.markdown import split
from attn2mask.hub.cards.segmenter import model_card, training_chart
from attn2mask.hub.cards.sources import OURS, UNSOURCED, source_of
from attn2mask.training.config import TrainConfig
from attn2mask.training.evaluate_command import EvaluateConfig
from attn2mask.training.evaluate_command import run as evaluate
from attn2mask.training.train import train

# Tables of what training and evaluation recorded, by their first heads.
RECORDED = ("training", "option", "library", "%", "class")
# Values of records that are numbers, or null.
NUMBERS = ("mean_iou", "pixel_accuracy", "sheep", "sofa", "num_images", "mix_probability")


def test_metadata_is_what_the_hub_reads(run, report):
    made = model_card(run, REPO, [report])
    data = ModelCard(made.text).data
    assert (data.pipeline_tag, data.library_name) == ("image-segmentation", "transformers")
    assert data.license == "unknown"  # nothing is known of a backbone in a local folder
    assert {"deeplabv3plus", "custom_code"} <= set(data.tags)
    assert (data.base_model, data.datasets) == (None, None)
    found = json.loads(report.read_text())
    values = {(result.metric_type, result.metric_name): result.metric_value for result in data.eval_results}
    assert values["mean_iou", "mean IoU"] == found["networks"]["a"]["mean_iou"]
    assert values["mean_iou", "mean IoU of both networks"] == found["mean_iou"]
    assert {result.dataset_name for result in data.eval_results} == {"voc"}


def test_every_figure_and_file_that_the_card_names_is_there(run, report):
    made = model_card(run, REPO, [report])
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", made.text)
    assert len(figures) == 4
    assert set(figures) == {name for name in made.files if name.startswith("assets/")}
    assert all(made.files[name].startswith(b"\x89PNG") for name in figures)
    assert links_of(made.text) == {"metrics/report.yaml", "train.yaml"}


def test_the_card_names_no_folder_of_this_machine(run, report, tmp_path_factory):
    text = model_card(run, REPO, [report]).text
    assert str(tmp_path_factory.getbasetemp()) not in text
    assert str(ROOT) not in text


def test_backbone_and_rows_on_the_hub_are_named(run, no_figures, tmp_path):
    hub = changed(run, tmp_path, "training_config.json", "on_hub", "backbone", "microsoft/resnet-50")
    hub = changed(hub, tmp_path / "2", "training_config.json", "on_hub", "dataset", "owner/rows")
    hub = changed(hub, tmp_path / "3", "training_config.json", "rows", {"revision": "0a1b"})
    hub = changed(hub, tmp_path / "4", "config.json", "backbone_from_scratch", False)
    made = model_card(hub, REPO)
    data = split(made.text)[0]
    found = data["base_model"], data["datasets"], data["license"]
    assert found == ("microsoft/resnet-50", ["owner/rows"], "unknown")
    assert "[owner/rows](https://huggingface.co/datasets/owner/rows/tree/0a1b)" in made.text
    assert "painted" not in split(made.text)[1].split("## Use")[0]
    from_scratch = changed(hub, tmp_path / "5", "config.json", "backbone_from_scratch", True)
    assert "base_model" not in split(model_card(from_scratch, REPO).text)[0]


def test_a_license_and_datasets_that_no_record_tells_may_be_stated(run, no_figures, tmp_path):
    stated = {"license": "mit", "datasets": ["owner/rows", "owner/more"]}
    text = model_card(run, REPO, **stated).text
    data = split(text)[0]
    assert (data["license"], data["datasets"]) == ("mit", ["owner/rows", "owner/more"])
    assert "| license | mit |" in text
    assert "[owner/more](https://huggingface.co/datasets/owner/more)" in text
    own = changed(run, tmp_path, "training_config.json", "options", "backbone", "embedded")
    with pytest.raises(UserError, match=r"--license mit: the records of .* name apache-2\.0; leave it out"):
        model_card(own, REPO, **stated)
    hub = changed(run, tmp_path / "hub", "training_config.json", "on_hub", "dataset", "owner/rows")
    hub = changed(hub, tmp_path / "2", "training_config.json", "rows", {"revision": "0a1b"})
    text = model_card(hub, REPO, **stated).text
    assert split(text)[0]["datasets"] == ["owner/rows", "owner/more"]
    assert text.count("(https://huggingface.co/datasets/owner/rows/tree/0a1b)") == text.count("[owner/rows]")


def test_the_code_follows_the_first_paragraph(run, report):
    heads = re.findall(r"^##? .*", split(model_card(run, REPO, [report]).text)[1], re.MULTILINE)
    assert heads[:3] == ["# attn2mask-things", "## Use", "## Classes"]


def test_the_chosen_size_is_told_with_what_was_tried(run, no_figures, tmp_path):
    text = model_card(run, REPO).text
    assert "The image processor resizes the shorter side of images to 96 pixels." in text
    tried = "64 (31.0%), 80 (42.0%), 96 (53.0%), 128 (44.0%)"
    assert f"on 6 images of the training, where their masks are reliable: {tried}." in text
    keys = ("training_config.json", "prediction_size")
    other = changed(run, tmp_path, *keys, "dataset", "/home/me/scenes")
    assert f"on 6 images of `scenes`: {tried}." in model_card(other, REPO).text
    assert "image processor resizes" not in model_card(changed(run, tmp_path / "2", *keys, None), REPO).text


def test_the_rows_are_those_that_the_training_recorded(run, no_figures, tmp_path):
    """Not those that lie in the folder now."""
    text = model_card(run, REPO).text
    assert "trained on 6 images that `embedded` painted" in text
    moved = changed(run, tmp_path, "training_config.json", "options", "dataset", str(tmp_path / "gone"))
    expected = text.replace("| rows | `voc` |", "| rows | `gone` |")
    warning = "The network was trained on these rows. They do not show how well it does on other images.\n\n"
    assert model_card(moved, REPO).text == expected.replace(warning, "")


def test_the_license_of_a_model_is_that_of_its_rows_if_its_backbone_is_our_own(run, no_figures, tmp_path):
    def license(folder) -> str:
        return split(model_card(folder, REPO).text)[0]["license"]

    assert license(run) == "unknown"
    own = changed(run, tmp_path, "training_config.json", "options", "backbone", "embedded")
    assert license(own) == "apache-2.0"
    changes = [("identity", "model", "owner/it"), ("identity", "lora", "x"), ("license", None)]
    for number, keys in enumerate(changes):
        copy = changed(own, tmp_path / str(number), "training_config.json", "rows", *keys)
        assert license(copy) == "unknown"


@pytest.mark.parametrize(
    ("file", "change", "text"),
    [
        ("training_config.json", ("seconds", 4000), "| time | 1 h 6 min |"),
        ("training_config.json", ("hardware", "2 x NVIDIA H100"), "| hardware | 2 x NVIDIA H100 |"),
        ("training_config.json", ("step", 3), "| steps | 3 |"),
        ("training_config.json", ("options", "seed", 5), "| seed | 5 |"),
        ("training_config.json", ("options", "batch_size", 12), "| batch size | 12 | the paper, Table 1 |"),
        ("training_config.json", ("options", "clip", 0.8), f" | 0.8 | {OURS} |"),
        (
            "training_config.json",
            ("options", "no_reliability", True),
            "| no reliability | yes | a part of the method is switched off",
        ),
        ("training_config.json", ("versions", "torch", "9.9"), "| torch | 9.9 |"),
        ("config.json", ("class_table", "other"), "`other`"),
        ("metrics.json", ("networks", "a", "mean_iou", 0.4321), "| **mean IoU** | 43.2 |"),
        ("metrics.json", ("networks", "a", "per_class_iou", "cat", 0.9876), "| cat | 98.8 |"),
        ("metrics.json", ("networks", "a", "num_images", 1449), "1,449 images"),
        ("metrics.json", ("networks", "a", "mean_iou", 0.25), "\n      value: 0.25\n"),
    ],
)
def test_what_the_card_says_is_recorded(run, no_figures, tmp_path, file, change, text):
    assert text not in model_card(run, REPO).text
    assert text in model_card(changed(run, tmp_path, file, *change), REPO).text


def test_the_learning_rate_of_table_1_is_that_of_its_backbone(run, no_figures, tmp_path):
    folder = changed(run, tmp_path, "training_config.json", "options", "learning_rate", 0.001)
    assert "| learning rate | 0.001 | the paper, Table 1 |" not in model_card(folder, REPO).text
    folder = changed(
        folder, tmp_path / "2", "training_config.json", "options", "backbone", "microsoft/resnet-50"
    )
    assert "| learning rate | 0.001 | the paper, Table 1 |" in model_card(folder, REPO).text


def test_the_card_follows_every_value_of_its_records(run, report, no_figures, tmp_path):
    """As for datasets. Options of the run itself, and what the card of the rows says, are silent."""
    copy = shutil.copytree(run, tmp_path / "run")
    training = json.loads((run / "training_config.json").read_text())
    training["options"] |= {"optimizer": "sgd", "backbone": "embedded", "num_rows": 5}
    training["rows"]["revision"] = "0a1b"
    training["chosen_on"] = {"dataset": "owner/choice", "split": "val"}
    hubs = {"dataset": "owner/rows", "eval_dataset": None, "backbone": "owner/bone"}
    found = json.loads(report.read_text())
    found["evaluated"]["hub"] = "owner/scores"
    training["options"] |= {"mix_probability": 0.5}
    found["evaluated"]["options"] |= {
        "split": "val",
        "num_images": 4,
        "scales": "1,2",
        "flip": True,
        "window": 64,
        "overlap": 0.25,
        "crf": "beco",
        "chosen_on": "other images",
    }
    found |= {"crf_mean_iou": 0.51, "crf_pixel_accuracy": 0.72}
    for scores in (found, *found["networks"].values()):
        scores["per_class_iou"] = {name: 0.01 * k for k, name in enumerate(scores["per_class_iou"], start=1)}
    config = json.loads((run / "config.json").read_text()) | {"backbone_from_scratch": False}
    config["backbone_weights"] = {"recipe": "a recipe", "sha256": "0a1b"}
    kept = ("model_type", "id2label", "class_table", "backbone_from_scratch", "backbone_weights", "resnet_d")
    config["backbone_config"] = {"model_type": config["backbone_config"]["model_type"]}
    records = {
        "training_config.json": training | {"on_hub": hubs},
        "config.json": config,
        "report.json": found,
    }
    # With a backbone of our own, the license of the rows counts.
    local = training | {"on_hub": {}}
    silent = re.compile(
        "format_version|command|table|seal|weights/.*|on_hub/eval_dataset|(num_images|networks/b/num_images)"
        "|evaluated/(format_version|table|seconds|checkpoint_chosen_on|options/(checkpoint|table|out))"
        "|evaluated/(classes_scored|method|fixed_images/.*)|boundary_iou_given_labels"
        "|evaluated/options/(allow_incomplete|no_verify|trust_remote_code|method|weights|protocol|background|threshold|words|size)"
        "|options/crop_area_(min|max)"  # the crops of this preset have a scale
        "|options/(allow_incomplete|no_verify|trust_remote_code|workers|eval_.*|size_dataset|micro_batch|checkpoint_every|mixed_precision|shares)"
        "|rows/identity/(?!model$|model_version|seed$|threshold|reliability).*"
    )

    def card(records: dict[str, dict]) -> str:
        for file, record in records.items():
            (copy / file).write_text(json.dumps(record))
        return model_card(copy, REPO, [copy / "report.json"]).text

    bases = [records, records | {"training_config.json": local}]
    texts, followed = [card(base) for base in bases], set()
    for file, sound in records.items():
        for keys, value in leaves(sound):
            if file == "config.json" and keys[0] not in (*kept, "backbone_config"):
                continue  # of the architecture
            # What is a mapping or a number, if it is not null.
            new = {"method": {}, "chosen_on": {"dataset": "x"}}.get(str(keys[-1]), other(value))
            new = 7 if value is None and keys[-1] in NUMBERS else new
            now = [card(base | {file: with_value(base[file], keys, new)}) for base in bases]
            is_silent = silent.fullmatch("/".join(map(str, keys))) is not None
            assert (now == texts) == is_silent, (file, keys)
            for before, after in zip(texts, now, strict=True):
                followed |= rows_of(before, *RECORDED) - rows_of(after, *RECORDED)
    (copy / "log.jsonl").write_text('{"step": 1, "images_per_second": 77.5}\n')
    followed |= rows_of(texts[1], *RECORDED) - rows_of(card(bases[1]), *RECORDED)
    assert followed == set().union(*(rows_of(text, *RECORDED) for text in texts))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "There was no test-time augmentation."),
        (
            {"scales": "0.5,1", "flip": True},
            "Test-time augmentation, with the maximum of all logits: scales 0.5,1, mirrored.",
        ),
        (
            {"scales": "0.5,1"},
            "Test-time augmentation, with the maximum of all logits: scales 0.5,1, not mirrored.",
        ),
        ({"window": 64}, "Larger images were predicted in windows of 64 pixels."),
        (
            {"window": 64, "overlap": 0.25},
            "in windows of 64 pixels, of which a share of 0.25 lies in the next window.",
        ),
        ({"num_images": 3}, "The measurement is limited to the first 3 images."),
    ],
)
def test_how_images_were_predicted_is_named(run, report, no_figures, tmp_path, options, text):
    found = json.loads(report.read_text())
    found["evaluated"]["options"] |= options
    (tmp_path / "report.json").write_text(json.dumps(found))
    assert text in model_card(run, REPO, [tmp_path / "report.json"]).text


def test_the_images_of_every_choice_are_named(run, report, no_figures, tmp_path):
    text = model_card(run, REPO, [report]).text
    assert "The networks are those of the last step. No images were used to choose the step." in text
    choice = {"dataset": "/data/VOCdevkit", "split": "val"}
    chosen = model_card(changed(run, tmp_path, "training_config.json", "chosen_on", choice), REPO).text
    assert "the step with the highest mean IoU on `VOCdevkit`, split `val`." in chosen
    found = json.loads(report.read_text())
    for chosen_on, sentence in (
        (None, "It is not recorded on which images these settings were chosen."),
        ("scenes of seed 5", "These settings were chosen on other images: scenes of seed 5."),
    ):
        found["evaluated"]["options"] |= {"scales": "1,2", "chosen_on": chosen_on}
        (tmp_path / "report.json").write_text(json.dumps(found))
        assert sentence in model_card(run, REPO, [tmp_path / "report.json"]).text


@pytest.mark.parametrize(
    ("weights", "from_scratch", "text"),
    [
        ({}, True, "none: the backbone started from random weights"),
        ({"recipe": "timm resnet50d.ra2_in1k", "sha256": "0a1b"}, False, "ra2_in1k; SHA-256 0a1b"),
        ({"recipe": None, "sha256": "0a1b"}, False, "their training is not recorded; SHA-256 0a1b"),
        ({"recipe": None, "sha256": None}, False, "not recorded"),
    ],
)
def test_pretrained_weights_are_named(run, no_figures, tmp_path, weights, from_scratch, text):
    folder = changed(run, tmp_path, "config.json", "backbone_weights", weights)
    folder = changed(folder, tmp_path / "2", "config.json", "backbone_from_scratch", from_scratch)
    (line,) = (k for k in model_card(folder, REPO).text.splitlines() if "| pretrained weights" in k)
    assert text in line


def test_constants_of_mixing_are_listed_if_images_are_mixed(run, no_figures, tmp_path):
    listed = {}
    for probability in (0.0, 0.5):
        folder = changed(
            run,
            tmp_path / str(probability),
            "training_config.json",
            "options",
            "mix_probability",
            probability,
        )
        listed[probability] = model_card(folder, REPO).text
    for name in (
        "probability of mixing",
        "least probability of an online label",
        "weight of pasted outlines",
    ):
        assert f"| {name} |" in listed[0.5]
        assert f"| {name} |" not in listed[0.0]
    assert "| no ClassMix | yes |" in listed[0.0]


@pytest.mark.parametrize("preset", ["voc-resnet50", "voc-swin-base"])
def test_no_source_is_named_for_a_value_that_it_does_not_state(preset):
    """Beside Table 1 and BECO's code, as they were read; everything else is not verified."""
    values = {"voc-resnet50": (0.001, True), "voc-swin-base": (0.01, False)}[preset]
    options = stored_options(TrainConfig(preset=preset).resolve())
    table_1 = {"power": 0.9, "weight_decay": 1e-5, "batch_size": 12, "max_steps": 25_000}
    table_1 |= {"learning_rate": values[0], "optimizer": "sgd", "architecture": "deeplabv3plus"}
    beco = {"momentum": 0.9, "crop_size": 512, "crop_area_min": 0.5, "crop_area_max": 0.75}
    beco |= {"head_multiplier": 1, "clip": 0, "warmup_epochs": 1, "mix_probability": 0.5}
    beco |= {"confidence": 0.95, "boundary_weight": 1.2, "color_probability": 0.8, "hue": 0.11}
    beco |= {"gray_probability": 0.2, "blur_probability": 0.5, "brightness": 0.2, "contrast": 0.2}
    beco |= {"multi_grid": True} if values[1] else {}
    for name, facts in facts_of(TrainConfig).items():
        if facts.card is None or name in UNSOURCED or options[name] is None:
            continue
        keys = (name, f"{name} of {options['backbone']}")
        source = source_of(TrainConfig, keys, options[name])
        if source.startswith("the paper, Table 1") and name != "backbone":
            assert table_1.pop(name) == options[name], name
        elif source.startswith("BECO"):
            assert beco.pop(name) == options[name], name
        elif options[name] is not False:
            assert "not verified" in source, name
    assert table_1 == beco == {}


def test_a_run_alone_shows_its_own_scores_and_predictions(run, tmp_path):
    made = model_card(run, REPO)
    assert "The training itself measured this at step 4, without test-time augmentation." in made.text
    assert "Mean IoU given image-level labels: 61.0%." in made.text
    warning = "The network was trained on these rows."
    assert warning in made.text
    elsewhere = changed(run, tmp_path, "training_config.json", "options", "eval_dataset", "VOCdevkit/VOC2012")
    assert warning not in model_card(elsewhere, REPO).text
    assert "| momentum |" not in made.text  # AdamW does not use it
    last = max((run / "predictions").glob("*.png"))
    assert made.files["assets/predictions.png"] == last.read_bytes()
    assert {"assets/training.png", "assets/metrics-iou.png"} <= set(made.files)


def test_the_chart_of_the_training_is_that_of_the_log():
    log = [{"step": 20, "loss_a": 3.0, "loss_b": 2.5}, {"step": 40, "loss_a": 1.0, "loss_b": 1.5}]
    log.append({"step": 40, "eval_mean_iou": 0.25})
    losses, scores = training_chart(log, 10).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert drawn["network A"] == [[20, 3], [40, 1]]
    assert drawn["network B"] == [[20, 2.5], [40, 1.5]]
    assert drawn["end of the warm-up"][0][0] == 10
    assert scores.lines[0].get_xydata().tolist() == [[40, 25]]
    (losses,) = training_chart(log[:1], 0).axes
    assert "end of the warm-up" not in {line.get_label() for line in losses.lines}


def test_records_that_are_missing_are_named(run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    made = model_card(tmp_path, REPO)
    assert set(made.files) == {"assets/legend.png"}
    for text in ("How the network was trained is not recorded.", "The accuracy is not recorded"):
        assert text in made.text
    data = split(made.text)[0]
    assert "model-index" not in data
    assert data["license"] == "unknown"


def test_results_of_former_weights_are_removed(run, report, no_figures, tmp_path):
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


def test_the_python_of_the_card_runs(run, report, tmp_path, capsys):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "image.png")
    first, second, third = blocks_of(model_card(run, REPO, [report]).text, "python")
    without_us = "import sys\nsys.modules['attn2mask'] = None\n"
    output = run_python((without_us + first + second).replace(REPO, str(run)), tmp_path)
    assert "(80, 60)" in output
    exec(third.replace(REPO, str(run)), {})
    assert (
        "DeepLabV3PlusForSemanticSegmentation DeepLabV3PlusForSemanticSegmentation" in capsys.readouterr().out
    )


def test_the_commands_of_the_card_read_what_was_recorded(run, report, monkeypatch):
    evaluate, train = commands_of(model_card(run, REPO, [report]).text)
    monkeypatch.chdir(report.parent)  # where report.yaml is
    config = parse(EvaluateConfig, evaluate[2:], "evaluate", "")
    recorded = json.loads(report.read_text())["evaluated"]["options"]
    assert {name: getattr(config, name) for name in recorded} == recorded
    monkeypatch.chdir(run)
    config = parse(TrainConfig, train[2:], "train", "")
    recorded = json.loads((run / "training_config.json").read_text())["options"]
    assert {name: getattr(config, name) for name in recorded} == recorded


def test_a_card_without_stored_options_names_no_command(run, report, no_figures, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "train.yaml").unlink()
    shutil.copy(report, tmp_path)
    assert commands_of(model_card(copy, REPO, [tmp_path / "report.json"]).text) == []


def test_a_real_training_records_what_the_card_reads(run, report, voc, tmp_path):
    config = TrainConfig(
        dataset=str(voc),
        output_dir=str(tmp_path / "run"),
        backbone=str(run.parent / "backbone"),
        max_steps=2,
        batch_size=2,
        crop_size=48,
        workers=0,
        eval_dataset=str(voc),
        eval_every=2,
    )
    train(config)
    out = tmp_path / "report.json"
    evaluate(EvaluateConfig(checkpoint=str(tmp_path / "run"), dataset=str(voc), out=str(out)))
    for real, written in ((tmp_path / "run", run), (tmp_path, report.parent)):
        for name in ("training_config.json", "metrics.json") if real.name == "run" else ("report.json",):
            found, expected = (json.loads((folder / name).read_text()) for folder in (real, written))
            assert keys_of(found) == keys_of(expected), name
    assert links_of(model_card(tmp_path / "run", REPO, [out]).text) == {"metrics/report.yaml", "train.yaml"}


def keys_of(record: dict) -> set[tuple]:
    """The keys of all values of a record, except those of classes, images, and the build that it repeats."""
    varied = {"per_class_iou", "identity", "image_counts", "fixed_images"}
    return {keys for keys, _ in leaves(record) if not varied & set(keys)}


def test_a_zero_shot_method_is_not_a_result_of_the_network(run, report, no_figures, tmp_path):
    """It stands in a table of its own, with its protocol, and neither in the metadata nor in a chart."""
    protocol = {
        "name": "common",
        "size": 448,
        "window": 448,
        "overlap": 0.5,
        "templates": ["photo"],
        "background": "threshold",
        "threshold": 0.35,
    }
    method = {"name": "maskclip", "protocol": protocol, "weights": "owner/clip", "revision": "0a1b"}
    found = json.loads(report.read_text()) | {"mean_iou": 0.1234, "boundary_iou": 0.0567}
    found["evaluated"] |= {"method": method, "hub": "owner/scores"}
    files = [tmp_path / "maskclip.json", tmp_path / "no_background.json"]
    files[0].write_text(json.dumps(found))
    found["evaluated"]["classes_scored"] = 20
    found["mean_iou"] = 0.4321
    files[1].write_text(json.dumps(found))
    plain, card = model_card(run, REPO, [report]), model_card(run, REPO, [report, *files])
    assert card.text.split("---")[1] == plain.text.split("---")[1]
    assert card.files.keys() == plain.files.keys()
    rows = [line for line in card.text.splitlines() if "| maskclip |" in line]
    assert [row.split(" | ")[-3:] for row in rows] == [["12.3", "", "5.7 |"], ["", "43.2", "5.7 |"]]
    assert "owner/clip at 0a1b" in rows[0]
    assert "windows of 448 with an overlap of 50%" in rows[0]
    assert "threshold, threshold 0.35" in rows[0]
    assert "### Other methods" not in plain.text
