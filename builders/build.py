"""`attn2mask build`: makes a dataset from captions. It resumes, and equal processes make equal rows.

    attn2mask build voc --out data/voc
    accelerate launch builders/build.py voc --out data/voc

Shard i belongs to process i mod the number of processes. They share only the directory: there is no process
group that could hang, and a process that dies loses only the shard that it was making.
"""

import sys

if __name__ == "__main__":  # before all other imports, so that Ctrl-C can be handled from here on
    from attn2mask.__main__ import main

    sys.exit(main(["build", *sys.argv[1:]]))

import hashlib
import json
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import yaml
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.conditions import painting_conditions, several_conditions
from attn2mask.builders.counts import prompt_counts, rows_text, table_text
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.locks import run_name
from attn2mask.builders.options import (
    SAME_COMMAND,
    LaunchOptions,
    fill,
    identity_of,
    option,
    read_preset,
    to_yaml,
)
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
    preset_for,
    rules_of,
    rules_preset,
)
from attn2mask.builders.seals import sealed
from attn2mask.builders.shards import BuildDirectory, Shard, plan
from attn2mask.builders.table_reader import TABLES, load_table
from attn2mask.builders.words.captions import Caption, read_captions
from attn2mask.builders.words.context import LISTS

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    import datasets

    from attn2mask.builders.painter import Painter, Painting
    from attn2mask.builders.prompts import PromptSource
    from attn2mask.builders.quality import Quality
    from attn2mask.builders.sample import Sample
    from attn2mask.builders.stretches import Stretch
    from attn2mask.builders.synthesize import Synthesizer

logger = logging.getLogger(__name__)

RUN, MODEL, PROMPTS = "the dataset", "the painter", "prompts"
_row_option, _prompt_option = (partial(option, group=group, identity=True) for group in (RUN, PROMPTS))
_model_value = partial(option, default=None, group=MODEL, identity=True, default_text="the model's")
local_option = partial(option, default=None, group=RUN, stored=False)


