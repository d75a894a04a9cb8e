"""The page: its tabs, made with gradio, and the server."""

import math
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
from attn2mask.builders.table_reader import bare_table
from attn2mask.hub.cards.markdown import Card
from attn2mask.hub.preview.card import card_of, card_parts
from attn2mask.hub.preview.grid import REJECTIONS, ROWS, Filters, Rows, grid_page, notes_of
from attn2mask.hub.preview.guard import LARGEST_UPLOAD, guarded
from attn2mask.hub.preview.painting import LARGEST_SEED, MOST_LETTERS, PromptPainter
from attn2mask.hub.preview.pieces import error_message, text
from attn2mask.hub.preview.rows import build_facts, chosen_rules, read_row, row_page

if TYPE_CHECKING:
    import gradio

    from attn2mask.training.checkpoint import Checkpoint

KEPT = 3600  # seconds that an uploaded image is kept
# A click on a tile, or the enter key, tells the page the number of its row.
OPEN_ROW = """
const open = event => {
    const tile = event.target.closest("[data-row]");
    if (tile && (event.type === "click" || event.key === "Enter"))
        trigger("click", {row: Number(tile.dataset.row)});
};
element.addEventListener("click", open);
element.addEventListener("keydown", open);
"""
THRESHOLDS = [("Otsu's", "otsu"), ("agreement", "agreement"), ("fixed", "fixed")]
RELIABILITIES = ["agreement", "two-threshold", "margin"]
STYLE = Path(__file__).with_name("preview.css")


def make_app(
    folder: str | Path,
    repo: str | None = None,
    model: str = "embedded",
    published: Card | None = None,
) -> "gradio.Blocks":
    """The page of a folder.

    Args:
        repo: the name on the Hub for which its card is written.
        model: the painter of the prompts.
        published: the card of the repository `repo`, if the folder is a copy of it.

    Raises UserError if gradio is not installed, and if the folder holds neither a build nor a checkpoint nor
    a painter's adapter.
    """
    folder = Path(folder)
    tabs: list[Callable[[Any], None]] = []
    if (folder / "build.json").is_file():
        directory = BuildDirectory(folder)
        title, facts, table = directory.table.name, build_facts(directory), directory.table
        tabs = [partial(_rows_tabs, directory), partial(_prompt_tab, PromptPainter(model, table))]
    elif (folder / "config.json").is_file():
        from attn2mask.hub.preview.predictions import checkpoint_facts
        from attn2mask.training.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(folder)
        title, facts = folder.resolve().name, checkpoint_facts(checkpoint)
        table = bare_table(checkpoint.table_name, checkpoint.names)
        tabs = [partial(_predictions_tab, checkpoint), partial(_prompt_tab, PromptPainter(model, table))]
    elif (folder / LORA_WEIGHTS).is_file():
        check_weights(folder)
        title, facts = folder.resolve().name, ["LoRA adapter of a painter"]
    else:
        raise UserError(
            f"{folder} holds nothing to preview: no build (build.json), checkpoint (config.json) or painter's"
            f" adapter ({LORA_WEIGHTS})"
        )
    gradio = with_gradio("preview")
    if published is not None:
        title = str(repo)
    repo = repo or f"your-name/attn2mask-{re.sub(r'[^A-Za-z0-9._-]+', '-', title)}"
    with gradio.Blocks(
        title=f"{printable(title)} - attn2mask preview",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(KEPT, KEPT),
    ) as app:
        about = " &middot; ".join(map(text, facts))
        gradio.HTML(f"<h1>{text(title)}</h1><p>{about}</p>", elem_classes="page-title")
        with gradio.Tabs() as all_tabs:
            for make_tab in tabs:
                make_tab(all_tabs)
            _card_tab(cache(lambda: card_parts(published or card_of(folder, repo))))
    return app


def with_gradio(command: str) -> Any:
    """The module gradio. Raises UserError, which names the command that needs it, if it is not installed."""
    try:
        import gradio
    except ImportError as error:
        extra = "pip install 'attn2mask[preview]'"
        raise UserError(f"{command} needs gradio, an optional extra: {extra}") from error
    return gradio


def _rows_tabs(directory: BuildDirectory, tabs: Any) -> None:
    """The grid of all rows, and a tab for one of them, which a click on a tile of the grid opens."""
    import gradio as gr

    with gr.Tab("Rows"):
        grid = _grid(Rows(directory))
    with gr.Tab("One row", id="row"):
        number = _one_row(directory)

    def open_row(event: gr.EventData) -> tuple[Any, int]:
        return gr.Tabs(selected="row"), event.row

    grid.click(open_row, None, [tabs, number], show_progress="hidden", api_visibility="private")


