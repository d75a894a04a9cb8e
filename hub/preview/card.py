"""The card of a build, a checkpoint or an adapter, as the page shows it."""

import re
from pathlib import Path

from huggingface_hub.repocard import REGEX_YAML_BLOCK

from attn2mask.builders.markdown import url
from attn2mask.builders.shards import BuildDirectory
from attn2mask.hub.cards.markdown import Card, split
from attn2mask.hub.preview.pieces import data_uri


def card_of(folder: Path, repo: str) -> Card:
    """The card that publishing `folder` as the new repository `repo` would write."""
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
    head, text = REGEX_YAML_BLOCK.search(card.text), split(card.text)[1]
    for name, content in card.files.items():
        if name.endswith(".png"):
            text = re.sub(rf'(?<=[("]){re.escape(url(name))}(?=[)" ])', data_uri(content), text)
    return (head[2] if head else "").strip(), text.strip()
