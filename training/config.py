"""The options of `attn2mask train`, the presets, and how a global batch is spread over processes.

    accelerate launch training/train.py --dataset data/voc --preset voc-resnet50 --output-dir runs/r50

A preset fixes the *global* batch, so that a run means the same on one GPU and on eight. The batch of a process
and the gradient accumulation follow from the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import check_ranges, fill, option, preset_names, read_preset

PRESETS = Path(__file__).parent / "presets"

DATA, EVALUATION, METHOD, RUN = "data", "evaluation while training", "method", "the run"
CONSTANTS = "constants of the method (rarely changed)"
_PRESET = "the preset's"


@dataclass(frozen=True)
class TrainConfig:
    """The options of `attn2mask train`. None leaves a value to the preset; `resolve` fills it in.

    Raises UserError for numbers out of range.
    """

    GROUPS: ClassVar = (DATA, METHOD, CONSTANTS, EVALUATION, RUN)

    dataset: str = option(
        "rows to learn from: a directory that build made, or a dataset of the Hub",
        "",
        DATA,
        identity=True,
        default_text="none; it must be given",
    )
    output_dir: str = option(
        "directory of checkpoints and logs", "runs/segmenter", DATA, stored=False, metavar="DIR"
    )
    streaming: bool = option(
        "read the rows of a Hub dataset while training, without a local copy", False, DATA, identity=True
    )
    workers: int = option(
        "number of processes that load rows", 2, DATA, stored=False, at_least=0, metavar="N"
    )
    eval_dataset: str = option("images with masks to measure on while training", "", EVALUATION)
    eval_split: str | None = option(
        "split of --eval-dataset", None, EVALUATION, default_text="the layout's validation split"
    )
    eval_every: int = option(
        "number of steps between two evaluations",
        0,
        EVALUATION,
        at_least=0,
        default_text="a tenth of all steps",
        metavar="N",
    )
    preset: str = option(
        "values of all options of the method that are not given",
        "demo",
        METHOD,
        choices=preset_names(PRESETS),
    )
    architecture: str | None = option(
        "deeplabv3plus or upernet",
        None,
        METHOD,
        identity=True,
        choices=("deeplabv3plus", "upernet"),
        default_text=_PRESET,
        card="architecture",
    )
    backbone: str | None = option(
        "backbone: a model of the Hub, a folder, scratch:NAME for random weights, or embedded",
        None,
        METHOD,
        identity=True,
        default_text=_PRESET,
        card="backbone",
    )
    max_steps: int | None = option(
        "number of optimizer steps",
        None,
        METHOD,
        identity=True,
        at_least=1,
        default_text=_PRESET,
        card="steps",
        metavar="N",
    )
    learning_rate: float | None = option(
        "learning rate of the backbone at the first step",
        None,
        METHOD,
        identity=True,
        above=0,
        default_text=_PRESET,
        card="learning rate",
        metavar="LR",
    )
    batch_size: int | None = option(
        "number of images in a step, over all processes",
        None,
        METHOD,
        identity=True,
        at_least=1,
        default_text=_PRESET,
        card="batch size",
        metavar="N",
    )
    crop_size: int | None = option(
        "side of the square crops in pixels",
        None,
        METHOD,
        identity=True,
        at_least=32,
        default_text=_PRESET,
        card="crop size in pixels",
        metavar="N",
    )
    no_co_training: bool = option(
        "train one network, which ignores unreliable pixels",
        False,
        METHOD,
        identity=True,
        card="no co-training",
    )
    no_reliability: bool = option(
        "learn every label, as if all pixels were reliable",
        False,
        METHOD,
        identity=True,
        card="no reliability",
    )
    no_mixing: bool = option(
        "do not mix images with ClassMix", False, METHOD, identity=True, card="no ClassMix"
    )
    seed: int = option(
        "random seed of the whole run", 0, METHOD, identity=True, at_least=0, card="seed", metavar="N"
    )
    optimizer: str | None = option(
        "sgd or adamw",
        None,
        CONSTANTS,
        identity=True,
        choices=("sgd", "adamw"),
        default_text=_PRESET,
        card="optimizer",
    )
    power: float | None = option(
        "power of the polynomial decay: lr (1 - step / max_steps) ** power",
        None,
        CONSTANTS,
        identity=True,
        at_least=0,
        default_text=_PRESET,
        card="power of the decay",
        metavar="X",
    )
    weight_decay: float | None = option(
        "weight decay of all parameters",
        None,
        CONSTANTS,
        identity=True,
        at_least=0,
        default_text=_PRESET,
        card="weight decay",
        metavar="X",
    )
    momentum: float | None = option(
        "momentum of SGD",
        None,
        CONSTANTS,
        identity=True,
        at_least=0,
        at_most=1,
        default_text=_PRESET,
        card="momentum",
        metavar="X",
    )
    head_multiplier: float | None = option(
        "learning rate of the heads as a multiple of the backbone's",
        None,
        CONSTANTS,
        identity=True,
        above=0,
        default_text=_PRESET,
        card="learning rate of the heads (multiple)",
        metavar="X",
    )
    warmup: float | None = option(
        "fraction of steps trained on reliable labels only; after that each network supervises the other and"
        " ClassMix is on",
        None,
        CONSTANTS,
        identity=True,
        at_least=0,
        at_most=1,
        default_text=_PRESET,
        card="warm-up (fraction of the steps)",
        metavar="X",
    )
    clip: float | None = option(
        "largest norm of the gradient; 0 is no limit",
        None,
        CONSTANTS,
        identity=True,
        at_least=0,
        default_text=_PRESET,
        card="largest norm of the gradient",
        metavar="X",
    )
    resize: int | None = option(
        "shortest side in pixels that images are resized to, in training and in prediction; 0 leaves them",
        None,
        CONSTANTS,
        identity=True,
        at_least=0,
        default_text=_PRESET,
        card="shortest side in pixels",
        metavar="N",
    )
    confidence: float | None = option(
        "least probability, 0 to 1, of an online label",
        None,
        CONSTANTS,
        identity=True,
        at_least=0,
        at_most=1,
        default_text=_PRESET,
        card="least probability of an online label",
        metavar="X",
    )
    boundary_weight: float | None = option(
        "weight of the loss along the outlines of pasted things",
        None,
        CONSTANTS,
        identity=True,
        at_least=0,
        default_text=_PRESET,
        card="weight of pasted outlines",
        metavar="X",
    )
    mixed_precision: str = option(
        "no, bf16 or fp16",
        "",
        RUN,
        choices=("", "no", "bf16", "fp16"),
        default_text="accelerate's own setting",
    )
    micro_batch: int = option(
        "number of images that a process holds at a time; smaller ones are accumulated",
        0,
        RUN,
        at_least=0,
        default_text="the process's share of the batch",
        metavar="N",
    )
    checkpoint_every: int = option(
        "number of steps between two checkpoints", 250, RUN, at_least=1, metavar="N"
    )
    report_to: str = option("tracker of accelerate, or none", "none", RUN, stored=False)
    resume: bool = option(
        "resume from the last checkpoint; without one, a new run starts", False, RUN, stored=False
    )
    num_processes: int | None = option(
        "start this many processes with accelerate",
        None,
        RUN,
        stored=False,
        at_least=1,
        default_text="this process alone",
        metavar="N",
    )
    accelerate_config: str | None = option(
        "start the processes that this configuration file of accelerate describes",
        None,
        RUN,
        stored=False,
        metavar="FILE",
    )
    push_to_hub: str | None = option(
        "publish the trained model as this repository of the Hub", None, RUN, stored=False, metavar="REPO"
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    def resolve(self) -> TrainConfig:
        """These options with the preset's values for all that are not given."""
        return fill(self, read_preset(PRESETS, self.preset))

    @property
    def co_training(self) -> bool:
        """Whether two networks supervise each other; without it, one ignores unreliable pixels."""
        return not self.no_co_training

    @property
    def reliability(self) -> bool:
        """Whether labels are learned only where the reliability map trusts them."""
        return not self.no_reliability

    @property
    def mixing(self) -> bool:
        """Whether ClassMix with online labels is on."""
        return not self.no_mixing

    def rate(self, step: int) -> float:
        """The polynomial schedule's factor at ``step``, 1 to 0; for resolved options."""
        return (1 - step / self.max_steps) ** self.power if step < self.max_steps else 0.0

    @property
    def warmup_steps(self) -> int:
        """The number of steps before co-training and mixing begin; for resolved options."""
        return round(self.warmup * self.max_steps)


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is spread: ``processes x accumulation x per_process`` images a step."""

    processes: int
    accumulation: int
    per_process: int

    @property
    def total(self) -> int:
        return self.processes * self.accumulation * self.per_process

    def __str__(self) -> str:
        return (
            f"{self.processes} process{'es' if self.processes > 1 else ''} x {self.per_process} images"
            f" x {self.accumulation} accumulated = {self.total} a step"
        )


def plan_batches(batch_size: int, processes: int, micro_batch: int, mixing: bool) -> BatchPlan:
    """Split a global batch evenly. ``micro_batch`` 0: as much at once as a process's share.

    Raises UserError where it can't be split, or leaves less than the two images that mixing needs.
    """
    if batch_size % processes:
        raise UserError(
            f"--batch-size {batch_size} cannot be divided among {processes} processes: choose a multiple of them"
        )
    share = batch_size // processes
    micro = micro_batch or share
    if share % micro:
        raise UserError(
            f"--micro-batch {micro} does not divide the {share} images of each of {processes} process(es)"
        )
    if mixing and micro < 2:
        raise UserError(
            f"{micro} image at once in a process, but mixing pastes one image on another:"
            f" raise --batch-size to {2 * processes} or more, or give --no-mixing"
        )
    return BatchPlan(processes, share // micro, micro)
