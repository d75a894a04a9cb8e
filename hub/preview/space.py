"""The preview page as a Space of the Hub: app.py of the Space calls `start`.

start("dataset", "org/attn2mask-voc")
start("model", "org/attn2mask-deeplabv3plus-resnet50")
"""

import os
from pathlib import Path
from typing import Literal

from attn2mask.builders.errors import UserError, printable
from attn2mask.hub.cards.markdown import Card
from attn2mask.hub.hub_client import errors_in_one_line, with_retries
from attn2mask.hub.preview import serve_page
from attn2mask.hub.preview.page import make_app
from attn2mask.hub.space import shown_config

MOST_BYTES = 2 * 2**30  # of the shards that a Space downloads; the page shows their rows
MODEL_FILES = ("*.json", "*.safetensors", "peer/*", "README.md", "assets/*.png")


def start(
    kind: Literal["dataset", "model"], repo: str, config_name: str | None = None, model: str = "embedded"
) -> None:
    """Serve the page of a dataset or of a checkpoint of the Hub, until the process is ended.

    On the machines of a Space, which have the variable SPACE_ID, the page serves requests from every host.
    Elsewhere it serves this machine alone.

    Args:
        config_name: the config of the dataset; None if it has only one.
        model: the painter of the prompts.

    Raises SystemExit, with one line, if the repository cannot be downloaded or shown.
    """
    in_space = bool(os.environ.get("SPACE_ID"))
    try:
        root, folder = download(kind, repo, config_name)
        serve_page(repo, lambda: make_app(folder, repo, model, card_in(root)), in_space=in_space)
    except UserError as error:
        raise SystemExit(f"attn2mask: error: {printable(str(error))}") from error


def download(kind: Literal["dataset", "model"], repo: str, config_name: str | None) -> tuple[Path, Path]:
    """The folder of a copy of the repository, and the folder in it that the page shows.

    Of a dataset, the copy has one config, and its first shards up to `MOST_BYTES`. Raises UserError as
    `errors_in_one_line` and `shown_config`.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="attn2mask")
    with errors_in_one_line(repo):
        if kind == "model":
            root = Path(api.snapshot_download(repo, allow_patterns=list(MODEL_FILES)))
            return root, root
        found = with_retries(lambda: api.list_repo_tree(repo, recursive=True, repo_type=kind))
        sizes = {entry.path: entry.size for entry in found if hasattr(entry, "size")}
    name = shown_config(sizes, repo, config_name)
    wanted = [f"{name}/build.json", f"{name}/report.json", "README.md", f"assets/{name}-*.png"]
    total = 0
    for shard in sorted(path for path in sizes if path.startswith(f"{name}/train-")):
        total += sizes[shard]
        if total <= MOST_BYTES:
            wanted.append(shard)
    with errors_in_one_line(repo):
        root = Path(api.snapshot_download(repo, repo_type=kind, allow_patterns=wanted))
    return root, root / name


def card_in(root: Path) -> Card:
    """The card in a copy of a repository, with its figures."""
    figures = {f"assets/{file.name}": file.read_bytes() for file in (root / "assets").glob("*.png")}
    card = root / "README.md"
    return Card(card.read_text("utf-8") if card.is_file() else "", figures)
