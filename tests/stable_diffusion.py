"""Stable Diffusion 1.5 by its published configs, with random weights: only the weights differ from the real
thing.
"""

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def random_weights(module: nn.Module) -> nn.Module:
    """`module`, made on the meta device, in float16 on the CPU: matrices that keep variance, no biases.

    The default initialization would take minutes and, in float32, twice the memory.
    """
    module = module.half().to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in module.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.data.fill_(float(name.endswith("weight")))
        # Words' maps that differ from each other, and from place to place.
        if "attn2.to_q" in name or "attn2.to_k" in name:
            weight.data *= 2
    for name, places in module.named_buffers():  # of a text encoder, and of no other
        assert name.endswith("position_ids")
        places.copy_(torch.arange(places.shape[-1]))
    return module


def stable_diffusion(tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            down_block_types=(down, down, down, "DownBlock2D"),
            up_block_types=("UpBlock2D", up, up, up),
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        )
        vae = AutoencoderKL(
            sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                projection_dim=768,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
                hidden_act="quick_gelu",
                bos_token_id=0,
                eos_token_id=2,
                pad_token_id=1,
            )
        )
    return StableDiffusionPipeline(
        unet=random_weights(unet),
        vae=random_weights(vae),
        text_encoder=random_weights(text_encoder),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
