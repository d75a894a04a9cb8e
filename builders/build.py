"""`attn2mask build`: captions in, a dataset out. It resumes, and any number of processes make the same rows.

    attn2mask build voc --out data/voc
    accelerate launch builders/build.py voc --out data/voc

Each process makes the shards whose number is congruent to its rank. They never talk to each other: all they
share is the directory, so there is no process group that could hang, and one that dies costs only the shard
in its hands.
"""

import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from attn2mask.builders.arguments import check_numbers, option, parse, run_command
from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.report import card, shard_report, totals
from attn2mask.builders.rules import PRESETS, Rules
from attn2mask.builders.sample import Sample, features
from attn2mask.builders.shards import BuildDirectory, Shard, plan
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.captions import Caption, read_captions

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from attn2mask.builders.painter import Painter
    from attn2mask.builders.synthesize import Synthesizer

LIBRARIES = ("attn2mask", "torch", "diffusers", "transformers", "peft", "datasets", "pillow", "scipy")
# More labeling processes than this only wait for the painter.
MOST_WORKERS = 16

# Options that the rows are a function of, besides table, captions, rules and model.
IDENTITY = (
    *("seed", "steps", "guidance_scale", "height", "width"),
    *("shard_size", "alias_probability", "balance", "store_scores"),
)

PAINT, WORDS, LABEL, RUN = "the model and how it paints", "prompts", "labels", "the build"
BOOL = {"nargs": "?", "const": True, "metavar": "BOOL"}


@dataclass(frozen=True)
class BuildConfig:
    """The options of a build; None leaves a value to the preset, the model or the machine.

    Raises UserError for numbers that make no sense.
    """

    table: str = option(
        "class table: voc, cityscapes, imagenet_s_50, imagenet_s_300, imagenet_s_919, or a YAML file",
        positional=True,
    )
    out: str | None = option("directory of the dataset (data/TABLE)", None, RUN, metavar="DIR")
    num_images: int = option(
        "rows to make; a later run may ask for more (%(default)s)", 256, RUN, metavar="N"
    )
    seed: int = option("of prompts and pictures (%(default)s)", 0, RUN, metavar="N")
    shard_size: int = option("rows in a file, and what a kill may lose (%(default)s)", 64, RUN, metavar="N")
    workers: int | None = option("labeling processes (one a core, but one)", None, RUN, metavar="N")
    push_to_hub: str | None = option("publish as this dataset when done", None, RUN, metavar="REPO")

    model: str = option("embedded, a folder, or a model of the Hub (%(default)s)", "embedded", PAINT)
    revision: str | None = option("of a model of the Hub", None, PAINT)
    lora: str | None = option("LoRA weights: a file, a folder or a Hub id", None, PAINT)
    lora_scale: float = option("strength of the LoRA (%(default)s)", 1.0, PAINT, metavar="X")
    steps: int | None = option("denoising steps (the model's)", None, PAINT, metavar="N")
    guidance_scale: float | None = option("classifier-free guidance (the model's)", None, PAINT, metavar="X")
    height: int | None = option("in pixels (the model's)", None, PAINT, metavar="N")
    width: int | None = option("in pixels (the model's)", None, PAINT, metavar="N")
    batch_size: int = option("pictures at a time (%(default)s)", 8, PAINT, metavar="N")

    captions: str | None = option(
        ".jsonl, .txt, COCO's .json or a Hub dataset (built-in grammar)", None, WORDS, metavar="SOURCE"
    )
    alias_probability: float = option(
        "of replacing a class word by a synonym or hyponym (%(default)s)", 0.5, WORDS, metavar="P"
    )
    balance: bool | None = option("let the classes take turns (the table's)", None, WORDS, **BOOL)

    preset: Literal["paper", "replication", "default"] = option(
        "rules of scores, mask and reliability (%(default)s)", "default", LABEL
    )
    threshold: Literal["otsu", "agreement", "fixed"] | None = option(
        "from score to class (the preset's)", None, LABEL
    )
    beta: float | None = option(
        "of the fixed threshold, (1 - beta) / 2 (the preset's)", None, LABEL, metavar="X"
    )
    reliability: Literal["agreement", "two-threshold", "margin"] | None = option(
        "which pixels to trust (the preset's)", None, LABEL
    )
    graded: bool | None = option("reliability in 256 levels (the preset's)", None, LABEL, **BOOL)
    store_scores: bool = option(
        "keep the class scores, so that remask can work", False, LABEL, metavar="BOOL"
    )

    def __post_init__(self) -> None:
        positive = ("num_images", "steps", "height", "width", "batch_size", "shard_size", "workers")
        check_numbers(self, positive=positive, not_negative=("seed", "guidance_scale", "lora_scale"))
        check_numbers(self, shares=("beta", "alias_probability"))
        plan(self.num_images, self.shard_size)


