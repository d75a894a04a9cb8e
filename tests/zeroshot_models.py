"""Tiny models for the zero-shot methods, with random weights, in transformers' format with a tokenizer."""

import random
import string
from pathlib import Path

import torch
from tiny_clip import clip_config
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AlignConfig,
    AlignModel,
    AlignTextConfig,
    AlignVisionConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

SIZE, PATCH = 32, 8  # pixels of the side of an image and of a patch of `save_clip` and `save_clipseg`
_VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": PATCH,
}


def save_clip(folder: Path) -> Path:
    """A CLIP whose image tower has 3 blocks of 4 heads, for the methods on CLIP. Returns the folder."""
    tokenizer = letters_tokenizer()
    text = clip_config(tokenizer)
    vision = CLIPVisionConfig(**_VISION, projection_dim=text.projection_dim)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=text.projection_dim)
    return _save(CLIPModel, config, tokenizer, folder)


def save_scorer(folder: Path) -> Path:
    """A CLIP with its processor, for `--score-model`. Returns the folder."""
    save_clip(folder)
    _processor(CLIPImageProcessorPil, CLIPProcessor, letters_tokenizer()).save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    """A SigLIP that reads 32 tokens, with its processor, for `--score-model`. Returns the folder."""
    tokenizer = letters_tokenizer()
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "projection_size": 24}
    blocks = {name: _VISION[name] for name in list(_VISION)[:4]}
    config = SiglipConfig(text_config={**blocks, **text}, vision_config=_VISION)
    _save(SiglipModel, config, tokenizer, folder)
    _processor(SiglipImageProcessorPil, SiglipProcessor, tokenizer).save_pretrained(folder)
    return folder


def _processor(images: type, kind: type, tokenizer: CLIPTokenizer) -> ProcessorMixin:
    side = {"height": SIZE, "width": SIZE}
    return kind(images(size=side, crop_size=side), tokenizer)


def save_clipseg(folder: Path) -> Path:
    """A CLIPSeg whose decoder reads 2 of 3 blocks. Returns the folder."""
    tokenizer = letters_tokenizer()
    text = clip_config(tokenizer)
    config = CLIPSegConfig(
        text_config={**text.to_dict(), "model_type": "clipseg_text_model"},
        vision_config=_VISION,
        projection_dim=text.projection_dim,
        extract_layers=[0, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    return _save(CLIPSegForImageSegmentation, config, tokenizer, folder)


def save_align(folder: Path) -> Path:
    """An ALIGN with all seven stages of an EfficientNet, and so with its stride. Returns the folder."""
    tokenizer = words_tokenizer()
    text = AlignTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = AlignVisionConfig(
        image_size=SIZE,
        width_coefficient=0.2,
        depth_coefficient=0.2,
        out_channels=[16, 24, 40, 80, 112, 192, 120],  # the last stage has 24 of the 120 channels
        hidden_dim=24,
    )
    config = AlignConfig(
        text_config=text, vision_config=vision, projection_dim=24, temperature_init_value=0.05
    )
    return _save(AlignModel, config, tokenizer, folder)


def letters_tokenizer() -> CLIPTokenizer:
    """A tokenizer of CLIP that spells every word. An end of text pads, as in CLIP."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=77
    )


def words_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of letters with the special tokens of BERT."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.ascii_lowercase, *string.punctuation]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=48,
    )


def _save(
    kind: type[PreTrainedModel], config: object, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> Path:
    """Weights are the same in every run, and large enough that outputs differ between places and texts."""
    state = torch.random.get_rng_state()
    torch.manual_seed(random.Random(kind.__name__).randrange(2**31))
    try:
        model = kind(config)
        for part in model.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=part.weight.shape[-1] ** -0.5)
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.bias, -1, 1)
    finally:
        torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
