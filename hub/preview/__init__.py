"""`attn2mask preview`: one local page to look at what was made, before anyone else does.

    attn2mask preview data/voc
    attn2mask preview runs/r50

Of a build it shows the rows and, where scores are stored, what other rules would make of them; of a
checkpoint what it finds in a picture of yours; of both, and of a painter's LoRA adapter, the card as the Hub
will show it. gradio, an optional extra, serves the page on 127.0.0.1 alone, and it loads nothing from
anywhere else.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pyarrow.parquet import ParquetFile

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import decode_png, encode_png, heat_map, overlay
from attn2mask.builders.label import Labeled, label
from attn2mask.builders.options import option
from attn2mask.builders.provenance import LORA_WEIGHTS
from attn2mask.builders.rules import Rules
from attn2mask.builders.shards import BuildDirectory, Shard, plan
from attn2mask.builders.table_reader import bare_table

if TYPE_CHECKING:
    import gradio

    from attn2mask.hub.cards.markdown import Card
    from attn2mask.training.checkpoint import Checkpoint

LONGEST = 1024  # pixels of the longer side of a picture that is tried; larger ones are made smaller
THRESHOLDS = [("Otsu's", "otsu"), ("agreement", "agreement"), ("fixed", "fixed")]
RELIABILITIES = ["agreement", "two-threshold", "margin"]
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}
STYLE = """
.gradio-container {width: 100%; max-width: 1440px !important; margin: 0 auto !important}
.steps {align-items: center}
.steps button {white-space: nowrap; font-size: 1rem}
.page-title h1 {font-size: 1.5rem; font-weight: 600; margin: .2rem 0}
.page-title p, .tile figcaption, .aside {color: var(--body-text-color-subdued)}
.tiles {display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px;
  margin: 4px 0 18px}
.tile {margin: 0}
.tile img {width: 100%; border-radius: 8px; display: block; border: 1px solid var(--border-color-primary)}
.tile img.small {image-rendering: pixelated}
.tile figcaption {font-size: .85rem; padding-top: 5px}
.prompt {font-size: 1.2rem; line-height: 1.5; margin: 0 0 10px}
.prompt mark {background: none; color: inherit; font-weight: 600; border-bottom: 3px solid var(--class)}
.legend {display: flex; flex-wrap: wrap; gap: 8px; padding: 0; margin: 0 0 12px; list-style: none}
.legend li {margin: 0 !important; border: 1px solid var(--border-color-primary); border-radius: 99px;
  padding: 2px 12px 2px 8px; font-size: .9rem}
