"""The page: its tabs, made with gradio, and the server."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn2mask.builders.errors import UserError, printable
from attn2mask.builders.provenance import LORA_WEIGHTS
from attn2mask.builders.seals import check_weights
from attn2mask.builders.shards import BuildDirectory
from attn2mask.hub.preview.card import card_of, card_parts
from attn2mask.hub.preview.guard import LARGEST_UPLOAD, guarded
from attn2mask.hub.preview.pieces import error_message, text
from attn2mask.hub.preview.rows import build_facts, chosen_rules, read_row, row_page

if TYPE_CHECKING:
    import gradio

    from attn2mask.training.checkpoint import Checkpoint

THRESHOLDS = [("Otsu's", "otsu"), ("agreement", "agreement"), ("fixed", "fixed")]
RELIABILITIES = ["agreement", "two-threshold", "margin"]
STYLE = Path(__file__).with_name("preview.css")


def make_app(folder: str | Path, repo: str | None = None) -> "gradio.Blocks":
    """The page of a folder. `repo` is the name on the Hub for which its card is written.

    Raises UserError if gradio is not installed, and if the folder holds neither a build nor a checkpoint nor
    a painter's adapter.
    """
    folder = Path(folder)
    first_tab: Callable[[], None] | None = None
    if (folder / "build.json").is_file():
        directory = BuildDirectory(folder)
        title, facts = directory.table.name, build_facts(directory)
        first_tab = partial(_rows_tab, directory)
    elif (folder / "config.json").is_file():
        from attn2mask.hub.preview.predictions import checkpoint_facts
        from attn2mask.training.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(folder)
        title, facts = folder.resolve().name, checkpoint_facts(checkpoint)
        first_tab = partial(_predictions_tab, checkpoint)
    elif (folder / LORA_WEIGHTS).is_file():
        check_weights(folder)
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
    with gradio.Blocks(
        title=f"{printable(title)} - attn2mask preview", analytics_enabled=False, fill_width=True
    ) as app:
        about = " &middot; ".join(map(text, facts))
        gradio.HTML(f"<h1>{text(title)}</h1><p>{about}</p>", elem_classes="page-title")
        with gradio.Tabs():
            if first_tab is not None:
                first_tab()
            _card_tab(cache(lambda: card_parts(card_of(folder, repo))))
    return app


def _rows_tab(directory: BuildDirectory) -> None:
    import gradio as gr

    record, rules = directory.record(), directory.rules
    count, with_scores = record["num_images"], record["identity"]["store_scores"]
    rules_of_build = (rules.threshold, rules.beta, rules.reliability, rules.graded)
    with gr.Tab("Rows"), gr.Row():
        with gr.Column(scale=4):
            with gr.Row(elem_classes="steps"):
                back = gr.Button("\u2190 Previous", size="md", min_width=120, scale=0)
                number = gr.Slider(0, max(count - 1, 1), 0, step=1, label=f"Row, of {count:,}", buttons=[])
                forth = gr.Button("Next \u2192", size="md", min_width=120, scale=0)
            page = gr.HTML(elem_id="row")
        choices: list[Any] = []
        if with_scores:
            with gr.Column(scale=1, min_width=250):
                threshold = gr.Radio(THRESHOLDS, value=rules.threshold, label="Threshold")
                beta = gr.Slider(
                    -1,
                    1,
                    rules.beta,
                    step=0.01,
                    label="beta",
                    info="fixed: a class begins where its score is above (1 - beta) / 2",
                    interactive=rules.threshold == "fixed",
                    buttons=[],
                )
                reliability = gr.Radio(RELIABILITIES, value=rules.reliability, label="Reliability")
                graded = gr.Checkbox(rules.graded, label="graded, in 256 levels")
                choices = [threshold, beta, reliability, graded]
                reset = gr.Button("The rules of the build")
                reset.click(lambda: rules_of_build, None, choices, show_progress="hidden")
                threshold.change(
                    lambda name: gr.update(interactive=name == "fixed"),
                    threshold,
                    beta,
                    show_progress="hidden",
                )
    back.click(lambda k: (k - 1) % count, number, number, show_progress="hidden")
    forth.click(lambda k: (k + 1) % count, number, number, show_progress="hidden")
    read = lru_cache(64)(lambda k: read_row(directory, k))

    def show(k: int, *values: Any) -> str:
        try:
            return row_page(read(int(k)), directory, chosen_rules(rules, *values))
        except UserError as error:
            return error_message(error)

    inputs = [number, *choices]
    changes = [part.change for part in inputs]
    gr.on(changes, show, inputs, page, trigger_mode="always_last", show_progress="hidden")
    page.value = show(0, *(rules_of_build if with_scores else ()))


def _predictions_tab(checkpoint: "Checkpoint") -> None:
    import gradio as gr

    from attn2mask.hub.preview.predictions import prediction_page

    with gr.Tab("Try an image"), gr.Row():
        with gr.Column(scale=1, min_width=280):
            image = gr.Image(
                label="Your image",
                type="filepath",
                image_mode=None,  # gradio neither decodes nor converts the image
                sources=["upload", "clipboard"],
                height=320,
                buttons=[],
                elem_id="image",
            )
        with gr.Column(scale=3):
            predictions = gr.HTML(
                '<p class="aside">The predictions of the networks will appear here.</p>',
                elem_id="predictions",
            )

    def show(file: str | None) -> str:
        try:
            return prediction_page(checkpoint, Path(file)) if file else ""
        except UserError as error:
            return error_message(error)

    image.change(show, image, predictions)


def _card_tab(make: Callable[[], tuple[str, str]]) -> None:
    """The tab of the card; `make` returns its metadata and its text when the tab is opened."""
    import gradio as gr

    with gr.Tab("Card") as tab, gr.Column(elem_classes="card"):
        with gr.Accordion("Metadata", open=False):
            metadata = gr.Code(language="yaml", show_label=False, interactive=False, buttons=[])
        body = gr.Markdown(
            "The card is being written\u2026", latex_delimiters=[], elem_id="card", min_height=200
        )

    def show() -> tuple[str, str]:
        try:
            return make()
        except UserError as error:
            return "", error_message(error)

    tab.select(show, None, [metadata, body])


@asynccontextmanager
async def _with_guard(server: Any) -> AsyncIterator[None]:
    """Put the guard before everything that gradio's server does, when it starts."""
    server.middleware_stack = guarded(server.middleware_stack)
    yield


def serve(app: "gradio.Blocks", port: int | None) -> str:
    """Serve the page, behind its guard, until `app.close()`. Returns its address.

    Raises UserError if the port is taken.
    """
    from gradio.themes import Default, LocalFont

    # gradio's semi-bold fonts lack most letters, so bold ones are used instead.
    sans, mono = (LocalFont(name, weights=(400, 700)) for name in ("Source Sans Pro", "IBM Plex Mono"))
    theme = Default(
        primary_hue="indigo", neutral_hue="slate", font=(sans, "sans-serif"), font_mono=(mono, "monospace")
    )
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
            max_file_size=LARGEST_UPLOAD,
            app_kwargs={"lifespan": _with_guard},
            theme=theme,
            css=STYLE.read_text(),
        )
    except OSError as error:
        ports = f"--port {port}" if port else "every port from 7860 on"
        raise UserError(f"{ports} is taken: choose another with --port") from error
    return address
