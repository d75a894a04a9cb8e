"""What `training/train.py` takes, and the presets: the paper's Table 1 and a small one for CPUs.

    accelerate launch training/train.py --dataset data/voc --preset voc-resnet50 --output-dir runs/r50

A preset fixes the *global* batch, so that a run means the same on one GPU and on eight: the batch of a
process and the accumulation follow from the number of processes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from attn2mask.builders.arguments import option
from attn2mask.builders.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Everything that the trained weights depend on, beside data and seed.

    Attributes:
        architecture: "deeplabv3plus" or "upernet".
        backbone: a Hub id, a local path, "scratch:NAME" or "embedded" (`training/models.py`).
        optimizer: "sgd" or "adamw".
        learning_rate: of the backbone; the head's is ``head_multiplier`` times that.
        power: of the polynomial decay, lr (1 - step / max_steps) ** power.
        weight_decay: of all parameters.
        momentum: of SGD. Not in the paper (unverified).
        head_multiplier: not in the paper (unverified); BECO's is 10.
        batch_size: pictures a step over all processes. Table 1: 6 x 2.
        crop_size: side of the square crop in pixels. Not in the paper (unverified).
        max_steps: optimizer steps.
        warmup: share of the steps in which the networks learn reliable labels alone; after it each answers
            for the other and pictures are mixed. BECO: one epoch.
        clip: largest norm of the gradient; 0 is no limit.
        resize: shortest side in pixels that pictures are brought to, in training before they are scaled at
            random, and in prediction; 0 leaves them as they are.
        co_training: two networks that answer for one another, or one that leaves unreliable pixels out.
        reliability: learn labels where the reliability map says so, or everywhere.
        mixing: ClassMix with online labels.
        confidence: least probability, 0 to 1, of an online label. BECO: 0.95.
        boundary_weight: of the loss along pasted outlines. BECO: 1.2.
    """

    architecture: str = "deeplabv3plus"
    backbone: str = "microsoft/resnet-50"
    optimizer: str = "sgd"
    learning_rate: float = 0.001
    power: float = 0.9
    weight_decay: float = 1e-5
    momentum: float = 0.9
    head_multiplier: float = 10.0
    batch_size: int = 12
    crop_size: int = 512
    max_steps: int = 25_000
    warmup: float = 0.04
    clip: float = 1.0
    resize: int = 0
    co_training: bool = True
    reliability: bool = True
    mixing: bool = True
    confidence: float = 0.95
    boundary_weight: float = 1.2

    def rate(self, step: int) -> float:
        """The polynomial schedule's factor at ``step``, 1 to 0."""
        return (1 - step / self.max_steps) ** self.power if step < self.max_steps else 0.0

    @property
    def warmup_steps(self) -> int:
        """Steps before co-training and mixing begin."""
        return round(self.warmup * self.max_steps)


#: Learning rates, batch, decay and iterations of VOC's two are Table 1's; UperNet stands beside them.
PRESETS: dict[str, Settings] = {
    "voc-resnet50": Settings(),
    "voc-swin-base": Settings(backbone="microsoft/swin-base-patch4-window7-224-in22k", learning_rate=0.01),
    "voc-swin-base-upernet": Settings(
        architecture="upernet", backbone="microsoft/swin-base-patch4-window7-224-in22k", learning_rate=0.01
    ),
    "demo": Settings(
        backbone="embedded",
        optimizer="adamw",
        learning_rate=4e-4,
        head_multiplier=5.0,
        weight_decay=0.01,
        batch_size=16,
        crop_size=96,
        max_steps=400,
        warmup=0.25,
        resize=64,
    ),
}


