"""The options of `attn2mask train`, the presets, and how a global batch is spread over processes.

    accelerate launch training/train.py --dataset data/voc --preset voc-resnet50 --output-dir runs/r50

A preset fixes the *global* batch, so that a run means the same on one GPU and on eight. The batch of a
process and the gradient accumulation follow from the number of processes.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import LaunchOptions, fill, option, preset_option, read_preset
from attn2mask.builders.row_reader import incomplete_option, no_verify_option

PRESETS = Path(__file__).parent / "presets"

DATA, METHOD, RUN, EVALUATION = "data", "method", "the run", "evaluation while training"
CONSTANTS = "constants of the method (rarely changed)"
# Options that a preset sets.
method_option = partial(option, default=None, group=METHOD, identity=True, default_text="the preset's")
constant_option = partial(method_option, group=CONSTANTS)
fraction_option = partial(constant_option, at_least=0, at_most=1)
area_option = partial(constant_option, above=0, at_most=1)
# Switches that are off by default, and options that concern only the run.
switch = partial(option, default=False, group=METHOD, identity=True)
run_option = partial(option, group=RUN)
# Images with masks that a command measures on, in a layout that `benchmarks.open_images` knows.
measured_images = partial(
    option,
    "images with masks: VOCdevkit, Cityscapes, ImageNet-S, a folder with images/ and masks/, or rows (a"
    " directory or a dataset of the Hub)",
    None,
    required=True,
    metavar="PATH",
)
measured_split = partial(
    option,
    "split of --dataset",
    None,
    default_text="the layout's validation split, or the rows' train split",
)


@dataclass(frozen=True)
class RunOptions(LaunchOptions):
    """The options that training and adaptation share. Raises UserError for values out of range."""

    RESUMES: ClassVar = "run the same command again with --resume"
    SAVES_MEMORY: ClassVar = (
        "use a smaller --micro-batch, whose images alone share a batch normalization, or a smaller"
        " --crop-size, which makes another run"
    )

    output_dir: str = option("directory of the result, the checkpoints and the log", group=DATA, stored=False)
    max_steps: int | None = method_option("number of optimizer steps", at_least=1, card="steps")
    learning_rate: float | None = method_option(
        "learning rate at the first step", above=0, card="learning rate"
    )
    batch_size: int | None = method_option(
        "number of images in a step, over all processes", at_least=1, card="batch size"
    )
    seed: int = option("random seed of the whole run", 0, METHOD, identity=True, at_least=0, card="seed")
    power: float | None = constant_option(
        "power of the polynomial decay of the learning rate: lr (1 - step / max_steps) ** power",
        at_least=0,
        card="power of the decay",
    )
    weight_decay: float | None = constant_option(
        "weight decay of all trained parameters", at_least=0, card="weight decay"
    )
    clip: float | None = constant_option(
        "largest norm of the gradient; 0 is no limit", at_least=0, card="largest norm of the gradient"
    )
    mixed_precision: str | None = run_option(
        "precision of the computation", None, choices=("no", "bf16", "fp16"), default_text="accelerate's own"
    )
    micro_batch: int | None = run_option(
        "images that a process holds at a time; smaller numbers accumulate gradients",
        None,
        at_least=1,
        default_text="the process's share of the batch",
    )
    checkpoint_every: int = run_option("number of steps between two checkpoints", 250, at_least=1)
    report_to: str = run_option(
        "tracker of accelerate that also gets the log and images, such as tensorboard; or none",
        "none",
        stored=False,
    )
    resume: bool = run_option(
        "resume from the last checkpoint; without one, a new run starts", False, stored=False
    )

    def rate(self, step: int) -> float:
        """The factor of the learning rate at `step`, from 1 down to 0, by the polynomial decay; for resolved
        options.
        """
        return (1 - step / self.max_steps) ** self.power if step < self.max_steps else 0.0


@dataclass(frozen=True)
class TrainConfig(RunOptions):
    """The options of `attn2mask train`. None leaves a value to the preset; `resolve` fills it in."""

    GROUPS: ClassVar = (DATA, METHOD, CONSTANTS, EVALUATION, RUN)

    output_dir: str = option(
        "directory of networks, checkpoints and log", "runs/segmenter", DATA, stored=False, metavar="DIR"
    )
    dataset: list[str] | None = option(
        "rows to learn from: directories that build made, or datasets of the Hub", None, DATA, required=True
    )
    shares: list[float] | None = option(
        "share of each dataset in every batch, in the order of --dataset",
        None,
        DATA,
        identity=True,
        above=0,
        default_text="in proportion to their numbers of rows",
    )
    num_rows: int | None = option(
        "train on the first N rows, of one dataset",
        None,
        DATA,
        identity=True,
        at_least=1,
        card="rows trained on (the first)",
        default_text="all rows",
    )
    allow_incomplete: bool = incomplete_option(DATA)
    no_verify: bool = no_verify_option(DATA)
    streaming: bool = switch("read rows of a Hub dataset while training, without a local copy", group=DATA)
    workers: int | None = option(
        "number of processes that load rows",
        None,
        DATA,
        stored=False,
        at_least=0,
        default_text="one for each core, at most 8",
    )
    eval_dataset: str | None = option("images with masks to measure on while training", None, EVALUATION)
    eval_split: str | None = option(
        "split of --eval-dataset", None, EVALUATION, default_text="the layout's validation split"
    )
    eval_every: int | None = option(
        "steps between two evaluations", None, EVALUATION, at_least=1, default_text="a tenth of all steps"
    )
    size_dataset: str | None = option(
        "images with masks on which the best of --predict-scales is chosen",
        None,
        EVALUATION,
        metavar="PATH",
        default_text="rows of --dataset",
    )
    preset: str = preset_option("options of the method", PRESETS, "demo", METHOD)
    architecture: str | None = method_option(
        "architecture of the networks", choices=("deeplabv3plus", "upernet"), card="architecture"
    )
    backbone: str | None = method_option(
        "backbone: a model of the Hub, a folder, scratch:NAME for random weights, or embedded",
        identity=False,  # a run compares its weights
        card="backbone",
    )
    trust_remote_code: bool = option(
        "run Python code that the backbone brings along, with all rights of this user", False, METHOD
    )
    crop_size: int | None = method_option(
        "side of the square crops in pixels", at_least=32, card="crop size in pixels"
    )
    no_co_training: bool = switch("train one network, which ignores unreliable pixels", card="no co-training")
    no_reliability: bool = switch("learn every label, as if all pixels were reliable", card="no reliability")
    no_mixing: bool = switch("do not mix images with ClassMix", card="no ClassMix")
    optimizer: str | None = constant_option("optimizer", choices=("sgd", "adamw"), card="optimizer")
    momentum: float | None = fraction_option("momentum of SGD", card="momentum")
    head_multiplier: float | None = constant_option(
        "learning rate of the heads as a multiple of --learning-rate, which is the backbone's",
        above=0,
        card="learning rate of the heads (multiple)",
    )
    multi_grid: bool | None = constant_option(
        "multiply the dilations of the last three blocks of a ResNet by 1, 2 and 4", card="multi-grid"
    )
    resize: int | None = constant_option(
        "shortest side in pixels that images get before prediction, and before crops with --crop-scale-max;"
        " 0 leaves them as they are",
        at_least=0,
        card="shortest side in pixels",
    )
    predict_scales: str | None = constant_option(
        "multiples of --resize, with commas between them: the trained networks predict at the best of these"
        " sizes, which is chosen at the end",
        metavar="S,S",
        identity=False,  # the weights do not depend on it
        card="sizes that were tried for prediction (multiples of the shortest side)",
    )
    crop_area_min: float | None = area_option(
        "least area of a crop as a fraction of the image's, before it is resized to --crop-size",
        card="least area of a crop (fraction of the image)",
    )
    crop_area_max: float | None = area_option(
        "largest area of a crop as a fraction of the image's", card="largest area of a crop (fraction)"
    )
    crop_scale_min: float | None = constant_option(
        "least scale of the image in crops that may exceed it", above=0, card="least scale in a crop"
    )
    crop_scale_max: float | None = constant_option(
        "largest scale of the image in such crops, relative to --resize; without it, crops lie inside the"
        " image and have the areas of --crop-area-min and --crop-area-max",
        above=0,
        card="largest scale in a crop",
    )
    warmup_epochs: float | None = constant_option(
        "passes over the rows before online labels and the weight of pasted outlines are used",
        at_least=0,
        card="warm-up (passes over the rows)",
    )
    mix_probability: float | None = fraction_option(
        "probability that things of another image are pasted on an image", card="probability of mixing"
    )
    confidence: float | None = fraction_option(
        "least probability, 0 to 1, of an online label that is trusted",
        card="least probability of an online label",
    )
    boundary_weight: float | None = constant_option(
        "weight of labels along the outlines of pasted things", at_least=0, card="weight of pasted outlines"
    )
    chosen_on: str | None = constant_option(
        "name of the images on which the other constants were chosen, for the card",
        metavar="TEXT",
        card="images on which this project's values were chosen",
    )
    color_probability: float | None = fraction_option(
        "probability that brightness, contrast, saturation and hue of an image change",
        card="probability of a change of colors",
    )
    brightness: float | None = fraction_option("largest change of the brightness", card="brightness")
    contrast: float | None = fraction_option("largest relative change of the contrast", card="contrast")
    saturation: float | None = fraction_option("largest relative change of the saturation", card="saturation")
    hue: float | None = constant_option(
        "largest shift of the hue as a fraction of the color circle", at_least=0, at_most=0.5, card="hue"
    )
    gray_probability: float | None = fraction_option(
        "probability that an image becomes gray", card="probability of gray"
    )
    blur_probability: float | None = fraction_option(
        "probability that an image is blurred", card="probability of blur"
    )

    def __post_init__(self) -> None:
        if isinstance(self.dataset, str):  # one dataset may be given by its name alone
            object.__setattr__(self, "dataset", [self.dataset] if self.dataset else None)
        super().__post_init__()
        self._check_datasets()
        for kind in ("area", "scale"):
            least, most = getattr(self, f"crop_{kind}_min"), getattr(self, f"crop_{kind}_max")
            if least is not None and most is not None and least > most:
                raise UserError(
                    f"--crop-{kind}-min {least:g} is above --crop-{kind}-max {most:g}: exchange them"
                )
        if (self.crop_scale_min is None) != (self.crop_scale_max is None) and self.crop_area_min is not None:
            raise UserError("--crop-scale-min and --crop-scale-max must be given together")
        if self.predict_scales is not None:
            factors_of(self.predict_scales, "--predict-scales")

    def _check_datasets(self) -> None:
        datasets = self.dataset or []
        if twice := [name for k, name in enumerate(datasets) if name in datasets[:k]]:
            raise UserError(f"--dataset {twice[0]} is given twice: raise its share with --shares")
        if self.shares is not None and len(self.shares) != len(datasets):
            numbers = f"{len(self.shares)} for {len(datasets)} of --dataset"
            raise UserError(
                f"--shares {' '.join(map(str, self.shares))}: give one for each dataset, not {numbers}"
            )
        if self.num_rows is not None and len(datasets) > 1:
            raise UserError(f"--num-rows {self.num_rows} takes the first rows of one dataset, not of several")

    def resolve(self) -> "TrainConfig":
        """These options with the preset's values for all that are not given."""
        return fill(self, read_preset(PRESETS, self.preset))

    @property
    def predict_sizes(self) -> list[int]:
        """Pixels of the shorter side of an image in prediction, of which one is chosen, for resolved options;
        none where images are not resized.
        """
        if not self.resize or self.predict_scales is None:
            return []
        return [round(factor * self.resize) for factor in factors_of(self.predict_scales, "--predict-scales")]

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
        """Whether images are mixed with ClassMix, and get online labels; for resolved options."""
        return not self.no_mixing and self.mix_probability > 0

    def warmup_steps(self, rows: int) -> int:
        """The number of steps of the warm-up on so many rows; for resolved options."""
        return math.ceil(self.warmup_epochs * rows / self.batch_size)