def with_options(rules: Rules, config: Any) -> Rules:
    """`rules` with what `config` gives of threshold, beta, reliability and graded."""
    names = ("threshold", "beta", "reliability", "graded")
    rules = replace(rules, **{n: getattr(config, n) for n in names if getattr(config, n) is not None})
    if config.beta is not None and rules.threshold != "fixed":
        raise UserError(f"--beta belongs to --threshold fixed, but the threshold is {rules.threshold}")
    return rules


def run(config: BuildConfig) -> BuildDirectory:
    """Make the dataset, or what is missing of it. Raises UserError for what the user can mend."""
    from accelerate.utils.environment import get_cpu_distributed_information

    process = get_cpu_distributed_information()
    table = load_table(config.table)
    config = in_turns(config, table)
    rules = with_options(PRESETS[config.preset], config)
    directory = BuildDirectory(Path(config.out or f"data/{table.name}"))
    directory.check_free()
    captions = captions_of(config)
    with directory.locked(process.rank, run_name(process.world_size)):
        directory.check_identity(identity(config, table, rules, captions))
        import torch

        from attn2mask.builders.painter import load_painter
        from attn2mask.builders.workers import labeling_pool

        device = f"cuda:{process.local_rank}" if torch.cuda.is_available() else "cpu"
        painter = load_painter(config.model, config.revision, config.lora, config.lora_scale, device)
        config = resolve(config, table, painter, process.local_world_size)
        with labeling_pool(config.workers) as pool:
            synthesizer = assemble(config, table, rules, captions, painter, pool)
            record = {
                "command": "build",
                "num_images": config.num_images,
                "identity": identity(config, table, rules, captions) | painter.facts,
                "captions": {
                    "source": Path(config.captions).name if config.captions else "built-in grammar",
                    "naming_a_class": synthesizer.source.selected,
                },
                "batch_size": config.batch_size,
                "device": device,
                "dtype": str(painter.pipe.dtype).removeprefix("torch."),
                **licenses(config, painter.facts["model_version"]),
                **provenance(),
                "table": table.facts(),
            }
            make_dataset(
                directory,
                record,
                table,
                config.store_scores,
                lambda shard, settled: synthesizer.samples(shard.rows, settled),
                rank=process.rank,
                processes=process.world_size,
            )
    return directory


def make_dataset(
    directory: BuildDirectory,
    record: dict[str, Any],
    table: ClassTable,
    store_scores: bool,
    samples: Callable[[Shard, Callable[[], object]], Iterable[Sample]],
    rank: int = 0,
    processes: int = 1,
) -> None:
    """Make this process's missing shards of what `record` describes; finish the dataset where all stand.

    `samples` gives the samples of a shard, and calls its second argument as each is decided.
    """
    started = time.monotonic()
    directory.claim(record, rank)
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

    took = f"in {_duration(time.monotonic() - started)} with {processes} process{'es' * (processes > 1)}"
    made_now = sum(len(shard.rows) for shard in missing)
    with directory.finishing():
        manifests = directory.manifests(shards)
        if manifests is None:
            print(f"{directory.path}: process {rank} made its {made_now} rows {took}; others go on")
            return
        report = totals(manifests)
        write_file(directory.path / "report.json", json.dumps(report, indent=1).encode())
        write_file(directory.path / "README.md", card(record, report, manifests, columns).encode())
    done = f"{made_now} of them made now, {took}" if made_now else "finished already"
    print(f"{directory.path}: {report['rows']} rows in {len(shards)} shards, {done}")
    print(
        f"{report['rows_with_foreground']} rows hold a class; the gate rejected {report['rejected_attempts']}"
        f" attempts and dropped classes of {len(report['dropped'])} rows (report.json says why)"
    )
    print(f"next: attn2mask show {directory.path} --out sheet.png")