@dataclass(frozen=True)
class TrainConfig:
    """The options of `training/train.py`; those left out come from the preset."""

    dataset: str = option("rows: a directory that build made, or a dataset's name on the Hub", "", "data")
    output_dir: str = option("where checkpoints and logs go", "runs/segmenter", "data", metavar="DIR")
    streaming: bool = option("read the rows as they are needed, without a copy", False, "data")
    workers: int = option("processes that load rows (%(default)s)", 2, "data", metavar="N")
    eval_dataset: str = option("pictures with masks to score on as it trains", "", "evaluation")
    eval_split: str | None = option("their split (the layout's validation split)", None, "evaluation")
    eval_every: int = option("steps between scores (a tenth of all)", 0, "evaluation", metavar="N")
    preset: str = option(
        "settings to start from (%(default)s)", "demo", "method", choices=tuple(PRESETS), metavar="NAME"
    )
    architecture: str | None = option("deeplabv3plus or upernet", None, "method")
    backbone: str | None = option("Hub id, path, scratch:NAME or embedded", None, "method")
    max_steps: int | None = option("optimizer steps", None, "method", metavar="N")
    learning_rate: float | None = option("of the backbone", None, "method", metavar="LR")
    batch_size: int | None = option("pictures a step over all processes", None, "method", metavar="N")
    crop_size: int | None = option("side of the crops in pixels", None, "method", metavar="N")
    no_co_training: bool = option("one network, unreliable pixels left out", False, "method")
    no_reliability: bool = option("trust every label", False, "method")
    no_mixing: bool = option("no ClassMix", False, "method")
    seed: int = option("of every random choice (%(default)s)", 0, "method", metavar="N")
    mixed_precision: str = option(
        "no, bf16 or fp16 (accelerate's own setting)", "", "run", choices=("", "no", "bf16", "fp16")
    )
    micro_batch: int = option(
        "pictures a process holds at once (as many as its share)", 0, "run", metavar="N"
    )
    checkpoint_every: int = option("steps between checkpoints (%(default)s)", 250, "run", metavar="N")
    report_to: str = option("tracker, or none (%(default)s)", "tensorboard", "run")
    resume: bool = option("go on from the last checkpoint, if there is one", False, "run")
    push_to_hub: str | None = option("publish as this model when done", None, "run", metavar="REPO")

    def settings(self) -> Settings:
        """The preset with what was given over it. Raises UserError for values that make no sense."""
        given = {f.name: getattr(self, f.name, None) for f in fields(Settings)}
        settings = replace(
            PRESETS[self.preset],
            **{name: value for name, value in given.items() if value is not None},
        )
        settings = replace(
            settings,
            co_training=not self.no_co_training,
            reliability=not self.no_reliability,
            mixing=not self.no_mixing,
        )
        for name in ("max_steps", "batch_size", "crop_size", "learning_rate"):
            if not getattr(settings, name) > 0:
                raise UserError(
                    f"--{name.replace('_', '-')} is {getattr(settings, name)}, but must be above 0"
                )
        if settings.crop_size < 32:
            raise UserError(f"--crop-size is {settings.crop_size}, but must be 32 or more")
        for name in ("seed", "workers", "eval_every", "micro_batch"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}, but must not be negative"
                )
        if self.checkpoint_every < 1:
            raise UserError(f"--checkpoint-every is {self.checkpoint_every}, but must be above 0")
        if settings.architecture not in ("deeplabv3plus", "upernet"):
            raise UserError(f"--architecture is {settings.architecture!r}: choose deeplabv3plus or upernet")
        return settings

    def identity(self) -> dict:
        """What must not change when a run goes on: what the weights depend on."""
        return {
            "dataset": self.dataset,
            "seed": self.seed,
            "streaming": self.streaming,
            **asdict(self.settings()),
        }


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is spread: ``processes x accumulation x per_process`` pictures a step."""

    processes: int
    accumulation: int
    per_process: int

    @property
    def total(self) -> int:
        return self.processes * self.accumulation * self.per_process

    def __str__(self) -> str:
        return (
            f"{self.processes} process{'es' if self.processes > 1 else ''} x {self.per_process} pictures"
            f" x {self.accumulation} accumulated = {self.total} a step"
        )


def plan_batches(batch_size: int, processes: int, micro_batch: int, mixing: bool) -> BatchPlan:
    """Split a global batch evenly. ``micro_batch`` 0: as much at once as a process's share.

    Raises UserError where it can't be split, or leaves less than the two pictures that mixing needs.
    """
    if batch_size % processes:
        raise UserError(
            f"--batch-size {batch_size} can't be shared by {processes} processes: choose a multiple of them"
        )
    share = batch_size // processes
    micro = micro_batch or share
    if share % micro:
        raise UserError(
            f"--micro-batch {micro} does not divide the {share} pictures of each of {processes} process(es)"
        )
    if mixing and micro < 2:
        raise UserError(
            f"{micro} picture at once in a process, but mixing pastes one picture on another:"
            f" raise --batch-size to {2 * processes} or more, or give --no-mixing"
        )
    return BatchPlan(processes, share // micro, micro)
