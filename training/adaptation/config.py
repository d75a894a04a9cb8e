"""The options of `attn2mask adapt` and the presets: the paper's Table 2, and a small one for CPUs.

    accelerate launch training/adapt.py --data frames --preset cityscapes --output-dir runs/streets

As in training, a preset fixes the *global* batch.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import fill, identity_of, option, preset_option, read_preset
from attn2mask.builders.row_reader import incomplete_option, no_verify_option
from attn2mask.training.config import (
    CONSTANTS,
    DATA,
    METHOD,
    RUN,
    RunOptions,
    fraction_option,
    method_option,
    run_option,
    switch,
)

PRESETS = Path(__file__).parent / "presets"
PAINTER, PRIOR = "the painter", "prior preservation"
prior_option = partial(option, group=PRIOR, identity=True)

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_OTHER = (
    "proj_in proj_out ff.net.0.proj ff.net.2 time_emb_proj conv1 conv2 conv_shortcut conv conv_in conv_out"
)
# Names of the UNet's layers that a LoRA may be added to.
LAYERS = {"attention": _ATTENTION, "all": (*_ATTENTION, *_OTHER.split())}


@dataclass(frozen=True)
class AdaptConfig(RunOptions):
    """The options of `attn2mask adapt`. None leaves a value to the preset; `resolve` fills it in."""

    GROUPS: ClassVar = (DATA, PAINTER, METHOD, PRIOR, CONSTANTS, RUN)

    output_dir: str = option(
        "directory of LoRA, checkpoints and log", "runs/adapted", DATA, stored=False, metavar="DIR"
    )
    data: str = option(
        "images of the domain: a folder, with or without captions, or a built dataset",
        "",
        DATA,
        required=True,
    )
    allow_incomplete: bool = incomplete_option(DATA)
    no_verify: bool = no_verify_option(DATA)
    instance_prompt: str = option(
        "prompt for these images, with the identifier of their look",
        "a photo in sks style",
        DATA,
        identity=True,
        card="instance prompt",
        metavar="TEXT",
    )
    table: str = option("class table of the builds to come, whose prompts are sampled", "cityscapes", DATA)
    model: str = option(
        "painter: embedded, a folder with a diffusers pipeline, or a model of the Hub", "embedded", PAINTER
    )
    revision: str | None = option("revision of --model on the Hub", None, PAINTER, default_text="the newest")
    preset: str = preset_option("options of the method", PRESETS, "demo", METHOD)
    rank: int | None = method_option("rank of the LoRA, which is also its alpha", at_least=1, card="rank")
    layers: str | None = method_option(
        "layers of the UNet that the LoRA is added to", choices=tuple(LAYERS), card="layers"
    )
    text_encoder: bool = switch(
        "add a LoRA to the attention of the text encoders, too", card="LoRA of the text encoders"
    )
    crop_size: int | None = method_option(
        "height of the crops in pixels", at_least=1, card="height of the crops in pixels"
    )
    aspect: float | None = method_option(
        "width of the crops divided by their height", above=0, card="width / height of the crops"
    )
    prior_preservation: bool = switch(
        "also learn from images of the unadapted painter, which keeps its look for prompts without the"
        " identifier",
        group=PRIOR,
        card="prior preservation",
    )
    class_prompt: str = prior_option(
        "prompt for the class images, which the unadapted painter makes",
        "a photo of a street",
        card="class prompt",
        metavar="TEXT",
    )
    prior_images: int = prior_option("number of class images", 100, at_least=1, card="class images")
    prior_weight: float = prior_option(
        "weight of the loss on the class images", 1.0, above=0, card="weight of the class images"
    )
    dropout: float | None = fraction_option(
        "fraction of the prompts, 0 to 1, that are replaced by the empty prompt, as classifier-free guidance"
        " needs it",
        card="fraction of empty prompts",
    )
    gradient_checkpointing: bool = run_option("use less memory and a third more time", False)
    sample_every: int | None = run_option(
        "steps between two rows of samples; 0 paints none", None, at_least=0, default_text="a fifth of all"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.instance_prompt.strip():
            raise UserError("--instance-prompt is empty: name what the images show, with an identifier")

    def resolve(self) -> "AdaptConfig":
        """These options with the preset's values for all that are not given."""
        return fill(self, read_preset(PRESETS, self.preset))

    def identity(self) -> dict[str, Any]:
        """What must not change when a run resumes, apart from the painter and the images."""
        prior = () if self.prior_preservation else ("class_prompt", "prior_images", "prior_weight")
        return {name: value for name, value in identity_of(self).items() if name not in prior}
