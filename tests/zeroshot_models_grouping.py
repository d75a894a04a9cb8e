"""Tiny models of GroupViT, OVSegmentor and CLIPpy with random weights, and parts of published networks."""

import math
import string
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTokenizer,
    GroupViTConfig,
    GroupViTModel,
    GroupViTTextConfig,
    GroupViTVisionConfig,
    PreTrainedModel,
    T5Config,
    T5Tokenizer,
    ViTConfig,
)

from attn2mask.training.zeroshot.clippy import CLIPpyConfig, CLIPpyModel
from attn2mask.training.zeroshot.ovsegmentor import OVSegmentorConfig, OVSegmentorModel

SIZE, PATCH = 32, 8  # pixels
_SIGNS = string.ascii_lowercase + "./,-"


def randomized(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with random values for all of its weights and statistics. The biases are
    small, so that the patches of one image differ.
    """
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.1)
        else:
            nn.init.normal_(parameter, 1 if parameter.ndim == 1 else 0, 0.3)  # norms have one axis
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d):
            nn.init.normal_(part.running_mean, 0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
    if hasattr(model, "logit_scale"):
        model.logit_scale.data.fill_(math.log(10))
    return model.eval()


def clip_tokenizer() -> CLIPTokenizer:
    tokens = [*_SIGNS, *(sign + "</w>" for sign in _SIGNS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def bert_tokenizer() -> BertTokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *_SIGNS, *("##" + sign for sign in _SIGNS)]
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, model_max_length=512)


def t5_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, ("▁", -2.0), *((sign, -3.0) for sign in _SIGNS)], extra_ids=0)


def tiny_groupvit(image_size: int | tuple[int, int] = SIZE) -> GroupViTModel:
    """Three stages with 6, 4 and no group tokens, as the published model has 64, 8 and none."""
    tokenizer = clip_tokenizer()
    vision = GroupViTVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        depths=[1, 1, 1],
        num_group_tokens=[6, 4, 0],
        num_output_groups=[6, 4, 4],
        num_attention_heads=2,
        image_size=image_size,
        patch_size=PATCH,
    )
    text = GroupViTTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = GroupViTConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        projection_dim=12,
        projection_intermediate_dim=20,
    )
    return randomized(GroupViTModel(config))


def tiny_ovsegmentor() -> OVSegmentorModel:
    vision = GroupViTVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        depths=[2, 1],
        num_group_tokens=[6, 0],
        num_output_groups=[4, 0],
        num_attention_heads=8,
        image_size=SIZE,
        patch_size=PATCH,
    )
    text = BertConfig(
        vocab_size=len(bert_tokenizer()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=64,
    )
    return randomized(
        OVSegmentorModel(
            OVSegmentorConfig(
                vision_config=vision, text_config=text, projection_dim=12, projection_intermediate_dim=20
            )
        )
    )


def tiny_clippy() -> CLIPpyModel:
    vision = ViTConfig(
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        layer_norm_eps=1e-6,
        image_size=SIZE,
        patch_size=PATCH,
    )
    text = T5Config(vocab_size=len(t5_tokenizer()), d_model=24, d_kv=64, d_ff=48, num_layers=2, num_heads=2)
    return randomized(CLIPpyModel(CLIPpyConfig(vision_config=vision, text_config=text)))


MODELS = {
    "groupvit": (tiny_groupvit, clip_tokenizer),
    "ovsegmentor": (tiny_ovsegmentor, bert_tokenizer),
    "clippy": (tiny_clippy, t5_tokenizer),
}


def save_model(method: str, folder: Path) -> PreTrainedModel:
    """A tiny model of a method of `MODELS`, which is saved in a folder with its tokenizer."""
    model, tokenizer = (make() for make in MODELS[method])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


# Parts of the published networks, with their names


class MLP(nn.Module):
    def __init__(self, inside: int, hidden: int, outside: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inside, hidden), nn.Linear(hidden, outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class FusedAttention(nn.Module):
    """Self-attention with one projection to the queries, the keys and the values of all heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        length, width = x.shape[1:]
        qkv = self.qkv(x).reshape(len(x), length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(len(x), length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps), FusedAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps), MLP(width, hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)
