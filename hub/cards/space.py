"""The card of a Space: its metadata tell the Hub how to start it. The prose is in `templates/space.md`."""

import re

from attn2mask.builders.markdown import code, link
from attn2mask.hub.cards.markdown import Card, compose, merge, render, split

# What the owner of a Space chooses in its settings.
APPEARANCE = ("title", "emoji", "colorFrom", "colorTo", "pinned", "license", "short_description", "thumbnail")
# The sentence that the Hub writes into the card of a new Space.
HUB_SENTENCE = re.compile(
    r"Check out the configuration reference at https://huggingface\.co/docs/hub/spaces\S*"
)


def space_card(
    repo_id: str, kind: str, shown: str, model: str, gradio: str, python: str, old: str | None = None
) -> Card:
    """README.md of the Space of the dataset or model `shown` (by its `kind`), which paints with `model`.

    Args:
        gradio, python: the versions that the Hub installs.
        old: the card in the repository. Its free text stays, and so does what its owner chose.
    """
    from huggingface_hub import SpaceCardData

    models = ([shown] if kind == "model" else []) + ([model] if model != "embedded" else [])
    data = SpaceCardData(
        title=repo_id.split("/")[-1],
        emoji="\U0001f3a8",
        colorFrom="indigo",
        colorTo="blue",
        sdk="gradio",
        sdk_version=gradio,
        python_version=python,
        app_file="app.py",
        license="apache-2.0",
        datasets=[shown] if kind == "dataset" else None,
        models=models or None,
        tags=["attn2mask"],
    )
    folder = "datasets/" if kind == "dataset" else ""
    values = {
        "kind": kind,
        "model": code(model),
        "shown": link(shown, f"https://huggingface.co/{folder}{shown}"),
    }
    new = render(data, "space", repo_id, **values)
    if old is None:
        return Card(new, {})
    chosen, body = split(old)
    text = merge(new, compose(chosen, HUB_SENTENCE.sub("", body)))
    data, body = split(text)
    return Card(compose(data | {key: chosen[key] for key in APPEARANCE if key in chosen}, body), {})
