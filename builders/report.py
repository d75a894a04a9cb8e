"""The reports of a build: one for each shard, their totals in report.json, and a short README.md.

They hold neither times nor the name of the machine, so that equal builds have equal reports.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from attn2mask.builders.conditions import rows_by_conditions

if TYPE_CHECKING:
    import datasets

    from attn2mask.builders.sample import Sample

SHARD_FACTS = ("rows", "bytes", "sha256", "made_under")  # of a manifest that report.json repeats


def shard_report(samples: Sequence["Sample"], names: Sequence[str]) -> dict[str, Any]:
    """The report in the manifest of a shard. `names` are the class names by mask id."""
    return {
        "classes": dict(Counter(names[k] for sample in samples for k in sample.row["classes"])),
        "foreground_rows": sum(sample.foreground > 0 for sample in samples),
        "foreground": sum(sample.foreground for sample in samples),
        "reliable": sum(sample.reliable for sample in samples),
        "rejected": {sample.row["sample_id"]: sample.rejected for sample in samples if sample.rejected},
        "dropped": {sample.row["sample_id"]: sample.dropped for sample in samples if sample.dropped},
        "untrusted": {sample.row["sample_id"]: sample.untrusted for sample in samples if sample.untrusted},
    }


def totals(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """report.json: numbers of rows, mean shares of pixels (0 to 1), all rejections, drops and untrusted
    classes, and the rows by the conditions under which they were painted; and of each shard the number of
    rows, the size in bytes, the SHA-256 and these conditions. `manifests` are those of all shards, in order.
    """
    rows = sum(manifest["rows"] for manifest in manifests)
    stops = accumulate(manifest["rows"] for manifest in manifests)
    painted = [
        (range(stop - manifest["rows"], stop), manifest["made_under"])
        for stop, manifest in zip(stops, manifests, strict=True)
    ]
    classes = sum((Counter(manifest["classes"]) for manifest in manifests), Counter())
    rejected, dropped, untrusted = (
        {name: reasons for manifest in manifests for name, reasons in manifest.get(kind, {}).items()}
        for kind in ("rejected", "dropped", "untrusted")
    )
    return {
        "rows": rows,
        "rows_with_foreground": sum(manifest["foreground_rows"] for manifest in manifests),
        "foreground": sum(manifest["foreground"] for manifest in manifests) / rows,
        "reliable": sum(manifest["reliable"] for manifest in manifests) / rows,
        "rejected_attempts": sum(map(len, rejected.values())),
        "classes": dict(classes.most_common()),
        "rejected": rejected,
        "dropped": dropped,
        "untrusted": untrusted,
        "made_under": rows_by_conditions(painted),
        "shards": [{name: manifest[name] for name in SHARD_FACTS} for manifest in manifests],
    }


def dataset_readme(
    record: dict[str, Any],
    report: dict[str, Any],
    manifests: Sequence[dict[str, Any]],
    features: "datasets.Features",
) -> str:
    """README.md of a build: the metadata that `load_dataset` reads, and three lines.

    `attn2mask publish` writes the full dataset card.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    size = sum(manifest["bytes"] for manifest in manifests)
    data = DatasetCardData()
    split = SplitInfo("train", num_bytes=size, num_examples=report["rows"])
    info = DatasetInfo(
        features=features, splits=SplitDict({"train": split}), download_size=size, dataset_size=size
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = [{"split": "train", "path": "data/train-*"}]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    return f"""---
{data}
---

# {record["table"]["name"]}: {report["rows"]} painted and labeled images

`attn2mask {record["command"]}` made this dataset. build.json says how it was made.
report.json says which classes and attempts were rejected, and why.
`attn2mask publish dataset` writes the full dataset card when it publishes this folder on the Hub.
"""