@dataclass(frozen=True)
class BuildConfig(RuleOptions, RecordingOptions, LaunchOptions):
    """The options of `attn2mask build`. None stands for the value of preset, model, table or machine."""

    GROUPS: ClassVar = (RUN, MODEL, PROMPTS, RULES, CONSTANTS)
    RESUMES: ClassVar = SAME_COMMAND
    SAVES_MEMORY: ClassVar = (
        "use a smaller --batch-size, --height and --width, or fewer --workers; images that are painted after"
        " a change of --batch-size may differ in the last bit from those of the size before"
    )

    table: str = option(f"class table: {', '.join(TABLES)}, or a YAML file", positional=True)
    out: str | None = local_option("directory of the dataset", default_text="data/TABLE", metavar="DIR")
    num_images: int = option("number of rows; a later run may ask for more, not fewer", 256, RUN, at_least=1)
    seed: int = _row_option("random seed for prompts and images", 0, at_least=0, card="seed")
    shard_size: int = _row_option(
        "rows in one Parquet file, the most that a crash loses", 64, at_least=1, card="rows in a shard"
    )
    store_scores: bool = _row_option("store the class scores, which `attn2mask remask` needs", False)
    store_maps: bool = _row_option("store attention maps for remask, 11 kB a class at 512 pixels", False)
    store_self_attention: bool = _row_option(
        "store self-attention for remask, 2 MB a row at 512 pixels", False
    )
    overlay: bool = _row_option("store the mask drawn over the image as column overlay", False)
    store_quality: bool = _row_option("store the share of reliable pixels, and a hash of the image", False)
    score_model: str | None = option(
        "model like CLIP that scores if images show what prompts say", None, RUN, metavar="MODEL"
    )
    min_presence: float | None = _row_option(
        "trust no class of a lower presence, 0 to 1, by --score-model",
        None,
        at_least=0,
        at_most=1,
        card="least presence of a trusted class",
    )
    workers: int | None = local_option(
        "number of labeling processes", at_least=1, default_text="one for each core but one"
    )
    exact: bool = local_option(
        "refuse to resume where images could differ in the last bit", default=False, default_text="off"
    )
    dry_run: bool = local_option(
        "only count the rows of each class; --out is then a JSON file",
        default=False,
        default_text="off",
    )

    model: str = option("embedded, a pipeline's folder, or a model of the Hub", "embedded", MODEL)
    revision: str | None = option("revision of --model on the Hub", None, MODEL, default_text="the newest")
    lora: str | None = option("LoRA weights: a file, a folder, or a repository of the Hub", None, MODEL)
    lora_scale: float = option("strength of the LoRA", 1.0, MODEL, at_least=0)
    steps: int | None = _model_value(
        "number of denoising steps",
        at_least=1,
        default_text="the preset's, or else the model's",
        card="denoising steps",
    )
    guidance_scale: float | None = _model_value(
        "scale of guidance by the prompt", at_least=0, card="guidance scale"
    )
    negative_prompt: str | None = _model_value(
        "what no image should show", default_text="none", card="negative prompt", metavar="TEXT"
    )
    scheduler: str | None = option(
        "scheduler, by the name of its class in diffusers",
        None,
        MODEL,
        default_text="the model's",
        metavar="CLASS",
    )
    height: int | None = _model_value("image height in pixels", at_least=1, card="height in pixels")
    width: int | None = _model_value("image width in pixels", at_least=1, card="width in pixels")
    batch_size: int | None = option(
        "number of images painted at a time", None, MODEL, at_least=1, default_text="8 or fewer, by the model"
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = _model_value(
        "type of the weights: float32, float16 or bfloat16",
        metavar="TYPE",
    )
    offload: Literal["none", "model", "sequential", "group"] = option(
        "keep weights on the CPU: none, model, sequential or group",
        "none",
        MODEL,
        metavar="WHAT",
    )

    captions: str | None = option(
        "a .jsonl, .txt or .json file or Hub dataset",
        None,
        PROMPTS,
        default_text="the built-in grammar",
        metavar="SOURCE",
    )
    alias_probability: float = _prompt_option(
        "probability, 0 to 1, that another word replaces a class word",
        0.5,
        at_least=0,
        at_most=1,
        card="probability of an alias",
    )
    aliases: str = _prompt_option(
        "list of replacing words; paper takes all of Table 5",
        "default",
        choices=("default", "paper"),
        card="list of aliases",
    )
    no_balance: bool = option(
        "keep the captions' frequencies of the classes",
        False,
        PROMPTS,
    )

    preset: str | None = rules_preset("by painter: embedded or photo")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.store_self_attention and not self.store_maps:
            raise UserError("--store-self-attention is used only with --store-maps")
        if self.min_presence is not None and self.score_model is None:
            raise UserError("--min-presence is used only with --score-model")
        if self.store_maps:  # while the options of recording stay, `remask` takes the scores
            object.__setattr__(self, "store_scores", True)
        plan(self.num_images, self.shard_size)
        if self.dry_run and self.push_to_hub is not None:
            raise UserError("--dry-run makes no dataset: leave out --push-to-hub")


@dataclass(frozen=True)
class Inputs:
    """The options of a build, with the values of preset and table filled in, its class table, and its
    captions (None for the built-in grammar).
    """

    config: BuildConfig
    table: ClassTable
    captions: list[Caption] | None

    @property
    def rules(self) -> Rules:
        """The rules of the labels."""
        return rules_of(fill(self.config, asdict(load_rules(self.config.preset))))

    @property
    def balance(self) -> bool:
        """Whether the classes take turns: in tables of two or more things, unless the caption style of the
        table says otherwise, and never with --no-balance.
        """
        style, classes = self.table.caption_style, self.table.classes
        if self.config.no_balance or style is None or style.balance is None:
            return not self.config.no_balance and len(classes) > 1 and all(label.thing for label in classes)
        return style.balance

    def identity(self) -> dict[str, Any]:
        """All that the rows depend on, except for the facts of the painter, which are known later."""
        from attn2mask.builders.prompts import BACKGROUND_WORDS, PROMPT_RULES

        lists = [LISTS, BACKGROUND_WORDS] if self.config.background_words else [LISTS]
        texts = None if self.captions is None else "\n".join(caption.text for caption in self.captions)
        own = {
            "table": self.table.name,
            "table_version": _digest(json.dumps(self.table.facts())),
            "captions": "grammar" if texts is None else _digest(texts),
            "prompt_rules": PROMPT_RULES,
            "word_lists": _digest(
                "".join(json.dumps(yaml.safe_load(file.read_text("utf-8"))) for file in lists)
            ),
            "balance": self.balance,
        }
        return own | {name: value for name, value in identity_of(self.config).items() if value is not None}

    def for_painter(self, painter: "Painter") -> "Inputs":
        """These inputs with the defaults of the model filled in. If the caption style of the table gives an
        aspect, the width follows from it and the model's height. Raises UserError for a size or a number of
        steps that the model does not support, and for a negative prompt that it would not use.
        """
        config, style = self.config, self.table.caption_style
        chosen_by_model = ("steps", "guidance_scale", "height", "width")
        defaults = {name: getattr(painter.defaults, name) for name in chosen_by_model}
        defaults["batch_size"] = painter.family.batch_size
        rules = load_rules(config.preset)
        defaults["record_from"], defaults["record_to"] = painter.family.window or rules.window
        if style is not None and style.aspect != 1:
            factor = painter.pixel_multiple
            if config.width is not None:
                defaults["height"] = max(round(config.width / style.aspect / factor), 1) * factor
            height = config.height or defaults["height"]
            defaults["width"] = max(round(height * style.aspect / factor), 1) * factor
        config = fill(config, defaults)
        painter.check(config.steps, config.height, config.width)
        if config.negative_prompt is not None and config.guidance_scale <= painter.family.unguided:
            raise UserError(
                "--negative-prompt has no effect without guidance: raise --guidance-scale, which is"
                f" {config.guidance_scale:g} for this model, above {painter.family.unguided:g}"
                if painter.family.unguided < math.inf
                else "--negative-prompt has no effect on this model, whose guidance takes none: leave it out"
            )
        return replace(self, config=config)

    def prompt_source(
        self, stretches: "Sequence[Stretch]", instance_prompt: str | None = None
    ) -> "PromptSource":
        """The prompts of these inputs for a painter with these stretches of text keys. `instance_prompt` is
        added to each.
        """
        from attn2mask.builders.prompts import PromptSource

        config = self.config
        return PromptSource(
            self.table,
            self.captions,
            stretches,
            seed=config.seed,
            alias_probability=config.alias_probability,
            balance=self.balance,
            instance_prompt=instance_prompt,
            background=self.rules.background_words,
        )

    def synthesizer(self, painter: "Painter", pool: "ProcessPoolExecutor") -> "Synthesizer":
        """The synthesizer of these inputs, which `for_painter` has completed."""
        from attn2mask.builders.synthesize import Synthesizer

        config, source = self.config, self.prompt_source(painter.stretches, painter.instance_prompt)
        batch = config.batch_size
        on_gpu = not painter.device.startswith("cpu")
        return Synthesizer(
            self.table,
            source,
            painter,
            self.painting(),
            self.rules,
            pool,
            config.seed,
            batch,
            on_gpu,
            config.overlay,
        )

    def painting(self) -> "Painting":
        """How images of these inputs, which `for_painter` has completed, are painted."""
        from attn2mask.builders.painter import Painting

        config = self.config
        self_attention = bool(self.rules.propagation_power) or config.store_self_attention
        return Painting(
            config.steps,
            config.guidance_scale,
            config.height,
            config.width,
            self.rules.window,
            config.negative_prompt,
            self.rules.propagation_fraction if self_attention else None,
            self.rules.background_words,
        )


def painter_of(config: BuildConfig, device: str | None = None) -> "Painter":
    """The painter that the options name, on `device`. Raises as `load_painter`."""
    import torch

    from attn2mask.builders.painter import load_painter

    dtype = config.dtype and getattr(torch, config.dtype)
    return load_painter(
        config.model,
        config.revision,
        config.lora,
        config.lora_scale,
        device,
        dtype,
        config.offload,
        config.scheduler,
    )


def quality_of(
    config: BuildConfig, table: ClassTable, device: str | None = None
) -> tuple["Quality", dict[str, str]]:
    """What measures the rows that the options ask for, and the facts of its model. Raises UserError as
    `load_score_model`.
    """
    from attn2mask.builders.quality import Quality
    from attn2mask.builders.sample import optional_columns

    stored = optional_columns(vars(config))
    if config.score_model is None:
        return Quality(table, stored), {}
    from attn2mask.builders.score_model import RowScorer, load_score_model

    logger.info("Loading the model of scores %s", config.score_model)
    model = load_score_model(config.score_model, device)
    return Quality(table, stored, RowScorer(model, table), config.min_presence), model.facts


def resolve(config: BuildConfig) -> Inputs:
    """Apply preset and class table, and read the captions. A warning lists broken captions.

    Raises UserError for a table or captions that cannot be read, for a preset that does not exist or is not
    for the painter, and for options that contradict each other.
    """
    table = load_table(config.table)
    if config.aliases == "paper":
        table = table.with_all_aliases()
    preset = preset_for(config.model, config.preset)
    filled = complete(replace(config, preset=preset), load_rules(preset))
    filled = fill(filled, read_preset(PRESETS, preset))
    if config.preset is None and config.record_from is None and config.record_to is None:
        filled = replace(filled, record_from=None, record_to=None)  # `for_painter` asks the model's family
    config = filled
    captions, warnings = read_captions(config.captions) if config.captions is not None else (None, [])
    for warning in warnings:
        logger.warning(warning)
    return Inputs(config, table, captions)


def dry_run(config: BuildConfig) -> None:
    """Print what the rows of a build would name, and write it as JSON if `config.out` names a file.

    The weights of the painter are not loaded. Raises UserError for mistakes that the user can correct.
    """
    from attn2mask.builders.painter import load_stretches

    out = None if config.out is None else Path(config.out)
    if out is not None and (out.suffix != ".json" or out.is_dir()):
        raise UserError(f"--out {out}: with --dry-run, give the name of a .json file for the counts")
    source = resolve(config).prompt_source(load_stretches(config.model, config.revision))
    counts = prompt_counts(source, config.num_images)
    print(table_text(counts, config.num_images))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, f"{json.dumps(counts, indent=2)}\n".encode())
        print(f"the counts are in {out}")