def assemble(
    config: BuildConfig,
    table: ClassTable,
    rules: Rules,
    captions: list[Caption] | None,
    painter: "Painter",
    pool: "ProcessPoolExecutor",
) -> "Synthesizer":
    """The synthesizer of a resolved configuration."""
    from attn2mask.builders.prompts import PromptSource
    from attn2mask.builders.synthesize import Synthesizer

    source = PromptSource(
        table,
        captions,
        painter.tokenizers,
        seed=config.seed,
        alias_probability=config.alias_probability,
        balance=config.balance,
    )
    return Synthesizer(
        table=table,
        source=source,
        painter=painter,
        rules=rules,
        pool=pool,
        seed=config.seed,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        height=config.height,
        width=config.width,
        batch_size=config.batch_size,
    )


def in_turns(config: BuildConfig, table: ClassTable) -> BuildConfig:
    """`config` with the table's word on whether the classes take turns, where it has none of its own."""
    own = table.scene is not None and table.scene.balance
    return replace(config, balance=own) if config.balance is None else config


def resolve(
    config: BuildConfig, table: ClassTable, painter: "Painter", local_processes: int = 1
) -> BuildConfig:
    """`config` with what table, model and machine decide; raises UserError for what the model cannot make.

    Pictures have the model's size, but the table's aspect, where it gives one: as high as the model's own.
    """
    defaults = asdict(painter.defaults) | {"workers": default_workers(local_processes)}
    if table.scene is not None and table.scene.aspect != 1:
        factor, aspect = painter.pipe.vae_scale_factor, table.scene.aspect
        if config.width is not None:
            defaults["height"] = max(round(config.width / aspect / factor), 1) * factor
        defaults["width"] = max(round((config.height or defaults["height"]) * aspect / factor), 1) * factor
    config = replace(
        config, **{name: value for name, value in defaults.items() if getattr(config, name) is None}
    )
    painter.check(config.steps, config.height, config.width)
    return config


def default_workers(local_processes: int = 1) -> int:
    """Labeling processes for a painting process: its share of the machine's cores but one, at most 16."""
    return min(max((os.cpu_count() or 1) // local_processes - 1, 1), MOST_WORKERS)


def captions_of(config: BuildConfig) -> list[Caption] | None:
    """The captions of a build, None for the grammar; broken ones are named on stderr."""
    if config.captions is None:
        return None
    captions, warnings = read_captions(config.captions)
    for warning in warnings:
        print(f"attn2mask: warning: {warning}", file=sys.stderr)
    return captions


def identity(
    config: BuildConfig, table: ClassTable, rules: Rules, captions: list[Caption] | None
) -> dict[str, Any]:
    """What the rows are a function of, as far as it is known before the model, whose facts come on top."""
    texts = None if captions is None else "\n".join(caption.text for caption in captions)
    return {
        "table": table.name,
        "table_version": _digest(json.dumps(table.facts())),
        "captions": "grammar" if texts is None else _digest(texts),
        **{name: getattr(config, name) for name in IDENTITY if getattr(config, name) is not None},
        "rules": asdict(rules),
    }


def licenses(config: BuildConfig, model_version: str) -> dict[str, Any]:
    """Those of the painter and, where there is one, its LoRA; outside of the identity, and None for what
    their cards do not name.
    """
    from attn2mask.builders.painter import license_of

    named = {"license": license_of(config.model, model_version)}
    return named | ({"lora_license": license_of(config.lora)} if config.lora else {})


def provenance() -> dict[str, Any]:
    """Versions of what takes part, and the commit where this package runs from its repository."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    root = Path(__file__).resolve().parents[1]
    commit = None
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with suppress(OSError):
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            commit = answer.stdout.strip() or None
    return {"versions": versions, "git_commit": commit}


def run_name(processes: int) -> str:
    """The same for all processes of one launch, and for no other run."""
    if processes > 1:
        return f"launched from {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return f"process {os.getpid()} on {socket.gethostname()}"


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def main(argv: Sequence[str] | None = None, prog: str = "builders/build.py") -> int:
    """`attn2mask build`, and the script for `accelerate launch`."""
    arguments = sys.argv[1:] if argv is None else argv

    def command() -> None:
        config = parse(BuildConfig, arguments, prog, "Captions in, a labeled dataset out.")
        if config.push_to_hub is None:
            run(config)
            return
        # Only here does building know of the Hub, and only where it is asked for.
        from attn2mask.hub.artifacts import check_config
        from attn2mask.hub.publish import Target, check, publish_dataset

        target = Target(config.push_to_hub)
        check_config(load_table(config.table).name)
        check("dataset", target)
        directory = run(config)
        # Of several processes the last to finish finds the build complete.
        if (directory.path / "report.json").exists():
            with directory.finishing():
                publish_dataset([directory.path], target)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
