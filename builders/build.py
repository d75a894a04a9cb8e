"""`attn2mask build`: makes a dataset from captions. It resumes, and the rows do not depend on the processes.

    attn2mask build voc --out data/voc
    accelerate launch builders/build.py voc --out data/voc

Shard i belongs to process i mod the number of processes. The processes share only the directory: there is no
process group that could hang, and a process that dies loses only the shard that it was making.
"""

import hashlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.files import write_file
from attn2mask.builders.options import check_ranges, fill, identity_of, option, preset_names, to_yaml
from attn2mask.builders.provenance import FORMAT_VERSION, license_of, provenance
from attn2mask.builders.rules import (
    CONSTANTS,
    PRESETS,
    RULES,
    RecordingOptions,
    RuleOptions,
    Rules,
    complete,
    load_rules,
    rules_of,
)
from attn2mask.builders.shards import BuildDirectory, Shard, plan
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.captions import Caption, read_captions

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from attn2mask.builders.painter import Painter
    from attn2mask.builders.sample import Sample
    from attn2mask.builders.synthesize import Synthesizer

logger = logging.getLogger(__name__)

RUN, MODEL, PROMPTS = "the dataset", "the painter", "prompts"


@dataclass(frozen=True)
class BuildConfig(RuleOptions, RecordingOptions):
    """The options of `attn2mask build`. None stands for the value of the preset, the model, the table or the
    machine. Raises UserError for numbers out of range.
    """

    GROUPS: ClassVar = (RUN, MODEL, PROMPTS, RULES, CONSTANTS)

    table: str = option(
        "class table: voc, cityscapes, imagenet_s_50, imagenet_s_300, imagenet_s_919, or a YAML file",
        positional=True,
    )
    out: str | None = option(
        "directory of the dataset", None, RUN, stored=False, default_text="data/TABLE", metavar="DIR"
    )
    num_images: int = option(
        "number of rows; a later run may ask for more, but not for fewer", 256, RUN, at_least=1
    )
    seed: int = option("random seed for prompts and images", 0, RUN, identity=True, at_least=0, card="seed")
    shard_size: int = option(
        "rows in one Parquet file; an interrupted run loses at most one file for each process",
        64,
        RUN,
        identity=True,
        at_least=1,
        card="rows in a shard",
    )
    store_scores: bool = option(
        "store the class scores with the rows, which `attn2mask remask` needs", False, RUN, identity=True
    )
    workers: int | None = option(
        "number of labeling processes beside each painting process",
        None,
        RUN,
        stored=False,
        at_least=1,
        default_text="one for each core but one",
    )
    num_processes: int | None = option(
        "start this many painting processes with accelerate",
        None,
        RUN,
        stored=False,
        at_least=1,
        default_text="this process alone",
    )
    accelerate_config: str | None = option(
        "start the processes that this configuration file of accelerate describes",
        None,
        RUN,
        stored=False,
        metavar="FILE",
    )
    push_to_hub: str | None = option(
        "publish the finished dataset as this repository of the Hub", None, RUN, stored=False, metavar="REPO"
    )

    model: str = option(
        "painter: embedded, a folder with a diffusers pipeline, or a model of the Hub", "embedded", MODEL
    )
    revision: str | None = option("revision of --model on the Hub", None, MODEL, default_text="the newest")
    lora: str | None = option("LoRA weights: a file, a folder, or a repository of the Hub", None, MODEL)
    lora_scale: float = option("strength of the LoRA", 1.0, MODEL, at_least=0)
    steps: int | None = option(
        "number of denoising steps",
        None,
        MODEL,
        identity=True,
        at_least=1,
        default_text="the model's",
        card="denoising steps",
    )
    guidance_scale: float | None = option(
        "scale of classifier-free guidance",
        None,
        MODEL,
        identity=True,
        at_least=0,
        default_text="the model's",
        card="guidance scale",
    )
    height: int | None = option(
        "image height in pixels",
        None,
        MODEL,
        identity=True,
        at_least=1,
        default_text="the model's",
        card="height in pixels",
    )
    width: int | None = option(
        "image width in pixels",
        None,
        MODEL,
        identity=True,
        at_least=1,
        default_text="the model's",
        card="width in pixels",
    )
    batch_size: int = option("number of images painted at a time", 8, MODEL, at_least=1)

    captions: str | None = option(
        "captions: a .jsonl or .txt file, COCO's captions .json, or a dataset of the Hub",
        None,
        PROMPTS,
        default_text="the built-in grammar",
        metavar="SOURCE",
    )
    alias_probability: float = option(
        "probability, 0 to 1, that a class word is replaced by one of its synonyms or hyponyms",
        0.5,
        PROMPTS,
        identity=True,
        at_least=0,
        at_most=1,
        card="probability of an alias",
    )
    balance: bool | None = option(
        "give all classes the same number of prompts, in turns",
        None,
        PROMPTS,
        identity=True,
        default_text="the table's",
        card="classes take turns",
    )

    preset: str = option(
        "take the values of all rules that are not given from this preset",
        "default",
        RULES,
        choices=preset_names(PRESETS),
        kw_only=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        plan(self.num_images, self.shard_size)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a build: its options with the values of preset and table filled in, the class table, and
    the captions (None for the built-in grammar).
    """

    config: BuildConfig
    table: ClassTable
    captions: list[Caption] | None

    @property
    def rules(self) -> Rules:
        """The rules of the labels."""
        return rules_of(self.config)

    def identity(self) -> dict[str, Any]:
        """All that the rows depend on, except for the facts of the painter, which are known later."""
        texts = None if self.captions is None else "\n".join(caption.text for caption in self.captions)
        chosen = {name: value for name, value in identity_of(self.config).items() if value is not None}
        return {
            "table": self.table.name,
            "table_version": _digest(json.dumps(self.table.facts())),
            "captions": "grammar" if texts is None else _digest(texts),
            **chosen,
        }

    def for_painter(self, painter: "Painter") -> "Inputs":
        """These inputs with the defaults of the model filled in. Raises UserError for a size or a number of
        steps that the model does not support.

        By default, images have the size of the model. If the caption style of the table gives an aspect, they
        have the model's height, and the width that follows from the aspect.
        """
        config, style = self.config, self.table.caption_style
        own = painter.defaults
        defaults = {
            "steps": own.steps,
            "guidance_scale": own.guidance_scale,
            "height": own.height,
            "width": own.width,
        }
        if style is not None and style.aspect != 1:
            factor = painter.pipe.vae_scale_factor
            if config.width is not None:
                defaults["height"] = max(round(config.width / style.aspect / factor), 1) * factor
            height = config.height or defaults["height"]
            defaults["width"] = max(round(height * style.aspect / factor), 1) * factor
        config = fill(config, defaults)
        painter.check(config.steps, config.height, config.width)
        return replace(self, config=config)

    def synthesizer(self, painter: "Painter", pool: "ProcessPoolExecutor") -> "Synthesizer":
        """The synthesizer of these inputs, which `for_painter` has completed."""
        from attn2mask.builders.painter import Painting
        from attn2mask.builders.prompts import PromptSource
        from attn2mask.builders.synthesize import Synthesizer

        config = self.config
        source = PromptSource(
            self.table,
            self.captions,
            painter.tokenizers,
            seed=config.seed,
            alias_probability=config.alias_probability,
            balance=config.balance,
        )
        painting = Painting(
            config.steps, config.guidance_scale, config.height, config.width, self.rules.window
        )
        return Synthesizer(
            self.table, source, painter, painting, self.rules, pool, config.seed, config.batch_size
        )


def resolve(config: BuildConfig) -> Inputs:
    """Apply preset and class table, and read the captions. A warning lists broken captions.

    Raises UserError for a table or captions that cannot be read, and for options that contradict each other.
    """
    table = load_table(config.table)
    config = complete(config, load_rules(config.preset))
    if config.balance is None:
        style = table.caption_style
        config = replace(config, balance=style is not None and style.balance)
    captions = None
    if config.captions is not None:
        captions, warnings = read_captions(config.captions)
        for warning in warnings:
            logger.warning(warning)
    return Inputs(config, table, captions)


def run(config: BuildConfig) -> BuildDirectory:
    """Make the dataset, or its missing shards. Raises UserError for mistakes that the user can correct."""
    from accelerate.utils.environment import get_cpu_distributed_information

    process = get_cpu_distributed_information()
    inputs = resolve(config)
    directory = BuildDirectory(Path(config.out or f"data/{inputs.table.name}"))
    directory.check_free()
    with directory.locked(process.rank, run_name(process.world_size)):
        directory.check_identity(inputs.identity())
        logger.info("Loading the painter %s", config.model)
        import torch

        from attn2mask.builders.painter import load_painter
        from attn2mask.builders.workers import default_workers, labeling_pool

        device = f"cuda:{process.local_rank}" if torch.cuda.is_available() else "cpu"
        painter = load_painter(config.model, config.revision, config.lora, config.lora_scale, device)
        inputs = inputs.for_painter(painter)
        with labeling_pool(config.workers or default_workers(process.local_world_size)) as pool:
            synthesizer = inputs.synthesizer(painter, pool)
            licenses = {"license": license_of(config.model, painter.facts["model_version"])}
            if config.lora:
                licenses["lora_license"] = license_of(config.lora)
            record = {
                "format_version": FORMAT_VERSION,
                "command": "build",
                "num_images": config.num_images,
                "identity": inputs.identity() | painter.facts,
                "captions": {
                    "source": Path(config.captions).name if config.captions else "built-in grammar",
                    "naming_a_class": synthesizer.source.selected,
                },
                "batch_size": config.batch_size,
                "device": device,
                "dtype": str(painter.pipe.dtype).removeprefix("torch."),
                **licenses,
                **provenance(),
                "table": inputs.table.facts(),
            }
            options = to_yaml(inputs.config, "attn2mask build --config build.yaml")
            make_dataset(
                directory,
                record,
                {"build.yaml": options},
                inputs.table,
                config.store_scores,
                lambda shard, settled: synthesizer.samples(shard.rows, settled),
                rank=process.rank,
                processes=process.world_size,
            )
    return directory


def make_dataset(
    directory: BuildDirectory,
    record: dict[str, Any],
    options: Mapping[str, str],
    table: ClassTable,
    store_scores: bool,
    samples: Callable[[Shard, Callable[[], object]], Iterable["Sample"]],
    rank: int = 0,
    processes: int = 1,
) -> None:
    """Make the missing shards of this process, and finish the dataset if all shards are there.

    `record` is the content of build.json, and `options` are the texts of the YAML files beside it, by file
    name. `samples` returns the samples of a shard, and calls its second argument once for each finished one.
    """
    from attn2mask.builders.report import dataset_readme, shard_report, totals
    from attn2mask.builders.sample import features

    started = time.monotonic()
    directory.claim(record, options, rank)
    shards = plan(record["num_images"], record["identity"]["shard_size"])
    directory.check_data(shards)
    own = shards[rank::processes]
    missing = directory.missing(own)
    columns = features(table, store_scores)
    finished = sum(len(shard.rows) for shard in own if shard not in missing)
    with tqdm(
        total=sum(len(shard.rows) for shard in own),
        initial=finished,
        desc=str(directory.path),
        unit=" images",
        disable=rank != 0 or not missing,
    ) as bar:
        for shard in missing:
            made = list(samples(shard, bar.update))
            rows = (sample.to_row(store_scores) for sample in made)
            directory.write_shard(shard, columns, rows, shard_report(made, table.names))

    took = f"in {_duration(time.monotonic() - started)}"
    made_now = sum(len(shard.rows) for shard in missing)
    with directory.finishing():
        manifests = directory.manifests(shards)
        if manifests is None:
            logger.info(
                "%s: process %d of %d finished its %d rows %s; other processes still have shards to make",
                directory.path,
                rank,
                processes,
                made_now,
                took,
            )
            return
        report = totals(manifests)
        write_file(directory.path / "report.json", json.dumps(report, indent=1).encode())
        write_file(directory.path / "README.md", dataset_readme(record, report, manifests, columns).encode())
    with_processes = f" with {processes} processes" if processes > 1 else ""
    done = (
        f"{made_now} of them were made now, {took}{with_processes}" if made_now else "all were there already"
    )
    print(f"{directory.path}: {report['rows']} rows in {len(shards)} shards; {done}")
    print(
        f"{report['rows_with_foreground']} rows hold a class. The gate rejected {report['rejected_attempts']}"
        f" attempts and dropped classes of {len(report['dropped'])} rows. The reasons are in report.json"
    )
    print(f"next: attn2mask show {directory.path} --out sheet.png")


def run_name(processes: int) -> str:
    """A name of this run. All processes of one launch have the same name."""
    if processes > 1:
        return f"launched from {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return f"process {os.getpid()} on {socket.gethostname()}"


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


if __name__ == "__main__":
    from attn2mask.hub.cli import main

    sys.exit(main(["build", *sys.argv[1:]]))
