"""What `training/adapt.py` takes, and the presets: the paper's Table 2 and a small one for CPUs.

    accelerate launch training/adapt.py --data frames --preset cityscapes --output-dir runs/streets

As in `settings.py`, a preset fixes the *global* batch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import check_numbers, option

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_REST = (
    *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj"),
    *("conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out"),
)
#: Names of the UNet's layers that a LoRA may stand beside.
LAYERS = {"attention": _ATTENTION, "all": (*_ATTENTION, *_REST)}


@dataclass(frozen=True)
class Settings:
    """Everything that the adapter depends on, beside painter, pictures, prompts and seed. The defaults are
    the paper's Table 2; what is not in it is marked.

    Attributes:
        learning_rate: of AdamW.
        power: of the polynomial decay, lr (1 - step / max_steps) ** power; there is no warm-up.
        weight_decay: of AdamW.
        batch_size: pictures a step over all processes. Table 2: 1 x 4.
        max_steps: optimizer steps.
        rank: of the LoRA, whose alpha equals it. Not in the paper (unverified); 4 is diffusers' default.
        layers: of the UNet that learn, "attention" or "all" (`LAYERS`). Not in the paper (unverified).
        text_encoder: a LoRA on the text encoders' attention, too. Not in the paper (unverified).
        crop_size: height of the crops in pixels. Not in the paper (unverified).
        aspect: width of the crops over their height. Not in the paper (unverified).
        clip: largest norm of the gradient. Not in the paper (unverified); 1 is diffusers' default.
        dropout: share of the prompts that are left empty, as guidance needs it. Not in the paper
            (unverified).
        prior_weight: of the error on pictures that the unadapted painter painted of the class prompt; 0 is
            no prior preservation. Not in the paper (unverified).
    """

    learning_rate: float = 2e-5
    power: float = 1.0
    weight_decay: float = 0.01
    batch_size: int = 4
    max_steps: int = 40_000
    rank: int = 4
    layers: str = "attention"
    text_encoder: bool = False
    crop_size: int = 512
    aspect: float = 1.0
    clip: float = 1.0
    dropout: float = 0.0
    prior_weight: float = 0.0

    def rate(self, step: int) -> float:
        """The learning rate at ``step``."""
        return self.learning_rate * max(0.0, 1 - step / self.max_steps) ** self.power


#: The paper's Table 2, and a small one for the embedded painter on CPUs.
PRESETS: dict[str, Settings] = {
    "cityscapes": Settings(),
    "demo": Settings(
        learning_rate=3e-3, batch_size=8, max_steps=500, rank=32, layers="all", crop_size=128, aspect=2.0,
        dropout=0.1,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class AdaptConfig:
    """The options of `training/adapt.py`; those left out come from the preset."""

    data: str = option("pictures: a folder, with captions or without, or rows of a dataset", "", "data")
    output_dir: str = option("where the adapter goes (%(default)s)", "runs/adapted", "data", metavar="DIR")
    instance_prompt: str = option(
        "what the pictures show, with the identifier (%(default)s)", "a photo in sks style", "data"
    )
    table: str = option("class table of the builds to come, for samples (%(default)s)", "cityscapes", "data")
    model: str = option("embedded, a folder, or a model of the Hub (%(default)s)", "embedded", "painter")
    revision: str | None = option("of a model of the Hub", None, "painter")
    preset: str = option(
        "settings to start from (%(default)s)", "demo", "method", choices=tuple(PRESETS), metavar="NAME"
    )
    max_steps: int | None = option("optimizer steps", None, "method", metavar="N")
    learning_rate: float | None = option("at the first step", None, "method", metavar="LR")
    batch_size: int | None = option("pictures a step over all processes", None, "method", metavar="N")
    rank: int | None = option("of the LoRA", None, "method", metavar="R")
    layers: str | None = option("that learn: attention, or all", None, "method")
    text_encoder: bool = option("a LoRA on the text encoders, too", False, "method")
    crop_size: int | None = option("height of the crops in pixels", None, "method", metavar="N")
    aspect: float | None = option("width of the crops over their height", None, "method", metavar="X")
    prior_preservation: bool = option("learn from the painter's own pictures beside", False, "prior")
    class_prompt: str = option("of these pictures (%(default)s)", "a photo of a street", "prior")
    prior_images: int = option("how many (%(default)s)", 100, "prior", metavar="N")
    prior_weight: float = option("of the error on them (%(default)s)", 1.0, "prior", metavar="X")
    seed: int = option("of every random choice (%(default)s)", 0, "method", metavar="N")
    mixed_precision: str = option(
        "no, bf16 or fp16 (accelerate's own setting)", "", "run", choices=("", "no", "bf16", "fp16")
    )
    micro_batch: int = option(
        "pictures a process holds at once (as many as its share)", 0, "run", metavar="N"
    )
    gradient_checkpointing: bool = option("less memory, a third more time", False, "run")
    checkpoint_every: int = option("steps between checkpoints (%(default)s)", 250, "run", metavar="N")
    sample_every: int | None = option(
        "steps between samples (a fifth of all; 0: none)", None, "run", metavar="N"
    )
    report_to: str = option("tracker, or none (%(default)s)", "tensorboard", "run")
    resume: bool = option("go on from the last checkpoint, if there is one", False, "run")
    push_to_hub: str | None = option("publish as this model when done", None, "run", metavar="REPO")

    def __post_init__(self) -> None:
        positive = ("max_steps", "batch_size", "rank", "crop_size", "prior_images", "checkpoint_every")
        check_numbers(self, positive, ("seed", "micro_batch", "sample_every"))
        for name in ("learning_rate", "aspect", "prior_weight"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} is {value}, but must be above 0")
        if self.layers not in (None, *LAYERS):
            raise UserError(f"--layers is {self.layers!r}: choose {' or '.join(LAYERS)}")
        if not self.instance_prompt.strip():
            raise UserError("--instance-prompt is empty: name what the pictures show, with an identifier")

    def settings(self) -> Settings:
        """The preset with what was given over it."""
        given = {f.name: getattr(self, f.name, None) for f in fields(Settings)}
        given |= {"prior_weight": self.prior_weight if self.prior_preservation else 0.0}
        return replace(PRESETS[self.preset], **{k: value for k, value in given.items() if value is not None})

    def identity(self) -> dict[str, Any]:
        """What must not change when a run goes on, beside painter and pictures."""
        prior = {"class_prompt": self.class_prompt, "prior_images": self.prior_images}
        return {
            "seed": self.seed, "instance_prompt": self.instance_prompt, **asdict(self.settings()),
            **(prior if self.prior_preservation else {}),
        }  # fmt: skip