def factors_of(scales: str, flag: str = "--scales") -> tuple[float, ...]:
    """Scales with commas between them as numbers. Raises UserError if they are not numbers above 0."""
    try:
        factors = tuple(float(scale) for scale in scales.split(","))
    except ValueError:
        factors = ()
    if not factors or not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise UserError(f"{flag} {scales}: it must be numbers above 0 with commas between them")
    return factors


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is spread: `processes` x `accumulation` x `per_process` images in a step."""

    processes: int
    accumulation: int
    per_process: int

    @property
    def total(self) -> int:
        return self.processes * self.accumulation * self.per_process

    def __str__(self) -> str:
        return (
            f"{self.processes} process{'es' if self.processes > 1 else ''} x {self.per_process} images"
            f" x {self.accumulation} accumulated = {self.total} in a step"
        )


def plan_batches(batch_size: int, processes: int, micro_batch: int | None, mixing: bool) -> BatchPlan:
    """Split a global batch evenly over processes, and each share into micro-batches. Without `micro_batch`, a
    process holds its whole share at a time.

    Raises UserError if the batch cannot be split, or if a micro-batch has fewer than the two images that
    mixing needs.
    """
    if batch_size % processes:
        raise UserError(
            f"--batch-size {batch_size} cannot be divided among {processes} processes: choose a multiple of"
            f" {processes}"
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