.legend i {display: inline-block; width: 12px; height: 12px; border-radius: 4px; margin-right: 7px;
  vertical-align: -1px; background: var(--class); border: 1px solid #8888}
.legend span {color: var(--body-text-color-subdued)}
.aside {font-size: .85rem; margin: 0 0 6px; overflow-wrap: anywhere}
.changed {border-left: 3px solid var(--color-accent); padding: 2px 0 2px 12px; margin: 0 0 12px}
.changed code {font-size: .85rem; overflow-wrap: anywhere}
.problem {border-left: 3px solid #dc2626; padding: 2px 0 2px 12px}
.card table th, .card table td {border-color: var(--border-color-primary) !important}
.card {max-width: 900px; margin: 0 auto !important}
"""


@dataclass(frozen=True)
class PreviewConfig:
    """The options of `preview`."""

    dir: str = option("what a build, remask or a training made", positional=True)
    repo: str | None = option("name on the Hub that the card is written for", None, metavar="NAME")
    port: int | None = option("of the page on 127.0.0.1 (the first free one from 7860)", None, metavar="N")

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: it must lie between 1 and 65535")


def make_app(folder: str | Path, repo: str | None = None) -> gradio.Blocks:
    """The page of a folder; `repo` is the name on the Hub that its card is written for.

    Raises UserError where gradio is not installed, or the folder holds neither a build nor a checkpoint nor a
    painter's adapter.
    """
    folder = Path(folder)
    own_tab: Callable[[], None] | None = None
    if (folder / "build.json").is_file():
        directory = BuildDirectory(folder)
        title, facts = directory.table.name, _build_facts(directory.record())
        own_tab = partial(_rows_tab, directory)
    elif (folder / "config.json").is_file():
        from attn2mask.training.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(folder)
        title, facts = folder.resolve().name, _checkpoint_facts(checkpoint)
        own_tab = partial(_picture_tab, checkpoint)
    elif (folder / LORA_WEIGHTS).is_file():
        title, facts = folder.resolve().name, ["LoRA adapter of a painter"]
    else:
        raise UserError(
            f"{folder} holds nothing to preview: no build (build.json), checkpoint (config.json) or painter's"
            f" adapter ({LORA_WEIGHTS})"
        )
    try:
        import gradio
    except ImportError as error:
        extra = "pip install 'attn2mask[preview]'"
        raise UserError(f"preview needs gradio, an optional extra: {extra}") from error
    repo = repo or f"your-name/attn2mask-{re.sub(r'[^A-Za-z0-9._-]+', '-', title)}"
    with gradio.Blocks(title=f"{title} - attn2mask preview", analytics_enabled=False, fill_width=True) as app:
        about = " &middot; ".join(map(escape, facts))
        gradio.HTML(f"<h1>{escape(title)}</h1><p>{about}</p>", elem_classes="page-title")
        with gradio.Tabs():
            if own_tab is not None:
                own_tab()
            _card_tab(cache(lambda: card_parts(write_card(folder, repo))))
    return app


# The rows of a build


def _rows_tab(directory: BuildDirectory) -> None:
    import gradio as gr

    record, rules = directory.record(), directory.rules
    count, stored = record["num_images"], record["identity"]["store_scores"]
    rules_of_build = (rules.threshold, rules.beta, rules.reliability, rules.graded)
    with gr.Tab("Rows"), gr.Row():
        with gr.Column(scale=4):
            with gr.Row(elem_classes="steps"):
                back = gr.Button("\u2190 Previous", size="md", min_width=120, scale=0)
                number = gr.Slider(0, max(count - 1, 1), 0, step=1, label=f"Row, of {count:,}", buttons=[])
                on = gr.Button("Next \u2192", size="md", min_width=120, scale=0)
            shown = gr.HTML(elem_id="row")
        chosen: list[Any] = []
        if stored:
            with gr.Column(scale=1, min_width=250):
                chosen = [
                    gr.Radio(THRESHOLDS, value=rules.threshold, label="Threshold"),
                    gr.Slider(
                        *(0, 1, rules.beta),
                        step=0.01,
                        label="beta",
                        info="fixed: a class begins where its score is above (1 - beta) / 2",
                        interactive=rules.threshold == "fixed",
                        buttons=[],
                    ),
                    gr.Radio(RELIABILITIES, value=rules.reliability, label="Reliability"),
                    gr.Checkbox(rules.graded, label="graded, in 256 levels"),
                ]
                reset = gr.Button("As it was built")
                reset.click(lambda: rules_of_build, None, chosen, show_progress="hidden")
                threshold, beta = chosen[:2]
                threshold.change(
                    lambda name: gr.update(interactive=name == "fixed"),
                    *(threshold, beta),
                    show_progress="hidden",
                )
    back.click(lambda k: (k - 1) % count, number, number, show_progress="hidden")
    on.click(lambda k: (k + 1) % count, number, number, show_progress="hidden")
    read = lru_cache(64)(lambda k: read_row(directory, k))

    def show(k: int, *values: Any) -> str:
        try:
            return row_page(read(int(k)), directory, try_rules(rules, *values))
        except UserError as error:
            return problem(error)

    gr.on(
        [part.change for part in (number, *chosen)],
        *(show, [number, *chosen], shown),
        trigger_mode="always_last",
        show_progress="hidden",
    )
    shown.value = show(0, *(rules_of_build if stored else ()))


def read_row(directory: BuildDirectory, index: int) -> dict[str, Any]:
    """Row `index` of a build, as the shards hold it; only its row group is read.

    Raises UserError where its shard is not made, or no longer what was written.
    """
    record = directory.record()
    shards = plan(record["num_images"], record["identity"]["shard_size"])
    shard = next((shard for shard in shards if index in shard.rows), None)
    if shard is None:
        raise UserError(f"{directory.path} has no row {index}")
    if (state := directory.state(shard)) != "made":
        raise UserError(
            f"row {index}: {directory.shard_file(shard)} is {state}; the build's command makes it"
        )
    return _nth(directory, shard, index - shard.rows.start)


def _nth(directory: BuildDirectory, shard: Shard, position: int) -> dict[str, Any]:
    file = ParquetFile(directory.shard_file(shard))
    group = 0
    while position >= (rows := file.metadata.row_group(group).num_rows):
        group, position = group + 1, position - rows
    return file.read_row_group(group).slice(position, 1).to_pylist()[0]


def try_rules(
    rules: Rules,
    threshold: str | None = None,
    beta: float = 0.0,
    reliability: str | None = None,
    graded: bool = False,
) -> Rules:
    """`rules` with what the page chose; the beta of other thresholds than the fixed one is left alone."""
    if threshold is None:
        return rules
    beta = round(beta, 4) if threshold == "fixed" else rules.beta
    return replace(rules, threshold=threshold, beta=beta, reliability=reliability, graded=graded)


def row_page(row: dict[str, Any], directory: BuildDirectory, rules: Rules) -> str:
    """A row as HTML: prompt, legend, pictures. By the build's own rules the mask is the stored one, by others
    that which `remask` would make.
    """
    table, picture = directory.table, decode_png(row["image"]["bytes"])
    mask, reliability, classes = row["mask"]["bytes"], row["reliability"]["bytes"], row["classes"]
    news = ""
    if rules != directory.rules:
        scores = np.asarray(row["scores"], np.uint8)
        made = label(row["image"]["bytes"], scores, row["peaks"], classes, row["words"], rules, table)
        news = _change(row, made, remask_command(directory, rules))
        mask, reliability = made.mask, made.reliability
    ids, trust = decode_png(mask), decode_png(reliability).mean() / 255
    tiles = [
        (row["image"]["bytes"], "picture"),
        (encode_png(overlay(picture, ids, table)), "mask"),
        (reliability, f"reliability: {trust:.0%}"),
    ]
    for word, scores in zip(row["words"], row.get("scores") or [], strict=False):
        heat = heat_map(picture, np.asarray(scores) / 255)
        tiles.append((encode_png(heat), f"scores of \u201c{word}\u201d"))
    words = {k: (word, peak) for k, word, peak in zip(classes, row["words"], row["peaks"], strict=True)}
    facts = [row["sample_id"], f"seed {row['seed']}", f"{picture.shape[1]} \u00d7 {picture.shape[0]}"]
    if row["caption"] != row["prompt"]:
        facts.append(f"caption: {row['caption']}")
    return (
        f'<p class="prompt">{_marked(row["prompt"], {word: k for k, (word, _) in words.items()}, table)}</p>'
        f'{_legend(ids, table, words)}{news}{_tiles(tiles)}<p class="aside">{escape(" · ".join(facts))}</p>'
    )


def remask_command(directory: BuildDirectory, rules: Rules) -> str:
    """What makes a dataset of the same pictures by `rules`."""
    old, words = directory.rules, ["attn2mask", "remask", str(directory.path)]
    if rules.threshold != old.threshold:
        words += ["--threshold", rules.threshold]
    if rules.beta != old.beta:
        words += ["--beta", str(rules.beta)]
    if rules.reliability != old.reliability:
        words += ["--reliability", rules.reliability]
    if rules.graded != old.graded:
        words += ["--graded", str(rules.graded).lower()]
    return shlex.join(words)


def _change(row: dict[str, Any], made: Labeled, command: str) -> str:
    before, after = (decode_png(png) for png in (row["mask"]["bytes"], made.mask))
    trust = decode_png(row["reliability"]["bytes"]).mean() / 255
    dropped = f"; dropped: {'; '.join(made.dropped)}" if made.dropped else ""
    return (
        f'<div class="changed">{np.mean(before != after):.1%} of the mask\u2019s pixels change; reliable '
        f"{trust:.0%} \u2192 {made.reliable:.0%}{escape(dropped)}<br><code>{escape(command)}</code></div>"
    )


def _build_facts(record: dict[str, Any]) -> list[str]:
    identity = record["identity"]
    rules = identity["rules"]
    return [
        f"{record['num_images']:,} rows",
        f"painter {identity.get('model', 'not recorded')}",
        f"threshold {rules['threshold']}",
        f"reliability {rules['reliability']}",
        "with scores" if identity["store_scores"] else "without scores",
    ]


# A picture for a checkpoint


def _picture_tab(checkpoint: Checkpoint) -> None:
    import gradio as gr

    with gr.Tab("Try a picture"), gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = gr.Image(
                label="A picture of yours",
                type="pil",
                sources=["upload", "clipboard"],
                height=320,
                buttons=[],
                elem_id="picture",
            )
        with gr.Column(scale=3):
            found = gr.HTML(
                '<p class="aside">What the networks find in it will stand here.</p>', elem_id="found"
            )
    picture.change(lambda image: image and segment_page(checkpoint, image), picture, found)


def segment_page(checkpoint: Checkpoint, picture: Image.Image) -> str:
    """What the networks find in a picture, as HTML: the mean of both, and each alone where there are two."""
    from attn2mask.training.inference import segment

    picture = picture.convert("RGB")
    picture.thumbnail((LONGEST, LONGEST))
    table = bare_table(checkpoint.table_name, checkpoint.names)
    pair = [network for network in (checkpoint.network, checkpoint.peer) if network is not None]
    looks = {"both networks": pair, "network A": pair[:1], "network B": pair[1:]}
    looks = looks if len(pair) > 1 else {"found": pair}
    pixels = np.asarray(picture)
    found = {name: segment(networks, checkpoint.processor, pixels) for name, networks in looks.items()}
    tiles = [(encode_png(pixels), "picture")]
    for name, ids in found.items():
        tiles.append((encode_png(overlay(pixels, ids, table)), name))
    return _legend(next(iter(found.values())), table, {}) + _tiles(tiles)


def _checkpoint_facts(checkpoint: Checkpoint) -> list[str]:
    size = sum(weight.numel() for weight in checkpoint.network.parameters())
    return [
        type(checkpoint.network).__name__,
        f"{size / 1e6:.1f} M parameters",
        f"{len(checkpoint.names)} classes",
        "networks A and B" if checkpoint.peer is not None else "one network",
    ]


# The card


def _card_tab(write: Callable[[], tuple[str, str]]) -> None:
    import gradio as gr

    with gr.Tab("Card") as tab, gr.Column(elem_classes="card"):
        with gr.Accordion("Metadata", open=False):
            metadata = gr.Code(language="yaml", show_label=False, interactive=False, buttons=[])
        text = gr.Markdown(
            "The card is being written\u2026", latex_delimiters=[], elem_id="card", min_height=200
        )

    def show() -> tuple[str, str]:
        try:
            return write()
        except UserError as error:
            return "", problem(error)

    tab.select(show, None, [metadata, text])


def write_card(folder: Path, repo: str) -> Card:
    """The card that publishing `folder` as a new repository would write."""
    if (folder / "build.json").is_file():
        from attn2mask.hub.cards.dataset import dataset_card

        return dataset_card({BuildDirectory(folder).table.name: folder}, repo)
    if (folder / "config.json").is_file():
        from attn2mask.hub.cards.segmenter import model_card

        return model_card(folder, repo)
    from attn2mask.hub.cards.adapter import adapter_card

    return adapter_card(folder, repo)


def card_parts(card: Card) -> tuple[str, str]:
    """A card's metadata (YAML), and its Markdown with the figures inside."""
    _, metadata, text = re.split(r"^---\s*$", card.text, maxsplit=2, flags=re.MULTILINE)
    for name, content in card.files.items():
        if kind := PICTURES.get(Path(name).suffix):
            text = re.sub(rf'(?<=[("]){re.escape(name)}(?=[)" ])', _uri(content, kind), text)
    return metadata.strip(), text.strip()


# Pieces of HTML


def problem(error: UserError) -> str:
    """What the user can mend, in place of what was asked for."""
    return f'<div class="problem">{escape(str(error))}</div>'


def _tiles(tiles: Iterable[tuple[bytes, str]]) -> str:
    """PNG pictures with captions, in a grid; small ones are enlarged without smoothing."""
    figures = []
    for png, caption in tiles:
        small = ' class="small"' if max(decode_png(png).shape) < 320 else ""
        figures.append(
            f'<figure class="tile"><img{small} src="{_uri(png)}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return f'<div class="tiles">{"".join(figures)}</div>'


def _legend(ids: np.ndarray, table: ClassTable, words: dict[int, tuple[str, float]]) -> str:
    """The classes that have pixels or stand in the prompt, the largest first: color, name, share of pixels
    and, where there is one, the word and its attention's peak.
    """
    shares = {int(k): n / ids.size for k, n in zip(*np.unique(ids, return_counts=True), strict=True)}
    items = []
    for k in sorted({*shares, *words}, key=lambda k: -shares.get(k, 0)):
        ignored = k == table.ignore_index
        name, color = ("ignored", "#e5e7eb") if ignored else (table.names[k], _color(k, table))
        word = f" as \u201c{words[k][0]}\u201d, peak {words[k][1]:.3f}" if k in words else ""
        items.append(
            f'<li style="--class:{color}"><i></i>{escape(name)} '
            f"<span>{shares.get(k, 0):.1%}{escape(word)}</span></li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _marked(prompt: str, words: dict[str, int], table: ClassTable) -> str:
    """The prompt with the class words underlined in their classes' colors."""
    if not words:
        return escape(prompt)
    forms = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    pieces = re.split(rf"\b({forms})\b", prompt)
    return "".join(
        f'<mark style="--class:{_color(words[piece], table)}">{escape(piece)}</mark>'
        if odd % 2
        else escape(piece)
        for odd, piece in enumerate(pieces)
    )


def _color(mask_id: int, table: ClassTable) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in table.palette[mask_id])


def _uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# The server


def serve(app: gradio.Blocks, port: int | None) -> str:
    """Show the page until `app.close()`; returns its address. Raises UserError where the port is taken."""
    try:
        _, address, _ = app.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            footer_links=[],
            theme=_theme(),
            css=STYLE,
        )
    except OSError as error:
        where = f"--port {port}" if port else "every port from 7860 on"
        raise UserError(f"{where} is taken: choose another with --port") from error
    return address


def _theme() -> gradio.themes.Base:
    from gradio.themes import Default, LocalFont

    # gradio's semi-bold cuts lack most letters, so bold ones stand in for them.
    sans, mono = (LocalFont(name, weights=(400, 700)) for name in ("Source Sans Pro", "IBM Plex Mono"))
    return Default(
        primary_hue="indigo", neutral_hue="slate", font=(sans, "sans-serif"), font_mono=(mono, "monospace")
    )


def run(config: PreviewConfig) -> None:
    """Serve the page until Ctrl-C. Raises UserError for what the user can mend."""
    with tempfile.TemporaryDirectory(prefix="attn2mask-preview-") as pictures:
        os.environ["GRADIO_TEMP_DIR"] = pictures  # uploads end with the page
        for name in ("NO_PROXY", "no_proxy"):
            os.environ[name] = f"{os.environ.get(name, '')},127.0.0.1".removeprefix(",")
        app = make_app(config.dir, config.repo)
        print(f"{config.dir}: {serve(app, config.port)} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        app.close(verbose=False)
