"""Rows of a build as HTML, with their own masks or with those that other rules would make."""

import shlex
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from attn2mask.builders.errors import UserError
from attn2mask.builders.images import decode_png, encode_png, heat_map, overlay
from attn2mask.builders.label import Labeled, relabel
from attn2mask.builders.options import flag_of
from attn2mask.builders.quality import without_trust
from attn2mask.builders.records import BuildRecord, checked
from attn2mask.builders.rules import Rules
from attn2mask.builders.shards import BuildDirectory, Shard
from attn2mask.hub.cards.statistics import rows_at
from attn2mask.hub.preview.grid import share_of
from attn2mask.hub.preview.pieces import legend, marked_prompt, text, tiles


def read_row(directory: BuildDirectory, index: int) -> dict[str, Any]:
    """Row `index` of a build, as the shards hold it. Only its row group is read.

    Raises UserError if there is no such row, and if its shard is missing or damaged.
    """
    shard = _shard_of(directory, index)
    if (state := directory.state(shard)) != "made":
        file = directory.shard_file(shard)
        raise UserError(f"row {index}: {file} is {state}; run the command of the build again")
    return next(rows_at([directory.shard_file(shard)], [index - shard.rows.start]))


def _shard_of(directory: BuildDirectory, index: int) -> Shard:
    shard = next((shard for shard in directory.shards if index in shard.rows), None)
    if shard is None:
        raise UserError(f"{directory.path} has no row {index}")
    return shard


def _dropped(sample_id: str, directory: BuildDirectory) -> list[str]:
    """The reasons why classes of the prompt are not in a row. In a build that is not complete, no row was
    left out, so that the id ends with the index of the row.
    """
    if report := directory.report():
        return report.get("dropped", {}).get(sample_id, [])
    shard = _shard_of(directory, int(sample_id.rsplit("-", 1)[1]))
    return directory.dropped(shard).get(sample_id, [])


def chosen_rules(
    rules: Rules,
    threshold: Any = None,
    beta: float = 0.0,
    reliability: Any = None,
    graded: bool = False,
) -> Rules:
    """`rules` with the values that are chosen on the page; `rules` itself if there are none.

    `beta` is used with the fixed threshold only.
    """
    if threshold is None:
        return rules
    beta = round(beta, 4) if threshold == "fixed" else rules.beta
    return replace(rules, threshold=threshold, beta=beta, reliability=reliability, graded=graded)


def row_page(row: dict[str, Any], directory: BuildDirectory, rules: Rules) -> str:
    """A row as HTML: prompt, legend, images. With the build's own rules, the mask is the stored one. With
    others, it is the one that `attn2mask remask` would make.
    """
    table, image = directory.table, decode_png(row["image"]["bytes"])
    mask, reliability, classes = row["mask"]["bytes"], row["reliability"]["bytes"], row["classes"]
    change = ""
    if rules != directory.rules:
        made = relabel(row, rules, table, _dropped(row["sample_id"], directory))
        least = directory.record()["identity"].get("min_presence")
        changed = without_trust(made.sample(row, ()), least, table)
        made = replace(made, reliable=changed.reliable)
        change = _change(row, made, remask_command(directory, rules))
        mask, reliability = (changed.row[name]["bytes"] for name in ("mask", "reliability"))
    ids = decode_png(mask)
    images = [
        (row["image"]["bytes"], "image"),
        (encode_png(overlay(image, ids, table)), "mask"),
        (reliability, f"reliability: {share_of(reliability):.0%}"),
    ]
    for word, scores in zip(row["words"], row.get("scores") or [], strict=False):
        heat = heat_map(image, np.asarray(scores) / 255)
        images.append((encode_png(heat), f"scores of \u201c{word}\u201d"))
    words = {k: (word, peak) for k, word, peak in zip(classes, row["words"], row["peaks"], strict=True)}
    prompt = marked_prompt(row["prompt"], {word: k for k, (word, _) in words.items()}, table)
    height, width = image.shape[:2]
    facts = [row["sample_id"], f"seed {row['seed']}", f"{width} \u00d7 {height}"]
    if row["caption"] != row["prompt"]:
        facts.append(f"caption: {row['caption']}")
    about = text(" \u00b7 ".join(facts))
    return (
        f'<p class="prompt">{prompt}</p>{legend(ids, table, words)}{change}{tiles(images)}'
        f'<p class="aside">{about}</p>'
    )


def remask_command(directory: BuildDirectory, rules: Rules) -> str:
    """The command that makes a dataset of the same images with `rules`."""
    words = ["attn2mask", "remask", str(directory.path)]
    for name, value in asdict(rules).items():
        if value != getattr(directory.rules, name):
            words += [flag_of(name), str(value).lower() if isinstance(value, bool) else str(value)]
    return shlex.join(words)


def build_facts(directory: BuildDirectory) -> list[str]:
    """What the head of the page says about a build."""
    record = checked(directory.record(), BuildRecord, str(directory.path / "build.json"))
    identity, rules = record["identity"], directory.rules
    return [
        f"{record['num_images']:,} rows",
        f"painter {identity.get('model', 'not recorded')}",
        f"threshold {rules.threshold}",
        f"reliability {rules.reliability}",
        "with scores" if identity["store_scores"] else "without scores",
    ]


def _change(row: dict[str, Any], made: Labeled, command: str) -> str:
    share = np.mean(decode_png(row["mask"]["bytes"]) != decode_png(made.mask))
    before = share_of(row["reliability"]["bytes"])
    dropped = f"; dropped: {'; '.join(made.dropped)}" if made.dropped else ""
    return (
        f'<div class="changed">{share:.1%} of the mask\u2019s pixels change; reliable '
        f"{before:.0%} \u2192 {made.reliable:.0%}{text(dropped)}<br><code>{text(command)}</code></div>"
    )