def _grid(rows: Rows) -> Any:
    """The grid with its filters. Returns the component, whose event `click` has the number of a row."""
    import gradio as gr

    directory, table, notes = rows.directory, rows.directory.table, notes_of(rows)
    classes = [("all classes", -1), *((name, k) for k, name in enumerate(table.names))]
    with gr.Row(elem_classes="filters"):
        mask_id = gr.Dropdown(
            [entry for entry in classes if entry[0] != table.background],
            value=-1,
            label="Class",
            min_width=160,
        )
        rejection = gr.Dropdown(list(REJECTIONS.items()), value="all", label="Rejection", min_width=160)
        limits = [
            gr.Slider(0, 100, value, step=1, label=f"Reliable pixels in %, {word}", min_width=240, buttons=[])
            for word, value in (("at least", 0), ("at most", 100))
        ]
    with gr.Row(elem_classes="steps"):
        back = gr.Button("\u2190 Previous", size="md", min_width=120, scale=0)
        count = gr.HTML(elem_id="count")
        forth = gr.Button("Next \u2192", size="md", min_width=120, scale=0)
    grid = gr.HTML(elem_id="grid", js_on_load=OPEN_ROW)
    page, found = gr.State(0), gr.State(rows.numbers)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def select(
        mask_id: int,
        rejection: str,
        at_least: float,
        at_most: float,
        progress: Any = gr.Progress(),  # noqa: B008 (gradio takes it from here)
    ) -> tuple[list[int], int, str, str]:
        filters = Filters(None if mask_id < 0 else mask_id, at_least / 100, at_most / 100, rejection)
        numbers = rows.matching(filters, lambda done, total: progress((done, total), "Reading", unit="rows"))
        return numbers, 0, *show(numbers, 0)

    def show(numbers: list[int], page: int) -> tuple[str, str]:
        chosen = numbers[page * ROWS : (page + 1) * ROWS]
        if not chosen:
            return f"0 of {len(rows.numbers):,} rows", '<p class="aside">No row passes these filters.</p>'
        first = page * ROWS
        head = f"{first + 1:,} to {first + len(chosen):,} of {len(numbers):,} rows"
        if len(numbers) < len(rows.numbers):
            head += f" that pass, of {len(rows.numbers):,}"
        try:
            return head, grid_page({k: read_row(directory, k) for k in chosen}, table, notes)
        except UserError as error:
            return head, error_message(error)

    def turn(numbers: list[int], page: int, by: int) -> tuple[int, str, str]:
        page = (page + by) % max(math.ceil(len(numbers) / ROWS), 1)
        return page, *show(numbers, page)

    choices = [mask_id, rejection, *limits]
    gr.on(
        [part.change for part in choices],
        select,
        choices,
        [found, page, count, grid],
        trigger_mode="always_last",
        show_progress_on=grid,
        api_visibility="private",
    )
    for button, by in ((back, -1), (forth, 1)):
        button.click(partial(turn, by=by), [found, page], [page, count, grid], **quiet)
    count.value, grid.value = show(rows.numbers, 0)
    return grid


def _one_row(directory: BuildDirectory) -> Any:
    """A row with the rules of its labels. Returns the component that holds its number."""
    import gradio as gr

    record, rules = directory.record(), directory.rules
    count, with_scores = record["num_images"], record["identity"]["store_scores"]
    rules_of_build = (rules.threshold, rules.beta, rules.reliability, rules.graded)
    with gr.Row():
        with gr.Column(scale=4):
            with gr.Row(elem_classes="steps leaf"):
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
    return number


def _prompt_tab(painter: PromptPainter, tabs: Any) -> None:
    import gradio as gr

    with gr.Tab("Paint"):
        with gr.Row(elem_classes="ask"):
            prompt = gr.Textbox(
                label="Prompt",
                placeholder="a dog on a sofa",
                max_length=MOST_LETTERS,
                scale=4,
                min_width=240,
                buttons=[],
            )
            seed = gr.Number(
                0,
                label="Seed",
                precision=0,
                minimum=0,
                maximum=LARGEST_SEED,
                scale=1,
                min_width=110,
                buttons=[],
            )
            button = gr.Button("Paint", variant="primary", scale=0, min_width=110)
        gr.HTML(
            f'<p class="aside">painter {text(painter.model)} \u00b7 classes of {text(painter.table.name)}</p>'
        )
        painted = gr.HTML(
            '<p class="aside">The image, its mask and the attention to each word will appear here.</p>',
            elem_id="painted",
            min_height=120,
        )

    def paint(
        prompt: str,
        seed: int | None,
        progress: Any = gr.Progress(),  # noqa: B008 (gradio takes it from here)
    ) -> str:
        progress(0, "Loading the painter")
        try:
            return painter.page(
                prompt,
                int(seed or 0),
                lambda done, total: progress((done, total), "Painting", unit="steps"),
            )
        except UserError as error:
            return error_message(error)

    gr.on([button.click, prompt.submit], paint, [prompt, seed], painted, api_name="paint")


def _predictions_tab(checkpoint: "Checkpoint", tabs: Any) -> None:
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

    image.change(show, image, predictions, api_visibility="private")


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

    tab.select(show, None, [metadata, body], api_visibility="private")


@asynccontextmanager
async def _with_guard(server: Any, in_space: bool) -> AsyncIterator[None]:
    """Put the guard before everything that gradio's server does, when it starts."""
    server.middleware_stack = guarded(server.middleware_stack, in_space)
    yield


def serve(app: "gradio.Blocks", port: int | None, in_space: bool = False) -> str:
    """Serve the page, behind its guard, until `app.close()`. Returns its address.

    In a Space, requests from every host are served. The port is then that of the Space
    (GRADIO_SERVER_PORT).

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
            server_name="0.0.0.0" if in_space else "127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            footer_links=[],
            max_file_size=LARGEST_UPLOAD,
            app_kwargs={"lifespan": partial(_with_guard, in_space=in_space)},
            pwa=False,
            theme=theme,
            css=STYLE.read_text(),
        )
    except OSError as error:
        ports = f"--port {port}" if port else "every port from 7860 on"
        raise UserError(f"{ports} is taken: choose another with --port") from error
    return address
