"""The options of `attn2mask evaluate`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import SAME_COMMAND, CheckedOptions, flag_of, option
from attn2mask.builders.row_reader import incomplete_option, no_verify_option
from attn2mask.training.config import factors_of, measured_images, measured_split
from attn2mask.training.zeroshot.protocol import Background, Method, ProtocolName

GPU_BATCH = 16  # images
AUGMENTATION = "test-time augmentation"
ZERO_SHOT = "zero-shot methods"
_method_option = partial(option, default=None, group=ZERO_SHOT)


@dataclass(frozen=True)
class EvaluateConfig(CheckedOptions):
    """The options of `attn2mask evaluate`. Raises UserError for missing options and values out of range."""

    RESUMES: ClassVar = SAME_COMMAND
    SAVES_MEMORY: ClassVar = (
        "use --batch-size 1, which changes the predictions by no more than rounding, or --window, which"
        " changes the result; or leave out the largest images"
    )

    checkpoint: str | None = option(
        "checkpoint: a directory that train made, or a model of the Hub", None, metavar="DIR"
    )
    dataset: str | None = measured_images()
    split: str | None = measured_split()
    table: str | None = option(
        "class table of --dataset",
        None,
        default_text="the one that the dataset names, or the checkpoint's",
    )
    out: str = option(
        "JSON file of the metrics; its charts and options go beside it",
        "metrics.json",
        stored=False,
        metavar="FILE",
    )
    num_images: int | None = option(
        "measure only the first N images", None, at_least=1, default_text="all images"
    )
    allow_incomplete: bool = incomplete_option("options")
    no_verify: bool = no_verify_option("options")
    batch_size: int | None = option(
        "number of images that are predicted together if they have the same size",
        None,
        stored=False,
        at_least=1,
        default_text=f"{GPU_BATCH} on a GPU, 1 without one",
    )
    trust_remote_code: bool = option(
        "run Python code that the checkpoint brings along, with all rights of this user", False
    )
    method: Method | None = _method_option(
        "measure this method in place of a checkpoint: it segments by the names of the classes"
    )
    weights: str | None = _method_option(
        "weights of --method: a model of the Hub, a directory, or a file; a painter for attention",
        metavar="HUB|DIR|FILE",
        default_text="the publication's model on the Hub; the embedded painter for attention",
    )
    protocol: ProtocolName = option(
        "evaluate as the publication of --method does, or in the same way for all methods",
        "common",
        ZERO_SHOT,
    )
    background: Background | None = _method_option(
        "what is background: nothing (these pixels are not scored), a probability below a threshold, or a"
        " word of the background that is more probable than every class",
        default_text="words, or none if the table has no background",
    )
    threshold: float | None = _method_option(
        "probability below which a pixel is background",
        at_least=0,
        at_most=1,
        default_text="0.5 with --background threshold",
    )
    words: str | None = _method_option(
        "file of the words of the background, one in each line",
        metavar="FILE",
        default_text="the words of the package",
    )
    size: int | None = _method_option(
        "pixels of the shorter side that images are resized to, and of the windows",
        at_least=32,
        at_most=4096,
        default_text="448, or the publication's",
    )
    scales: str = option(
        "take the maximum of the logits of each image at these scales, with commas between them",
        "1",
        AUGMENTATION,
        metavar="S,S",
    )
    flip: bool = option("also take the logits of the mirrored image", False, AUGMENTATION)
    window: int | None = option(
        "predict larger images in overlapping windows of N pixels",
        None,
        AUGMENTATION,
        at_least=32,
        default_text="the whole image; the size of a zero-shot method",
    )
    overlap: float | None = option(
        "fraction of a window that lies in the next one",
        None,
        AUGMENTATION,
        at_least=0,
        at_most=0.9,
        default_text="a third; a half for zero-shot methods",
    )
    crf: str | None = option(
        "also measure the predictions after this dense CRF, in scores that begin with crf_",
        None,
        AUGMENTATION,
        choices=("beco",),
    )
    chosen_on: str | None = option(
        "name of the images on which scales, mirroring and windows were chosen, for the card",
        None,
        AUGMENTATION,
        metavar="TEXT",
        default_text="not recorded",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.out).suffix != ".json":
            raise UserError(f"--out {self.out}: the name must end in .json")
        _ = self.factors
        if bool(self.checkpoint) == bool(self.method):
            raise UserError(
                "give either --checkpoint, for trained networks, or --method, for a zero-shot method"
            )
        if self.method is None:
            for name in ("weights", "background", "threshold", "words", "size"):
                if getattr(self, name) is not None:
                    raise UserError(f"{flag_of(name)} is only for zero-shot methods: it needs --method")
        if self.threshold is not None and self.background != "threshold":
            raise UserError("--threshold is used only with --background threshold")
        if self.words is not None and self.background not in (None, "words"):
            raise UserError("--words is used only with --background words")
        if self.overlap is not None and self.method is None and self.window is None:
            raise UserError("--overlap is used only with --window")

    @property
    def factors(self) -> tuple[float, ...]:
        """`scales` as numbers. Raises as `factors_of`."""
        return factors_of(self.scales)
