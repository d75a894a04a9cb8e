"""What a build says about itself: the gate's report of each shard, their totals, and the dataset card.

No time and no machine is in them, so that equal builds have equal reports.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attn2mask.builders.sample import Sample

if TYPE_CHECKING:
    import datasets


def shard_report(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Any]:
    """The part of a manifest that tells how the rows came about. `names` are the class names by mask id."""
    return {
        "classes": dict(Counter(names[k] for sample in samples for k in sample.classes)),
        "foreground_rows": sum(sample.foreground > 0 for sample in samples),
        "foreground": sum(sample.foreground for sample in samples),
        "reliable": sum(sample.reliable for sample in samples),
        "rejected": {sample.sample_id: sample.rejected for sample in samples if sample.rejected},
        "dropped": {sample.sample_id: sample.dropped for sample in samples if sample.dropped},
    }


def totals(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """report.json: counts of rows, mean shares of pixels (0 to 1), rejections and drops with reasons."""
    rows = sum(manifest["rows"] for manifest in manifests)
    classes = sum((Counter(manifest["classes"]) for manifest in manifests), Counter())
    rejected = {name: why for manifest in manifests for name, why in manifest["rejected"].items()}
    return {
        "rows": rows,
        "rows_with_foreground": sum(manifest["foreground_rows"] for manifest in manifests),
        "foreground": sum(manifest["foreground"] for manifest in manifests) / rows,
        "reliable": sum(manifest["reliable"] for manifest in manifests) / rows,
        "rejected_attempts": sum(map(len, rejected.values())),
        "classes": dict(classes.most_common()),
        "rejected": rejected,
        "dropped": {name: why for manifest in manifests for name, why in manifest["dropped"].items()},
    }


def card(
    record: dict[str, Any],
    report: dict[str, Any],
    manifests: Sequence[dict[str, Any]],
    features: "datasets.Features",
) -> str:
    """README.md of a dataset: metadata that `load_dataset` reads, and everything that is equal for all
    rows.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    size = sum(manifest["bytes"] for manifest in manifests)
    data = DatasetCardData(
        task_categories=["image-segmentation"],
        task_ids=["semantic-segmentation"],
        annotations_creators=["machine-generated"],
        size_categories=[_size_category(report["rows"])],
        tags=["attn2mask", "synthetic"],
    )
    split = SplitInfo("train", num_bytes=size, num_examples=report["rows"])
    info = DatasetInfo(
        features=features, splits=SplitDict({"train": split}), download_size=size, dataset_size=size
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = [{"split": "train", "path": "data/train-*"}]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    classes = "\n".join(f"| {name} | {count} |" for name, count in report["classes"].items())
    return f"""---
{data}
---

# {record["table"]["name"]}: {report["rows"]} painted and labeled pictures

Made by `attn2mask {record["command"]}`: a text-to-image model painted the pictures, and its cross-attention
to the class words, refined by a dense CRF, labeled them. No pixel was labeled by hand.
{report["rows_with_foreground"]} rows hold a class; classes cover {report["foreground"]:.1%} of the pixels,
and {report["reliable"]:.1%} of them are marked reliable.

| class | rows |
|---|---|
{classes}

How it was made (`build.json`); what the gate rejected, and why, is in `report.json`:

```json
{json.dumps({key: value for key, value in record.items() if key != "table"}, indent=1)}
```
"""


def _size_category(rows: int) -> str:
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    return next((name for bound, name in bounds if rows < bound), "1M<n<10M")
