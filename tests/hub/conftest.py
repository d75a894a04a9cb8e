"""Builds of drawn scenes, as `attn2mask build` leaves them, for tests of cards, publishing and preview; and a
Hub on this machine.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from loopback_hub import TOKEN, LoopbackHub
from PIL import Image

from attn2mask.builders.build import BuildConfig, Inputs, make_dataset
from attn2mask.builders.classes import ClassTable
from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.label import label
from attn2mask.builders.options import to_yaml
from attn2mask.builders.provenance import FORMAT_VERSION, license_of, provenance
from attn2mask.builders.rules import complete, load_rules
from attn2mask.builders.sample import Sample
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main

RULES = load_rules("embedded")
# Text that Markdown, HTML or a template would read as its own.
PROMPT = "a <b>{}</b> | of <!-- things & ${{1 + 1}}, {{{{2 * 3}}}}"
PAINTER = {
    "model": "embedded",
    "model_version": "sha256:abc",
    "pipeline": "StableDiffusionPipeline",
    "scheduler": {"class": "DDIMScheduler", "beta_start": 0.00085},
}
CONDITIONS = {
    "device": "cpu",
    "dtype": "float32",
    "threads": 2,
    "cpu_capability": "AVX2",
    "batch_size": 8,
}


@pytest.fixture(scope="session")
def drawn_sample() -> Callable[..., Sample]:
    """`drawn_sample(index, table, seed=0)`: a drawn scene of 64 x 64, labeled by the default rules.

    Its class scores are its exact mask at 8 x 8. The class k of the scene is the table's class k, counted
    from the last class. Sample 1 was painted a second time.
    """

    def sample(index: int, table: ClassTable, seed: int = 0) -> Sample:
        scene = draw_scene("objects", np.random.default_rng([seed, index]), 64)
        thing = scene.mask > 0
        ids = len(table.names) - 1 - scene.mask.astype(int) % len(table.classes)
        classes = [int(k) for k in np.unique(ids[thing])]
        masks = [Image.fromarray(np.uint8(255 * (thing & (ids == k)))) for k in classes]
        scores = np.stack([np.asarray(mask.resize((8, 8), Image.Resampling.BOX)) for mask in masks])
        words = [table.names[k] for k in classes]
        made = label(scene.image, scores, [0.25] * len(classes), classes, words, RULES, table)
        row = {
            "prompt": PROMPT.format(words[0]),
            "caption": "a thing",
            "classes": classes,
            "words": words,
            "seed": index,
            "sample_id": f"{table.name}-{seed}-{index:08d}",
            "peaks": [0.25] * len(classes),
            "scores": scores.tolist(),
        }
        rejected = ("attempt 0: cat: it owns 2 of 4096 pixels after the CRF",) if index == 1 else ()
        return made.sample(row, made.dropped, rejected)

    return sample


@pytest.fixture(scope="session")
def make_build(drawn_sample) -> Callable[..., Path]:
    """`make_build(path, name="voc", rows=6, seed=0, like="voc", scores=True)`: a build in shards of two rows.

    Its class table is that of `like` under the name `name`. `scores` says whether its rows hold their scores.
    A build with more rows than `path` already holds makes the rows that are missing.
    """

    def build(
        path: Path, name: str = "voc", rows: int = 6, seed: int = 0, like: str = "voc", scores: bool = True
    ) -> Path:
        table = replace(load_table(like), name=name)
        config = BuildConfig(
            name,
            num_images=rows,
            shard_size=2,
            seed=seed,
            steps=20,
            guidance_scale=3.0,
            height=64,
            width=64,
            store_scores=scores,
        )
        inputs = Inputs(complete(config, RULES), table, None)
        record = {
            "format_version": FORMAT_VERSION,
            "command": "build",
            "num_images": rows,
            "identity": inputs.identity() | PAINTER,
            "captions": {"source": "built-in grammar", "read": 0, "selected": 0},
            "latent_side": 8,
            "begun_under": CONDITIONS,
            "license": license_of("embedded"),
            **provenance(),
            "table": table.facts(),
        }
        path.mkdir(exist_ok=True)
        make_dataset(
            BuildDirectory(path),
            record,
            {"build.yaml": to_yaml(inputs.config, "attn2mask build --config build.yaml")},
            table,
            lambda shard, _: (drawn_sample(index, table, seed) for index in shard.rows),
            lambda shard: CONDITIONS,
        )
        return path

    return build


@pytest.fixture
def hub():
    with LoopbackHub() as running:
        yield running


@pytest.fixture
def publish(hub, tmp_path, monkeypatch, capsys) -> Callable:
    """`publish("dataset", path, DATA, ...)`: the command in this process, without its waits; returns the exit
    status, what it printed, and its last line of errors.
    """
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    address = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["publish", *map(str, argv)])
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        lines = re.findall("attn2mask: .*", err)  # a progress bar may stand before it
        return status, out, lines[-1] if lines else ""

    return run
