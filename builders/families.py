"""How the models of each family are painted with: settings where those of the pipeline are wrong or missing.

A family is found from the configs of a model alone, without its weights. Settings with a source in a comment
come from the models' cards.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Family:
    """How a model is painted with.

    Attributes:
        dtype: the data type of the weights on a GPU.
        steps, guidance_scale: the number of denoising steps and the scale of guidance; None for the defaults
            of the pipeline.
        guidance: which argument of the pipeline takes the scale: `guidance_scale` ("plain"), `guidance_scale`
            as a value that a distilled model was trained with ("embedded"), or `true_cfg_scale` ("true").
        unguided: the largest scale at which the pipeline does not guide, and so takes no negative prompt.
        text_length: the most tokens of a prompt, `max_sequence_length`; None for what the tokenizer has.
        batch_size: the number of images painted at a time.
        window: the recorded steps, as fractions of the run, that are published for the model, or None.
        slicing: whether the VAE decodes one image at a time.
        options: further arguments of the pipeline.
    """

    dtype: torch.dtype = torch.bfloat16
    steps: int | None = None
    guidance_scale: float | None = None
    guidance: Literal["plain", "embedded", "true"] = "plain"
    unguided: float = 1.0
    text_length: int | None = None
    batch_size: int = 2
    window: tuple[float, float] | None = None
    slicing: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, guidance_scale: float, negative_prompt: str | None, images: int) -> dict[str, Any]:
        """The arguments of the pipeline for guidance and text, for a batch of `images`.

        FLUX.1 has no negative prompt in the guidance that it was distilled with: with one, it is painted with
        true guidance of this scale instead, which takes twice the time.
        """
        text = dict(self.options)
        if self.text_length is not None:
            text["max_sequence_length"] = self.text_length
        true = self.guidance == "true" or (self.guidance == "embedded" and negative_prompt is not None)
        if not true:
            negative = {} if negative_prompt is None else {"negative_prompt": [negative_prompt] * images}
            return {"guidance_scale": guidance_scale, **negative, **text}
        # Without any negative prompt, these pipelines do not guide; Qwen-Image's own is a space.
        text |= {"true_cfg_scale": guidance_scale, "negative_prompt": [negative_prompt or " "] * images}
        return text | ({"guidance_scale": 1.0} if self.guidance == "embedded" else {})


# Seg4Diff (NeurIPS 2025) reads step 8 of 28.
SEG4DIFF = (8 / 27, 8 / 27)
PLAIN = {"clean_caption": False, "use_resolution_binning": False}  # texts and sizes stay as they are given
UNET = Family(dtype=torch.float16, batch_size=8, slicing=False)
FAMILIES = {
    "UNet2DConditionModel": UNET,
    "SD3Transformer2DModel": Family(text_length=256, batch_size=4, window=SEG4DIFF),
    "FluxTransformer2DModel": Family(guidance="embedded", text_length=512, window=SEG4DIFF),
    "PixArtTransformer2DModel": Family(text_length=300, batch_size=4, options=PLAIN),
    "SanaTransformer2DModel": Family(text_length=300, batch_size=4, options=PLAIN),
    "QwenImageTransformer2DModel": Family(guidance="true", guidance_scale=4.0, text_length=512, batch_size=1),
    "ZImageTransformer2DModel": Family(text_length=512, unguided=0.0),
}


def family_of(
    name: str, index: Mapping[str, Any], denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> Family:
    """The family of a model from its `name`, its model_index.json, and the configs of its denoiser and its
    scheduler. Turbo models have no mark of their own: their name or their scheduler tells them.
    """
    kind = denoiser_class(index)
    family = FAMILIES.get(kind, UNET)
    turbo = "turbo" in name.lower()
    match kind:
        case "UNet2DConditionModel":
            if index["_class_name"].startswith("Kolors"):
                return replace(family, text_length=256, slicing=True)
            if (denoiser.get("sample_size") or 0) > 96:  # images of 1024 x 1024 pixels
                family = replace(family, slicing=True)
            if denoiser.get("time_cond_proj_dim"):  # LCM_Dreamshaper_v7
                return replace(family, steps=4, guidance_scale=8.0, unguided=math.inf)
            euler = str(index["scheduler"][1]).startswith("Euler")
            if turbo or (euler and scheduler.get("timestep_spacing") == "trailing"):  # sd-turbo, sdxl-turbo
                return replace(family, steps=4, guidance_scale=0.0)
        case "SD3Transformer2DModel" if turbo:  # stable-diffusion-3.5-large-turbo
            return replace(family, steps=4, guidance_scale=0.0, window=None)
        case "SD3Transformer2DModel" if denoiser.get("dual_attention_layers"):  # stable-diffusion-3.5-medium
            return replace(family, steps=40, guidance_scale=4.5)
        case "SD3Transformer2DModel" if denoiser.get("qk_norm"):  # stable-diffusion-3.5-large
            return replace(family, steps=28, guidance_scale=3.5)
        case "FluxTransformer2DModel" if not denoiser.get("guidance_embeds"):  # FLUX.1-schnell
            return replace(family, steps=4, guidance_scale=0.0, text_length=256, window=None)
        case "ZImageTransformer2DModel" if turbo:  # Z-Image-Turbo
            return replace(family, steps=8, guidance_scale=0.0)
    return family


def denoiser_class(index: Mapping[str, Any]) -> str:
    """The name of the denoiser's class in a model_index.json; empty if it has none."""
    parts = (index.get(part) or [None, None] for part in ("unet", "transformer"))
    return next((name for _, name in parts if name), "")
