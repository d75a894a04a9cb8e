"""Tiny pipelines of every family that is supported, with random weights, tokenizers made here, and the
published configs of their schedulers.
"""

import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    KolorsPipeline,
    LCMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig
from tiny_clip import clip_config
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = "a an the photo of dog cat cow zebu horse bus car person street with and in on two cows".split()
SYMBOLS = string.ascii_letters + string.digits + string.punctuation
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip_tokenizer() -> CLIPTokenizer:
    """One token for each letter, so that a word has several."""
    vocab = [*SYMBOLS.lower(), *(f"{letter}</w>" for letter in SYMBOLS.lower())]
    vocab = [*dict.fromkeys(vocab), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(vocab)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """Whole words, and letters for all others."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), *SYMBOLS]
    scores = [0.0, 0.0, 0.0, -8.0, *(-2.0 for _ in WORDS), *(-9.0 for _ in SYMBOLS)]
    return T5Tokenizer(vocab=list(zip(pieces, scores, strict=True)), extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> GemmaTokenizer:
    """One token for each character."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocab = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *SYMBOLS]
    return GemmaTokenizer(vocab={piece: i for i, piece in enumerate(vocab)}, merges=[])


def qwen_tokenizer() -> Qwen2Tokenizer:
    """One token for each byte."""
    vocab = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate(vocab)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def glm_tokenizer(folder: Path) -> ChatGLMTokenizer:
    """Kolors' tokenizer, on a small vocabulary of SentencePiece."""
    text = folder / "words.txt"
    text.write_text("\n".join(" ".join(WORDS[k:] + WORDS[:k]) for k in range(len(WORDS))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=60,
        model_type="bpe",
        byte_fallback=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return ChatGLMTokenizer(str(folder / "tokenizer.model"))


def t5(tokenizer: PreTrainedTokenizerBase, kind: type = T5EncoderModel) -> Any:
    return kind(T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def autoencoder(channels: int, levels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=2,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=128,
    )


def sharpened(module: torch.nn.Module, factor: float = 4) -> Any:
    """Larger queries and keys, since random weights attend evenly to everything."""
    names = ("to_q", "to_k", "add_q_proj", "add_k_proj")
    for name, weight in module.named_parameters():
        if any(part in name for part in names) and weight.dim() > 1:
            weight.data *= factor
    return module


def sd3(folder: Path) -> DiffusionPipeline:
    first, second, third = clip_tokenizer(), clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return StableDiffusion3Pipeline(
        transformer=sharpened(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(4),
        text_encoder=CLIPTextModelWithProjection(clip_config(first)),
        tokenizer=first,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(second)),
        tokenizer_2=second,
        text_encoder_3=t5(third),
        tokenizer_3=third,
    )


def flux(folder: Path, guidance: bool = True) -> DiffusionPipeline:
    first, second = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        max_image_seq_len=4096,
        base_shift=0.5,
        max_shift=1.15,
        shift=3.0 if guidance else 1.0,
        use_dynamic_shifting=guidance,
    )
    return FluxPipeline(
        transformer=sharpened(transformer),
        scheduler=scheduler,
        vae=autoencoder(4),
        text_encoder=CLIPTextModel(clip_config(first)),
        tokenizer=first,
        text_encoder_2=t5(second),
        tokenizer_2=second,
    )


def schnell(folder: Path) -> DiffusionPipeline:
    return flux(folder, guidance=False)


def pixart(folder: Path) -> DiffusionPipeline:
    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer),
        vae=autoencoder(4),
        transformer=sharpened(transformer),
        scheduler=DPMSolverMultistepScheduler(
            beta_schedule="linear", beta_start=0.0001, beta_end=0.02, solver_order=2
        ),
    )


def sana(folder: Path) -> DiffusionPipeline:
    tokenizer = gemma_tokenizer()
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=4096,
        )
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=4,
        patch_size=1,
    )
    blocks = ("ResBlock",) * 6
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=sharpened(transformer),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def qwen(folder: Path) -> DiffusionPipeline:
    tokenizer = qwen_tokenizer()
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "vocab_size": len(tokenizer),
                "rope_parameters": {
                    "mrope_section": [1, 1, 2],
                    "rope_type": "default",
                    "type": "default",
                    "rope_theta": 1000000.0,
                },
                "rope_theta": 1000000.0,
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 16,
            },
            hidden_size=16,
            vocab_size=len(tokenizer),
        )
    )
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_image_seq_len=256,
            base_shift=0.5,
            max_image_seq_len=8192,
            max_shift=0.9,
            shift_terminal=0.02,
            time_shift_type="exponential",
            use_dynamic_shifting=True,
        ),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=sharpened(transformer),
    )


def zimage(folder: Path) -> DiffusionPipeline:
    tokenizer = qwen_tokenizer()
    encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=1024,
        )
    )
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        qk_norm=True,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for name in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(transformer, name))
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(4),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=sharpened(transformer),
    )


def unet(width: int, **options: Any) -> UNet2DConditionModel:
    return sharpened(
        UNet2DConditionModel(
            sample_size=16,
            norm_num_groups=4,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=width,
            **options,
        )
    )


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def kolors(folder: Path) -> DiffusionPipeline:
    tokenizer = glm_tokenizer(folder)
    encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=tokenizer.vocab_size + 16,
            hidden_size=16,
            ffn_hidden_size=16,
            kv_channels=8,
            num_attention_heads=2,
            seq_length=256,
            add_qkv_bias=True,
            multi_query_attention=True,
            multi_query_group_num=1,
            original_rope=True,
        )
    )
    for name, weight in encoder.named_parameters():  # it leaves them as the memory was
        torch.nn.init.ones_(weight) if "norm" in name else torch.nn.init.normal_(weight, std=0.2)
    sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return KolorsPipeline(
        vae=autoencoder(4),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(
            16,
            encoder_hid_dim=16,
            encoder_hid_dim_type="text_proj",
            projection_class_embeddings_input_dim=16 + 6 * 8,
            **sizes,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
    )


def sd_turbo(folder: Path) -> DiffusionPipeline:
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=autoencoder(4),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet(16),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl_turbo(folder: Path) -> DiffusionPipeline:
    first, second = clip_tokenizer(), clip_tokenizer()
    sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return StableDiffusionXLPipeline(
        vae=autoencoder(4),
        text_encoder=CLIPTextModel(clip_config(first)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(second)),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet(32, projection_class_embeddings_input_dim=16 + 6 * 8, **sizes),
        scheduler=EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing", steps_offset=1),
        add_watermarker=False,
    )


def lcm(folder: Path) -> DiffusionPipeline:
    pipe = sd_turbo(folder)
    pipe.register_modules(
        unet=unet(16, time_cond_proj_dim=8), scheduler=LCMScheduler(**BETAS, steps_offset=1)
    )
    return pipe


FAMILIES: dict[str, Callable[[Path], DiffusionPipeline]] = {
    "sd3": sd3,
    "flux": flux,
    "schnell": schnell,
    "pixart": pixart,
    "sana": sana,
    "qwen": qwen,
    "zimage": zimage,
    "kolors": kolors,
    "sd_turbo": sd_turbo,
    "sdxl_turbo": sdxl_turbo,
    "lcm": lcm,
}


def tiny_family(kind: str, folder: Path) -> DiffusionPipeline:
    """A pipeline of a family in float32 for images of 128 x 128 pixels; `folder` is for files it needs."""
    state = torch.random.get_rng_state()
    torch.manual_seed(random.Random(kind).randrange(2**31))
    try:
        pipe = FAMILIES[kind](folder)
    finally:
        torch.random.set_rng_state(state)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
