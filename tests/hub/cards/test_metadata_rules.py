"""The metadata of cards hold to the Hub's specifications of model cards and dataset cards.

The rules are those of `modelcard.md`, `datasetcard.md` and `model-index` in the repository hub-docs of
Hugging Face, as far as they concern what this project writes. The Hub itself cannot be asked here.
"""

import re
from typing import Any

import pytest
from card_text import REPO, changed
from huggingface_hub import DatasetCard, ModelCard

from attn2mask.hub.cards.adapter import adapter_card
from attn2mask.hub.cards.dataset import dataset_card
from attn2mask.hub.cards.segmenter import model_card

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
LICENSES = """
apache-2.0 mit openrail openrail++ bigscience-openrail-m creativeml-openrail-m afl-3.0 artistic-2.0 bsl-1.0
bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 gpl-2.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 unlicense wtfpl
zlib unknown other
""".split()
COMMON = {"license", "language", "tags"}
OF_MODELS = COMMON | {"library_name", "pipeline_tag", "datasets", "metrics", "model-index"}
OF_MODELS |= {"base_model", "base_model_relation", "instance_prompt"}
OF_DATASETS = COMMON | {"pretty_name", "size_categories", "task_categories", "task_ids", "source_datasets"}
OF_DATASETS |= {"annotations_creators", "language_creators", "configs", "dataset_info"}
SIZES = "n<1K 1K<n<10K 10K<n<100K 100K<n<1M 1M<n<10M 10M<n<100M 100M<n<1B".split()


def check_common(data: dict[str, Any], allowed: set[str]) -> None:
    assert set(data) <= allowed
    licenses = data["license"] if isinstance(data["license"], list) else [data["license"]]
    assert set(licenses) <= set(LICENSES)
    assert all(re.fullmatch("[a-z]{2,3}", language) for language in data.get("language", []))
    assert all(isinstance(tag, str) and tag == tag.strip() for tag in data["tags"])


def check_model(data: dict[str, Any]) -> None:
    check_common(data, OF_MODELS)
    assert (data["library_name"], data["pipeline_tag"]) in (
        ("transformers", "image-segmentation"),
        ("diffusers", "text-to-image"),
    )
    assert all(REPOSITORY.fullmatch(name) for name in data.get("datasets", []))
    assert REPOSITORY.fullmatch(data.get("base_model", "a/b"))
    assert data.get("base_model_relation", "adapter") in ("adapter", "finetune", "merge", "quantized")
    for model in data.get("model-index", []):
        assert set(model) == {"name", "results"}
        for result in model["results"]:
            assert set(result) == {"task", "dataset", "metrics"}
            assert isinstance(result["task"]["type"], str)
            assert (
                {"name", "type"} <= set(result["dataset"]) <= {"name", "type", "split", "revision", "config"}
            )
            for metric in result["metrics"]:
                assert set(metric) == {"type", "name", "value"}
                assert isinstance(metric["value"], float)
                assert 0 <= metric["value"] <= 1


def check_dataset(data: dict[str, Any]) -> None:
    check_common(data, OF_DATASETS)
    assert data["task_categories"] == ["image-segmentation"]
    assert data["task_ids"] == ["semantic-segmentation"]
    assert data["annotations_creators"] == ["machine-generated"]
    assert set(data["size_categories"]) <= set(SIZES)
    assert all(set(config) <= {"config_name", "data_files", "default"} for config in data["configs"])
    assert sum(config.get("default", False) for config in data["configs"]) == 1


@pytest.mark.parametrize("stated", [{}, {"license": "mit", "datasets": ["owner/rows"]}])
def test_models(run, report, no_figures, stated):
    made = model_card(run, REPO, [report], **stated)
    check_model(ModelCard(made.text).data.to_dict())
    assert not any(name.startswith(".eval_results") for name in made.files)


def test_models_of_the_hub(run, report, no_figures, tmp_path):
    hub = {"dataset": "owner/rows", "eval_dataset": "owner/scores", "backbone": "owner/bone"}
    folder = changed(run, tmp_path, "training_config.json", "on_hub", hub)
    folder = changed(folder, tmp_path / "2", "config.json", "backbone_from_scratch", False)
    check_model(ModelCard(model_card(folder, REPO).text).data.to_dict())


def test_adapters(adapter):
    check_model(ModelCard(adapter_card(adapter, REPO).text).data.to_dict())


def test_datasets(voc, no_figures, tmp_path):
    lora = changed(voc, tmp_path, "build.json", "identity", "lora", "owner/lora")
    for builds in ({"voc": voc}, {"voc": voc, "lora": lora}):
        check_dataset(DatasetCard(dataset_card(builds, REPO).text).data.to_dict())


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("dataset", "source_models", ["embedded"]),
        ("dataset", "size_categories", ["few"]),
        ("model", "license", "mine"),
        ("model", "datasets", ["rows"]),
        ("model", "tags", [1]),
    ],
)
def test_the_rules_find_what_breaks_them(run, voc, no_figures, kind, key, value):
    card = dataset_card({"voc": voc}, REPO) if kind == "dataset" else model_card(run, REPO)
    data = DatasetCard(card.text).data.to_dict()
    check = check_dataset if kind == "dataset" else check_model
    check(data)
    with pytest.raises(AssertionError):
        check(data | {key: value})