def build_dataset(table: str, out: str | None = None, **options: Any) -> "datasets.Dataset":
    """Make a dataset, or its missing shards, as `attn2mask build` does, and load its rows.

    `options` are those of `BuildConfig`. Labeling runs in processes that import the main module again, so
    that a script needs an `if __name__ == "__main__":` block. Raises UserError for the same mistakes as
    `attn2mask build`, and TypeError for an unknown option.
    """
    from attn2mask.builders.row_reader import load_rows

    config = BuildConfig(table, out=out, **options)
    if config.dry_run:
        raise UserError("dry_run makes no dataset: use `attn2mask build --dry-run`")
    return load_rows(str(run(config).path), verify=False)


def run(config: BuildConfig) -> BuildDirectory | None:
    """Make the dataset, or its missing shards. With `dry_run`, only count, and return None.

    Raises UserError for mistakes that the user can correct.
    """
    if config.dry_run:
        dry_run(config)
        return None
    from accelerate.utils.environment import get_cpu_distributed_information

    process = get_cpu_distributed_information()
    inputs = resolve(config)
    directory = BuildDirectory(Path(config.out or f"data/{inputs.table.name}"))
    directory.check_free()
    with directory.locked(process.rank, run_name(process.world_size)):
        directory.check_identity(inputs.identity())
        from attn2mask.builders.devices import default_device
        from attn2mask.builders.workers import default_workers, labeling_pool

        device = default_device(process.local_rank)
        quality, scored_by = quality_of(config, inputs.table, device)
        logger.info("Loading the painter %s", config.model)
        painter = painter_of(config, device)
        inputs = inputs.for_painter(painter)
        with labeling_pool(config.workers or default_workers(process.local_world_size)) as pool:
            synthesizer = inputs.synthesizer(painter, pool)
            shards = plan(config.num_images, config.shard_size)
            conditions = painting_conditions(painter, inputs.config.batch_size)
            if process.rank == 0 and directory.manifests(shards) is None:
                print(rows_text(synthesizer.source, config.num_images))
            record = {
                "format_version": FORMAT_VERSION,
                "command": "build",
                "num_images": config.num_images,
                "identity": inputs.identity() | painter.facts | scored_by,
                "captions": {
                    "source": Path(config.captions).name if config.captions else "built-in grammar",
                    "read": len(inputs.captions or ()),
                    "selected": synthesizer.source.selected,
                },
                "latent_side": synthesizer.latent_side,
                "begun_under": conditions,
                "license": license_of(config.model, painter.facts["model_version"]),
                **({"lora_license": license_of(config.lora)} if config.lora else {}),
                **provenance(),
                "table": inputs.table.facts(),
            }
            options = to_yaml(inputs.config, "attn2mask build --config build.yaml")
            make_dataset(
                directory,
                record,
                {"build.yaml": options},
                inputs.table,
                lambda shard, settled: quality.measure(synthesizer.samples(shard.rows, settled)),
                lambda shard: conditions,
                rank=process.rank,
                processes=process.world_size,
                exact=config.exact,
            )
    return directory


