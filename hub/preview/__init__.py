"""`attn2mask preview`: a local page for a look at results before they are published.

    attn2mask preview data/voc
    attn2mask preview runs/r50

For a build it shows the rows, which can be filtered, and, if scores are stored, the masks that other rules
would make of them. For a checkpoint it shows predictions for an image of the user. For both, it paints a
prompt. For both, and for a painter's LoRA adapter, it shows the card as the Hub will show it. gradio, an
optional extra, serves the page on 127.0.0.1 only, and only to itself (`guard`). The page loads nothing from
anywhere else. Uploaded images are deleted after an hour, and when it ends. `space` serves it as a Space.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from attn2mask.builders.options import CheckedOptions, option

if TYPE_CHECKING:
    import gradio


@dataclass(frozen=True)
class PreviewConfig(CheckedOptions):
    """The options of `attn2mask preview`."""

    dir: str = option("folder that `build`, `remask`, `train` or `adapt` wrote", positional=True)
    repo: str | None = option(
        "name of the repository for which the card is written",
        None,
        default_text="your-name/...",
        metavar="NAME",
    )
    model: str = option(
        "painter of the prompts: embedded, a pipeline's folder, or a model of the Hub", "embedded"
    )
    port: int | None = option(
        "port of the page", None, at_least=1, at_most=65535, default_text="the first free one from 7860"
    )


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM or the end of the terminal (SIGHUP) leave the block by an exception, so that it
    cleans up: KeyboardInterrupt, or SystemExit with the status 128 + signal. Later signals are ignored.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # One that is ignored already stays so: `nohup` ignores SIGHUP.
    former = {n: handler for n in numbers if (handler := signal.getsignal(n)) != signal.SIG_IGN}

    def end(number: int, frame: FrameType | None) -> None:
        for other in former:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in former:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run(config: PreviewConfig) -> None:
    """Serve the page until Ctrl-C. Raises UserError for what the user can correct."""
    from attn2mask.hub.preview.page import make_app

    serve_page(config.dir, lambda: make_app(config.dir, config.repo, config.model), config.port)


def serve_page(
    name: str, make: Callable[[], "gradio.Blocks"], port: int | None = None, in_space: bool = False
) -> None:
    """Make a page and serve it until the process is ended. `port` and `in_space` are as for `page.serve`."""
    from attn2mask.hub.preview.page import serve

    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="attn2mask-preview-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # uploaded images are removed with the page
        for variable in ("NO_PROXY", "no_proxy"):
            os.environ[variable] = f"{os.environ.get(variable, '')},127.0.0.1".removeprefix(",")
        app = make()
        try:
            print(f"{name}: {serve(app, port, in_space)} (Ctrl-C ends it)", flush=True)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        finally:
            app.close(verbose=False)