def make_dataset(
    directory: BuildDirectory,
    record: dict[str, Any],
    options: Mapping[str, str],
    table: ClassTable,
    samples: Callable[[Shard, Callable[[], object]], Iterable["Sample"]],
    painted_under: Callable[[Shard], Mapping[str, Any]],
    rank: int = 0,
    processes: int = 1,
    exact: bool = False,
    further: Mapping[str, Any] | None = None,
) -> None:
    """Make the missing shards of this process, and finish the dataset if all shards are there.

    `record`, `options` and `exact` are those of `BuildDirectory.claim`. `samples` returns the samples of a
    shard, and calls its second argument once for each finished one. `painted_under` returns the conditions
    under which the images of a shard were painted (see `painting_conditions`). report.json also gets
    `further`.
    """
    from attn2mask.builders.report import dataset_readme, shard_report, totals
    from attn2mask.builders.sample import features, optional_columns

    started = time.monotonic()
    directory.claim(record, {**options, "id2label.json": table.id2label}, rank, exact)
    shards = directory.shards
    directory.check_data(shards)
    own = shards[rank::processes]
    missing = directory.missing(own)
    stored = optional_columns(record["identity"])
    columns = features(table, stored)
    total, made_now = (sum(len(shard.rows) for shard in some) for some in (own, missing))
    with tqdm(
        total=total,
        initial=total - made_now,
        desc=str(directory.path),
        unit=" images",
        **({"disable": True} if rank != 0 or not missing else {}),  # otherwise TQDM_DISABLE decides
    ) as bar:

        def write(shard: Shard, made: Sequence["Sample"]) -> None:
            rows = (sample.to_row(stored) for sample in made)
            report = shard_report(made, table.names) | {"made_under": dict(painted_under(shard))}
            directory.write_shard(shard, columns, rows, report)

        with ThreadPoolExecutor(1) as writer:  # a shard is written while the next one is painted
            writing: Future[None] | None = None
            for shard in missing:
                made = list(samples(shard, bar.update))
                if writing is not None:
                    writing.result()
                writing = writer.submit(write, shard, made)
            if writing is not None:
                writing.result()

    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    took = f"in {minutes} min {seconds} s" if minutes else f"in {seconds} s"
    with directory.finishing():
        manifests = directory.manifests(shards)
        if manifests is None:
            finished = f"process {rank} of {processes} finished its {made_now} rows {took}"
            logger.info("%s: %s; other processes still have shards to make", directory.path, finished)
            return
        report = totals(manifests) | dict(further or {})
        write_file(directory.path / "report.json", sealed(report))
        write_file(directory.path / "README.md", dataset_readme(record, report, manifests, columns).encode())
    took += f" with {processes} processes" if processes > 1 else ""
    done = f"{made_now} of them were made now, {took}" if made_now else "all were there already"
    print(f"{directory.path}: {report['rows']} rows in {len(shards)} shards; {done}")
    print(
        f"{report['rows_with_foreground']} rows hold a class. The gate rejected {report['rejected_attempts']}"
        f" attempts and dropped classes of {len(report['dropped'])} rows. The reasons are in report.json"
    )
    if untrusted := report["untrusted"]:
        number = sum(map(len, untrusted.values()))
        print(f"{number} classes in {len(untrusted)} rows are untrusted, because their presence is too low")
    if message := several_conditions(directory.path, report["made_under"]):
        logger.warning(message)
    print(f"next: attn2mask show {shlex.quote(str(directory.path))} --out sheet.png")


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
