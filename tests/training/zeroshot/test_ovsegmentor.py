"""OVSegmentor: a published file computes what the published network computes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from zeroshot_models_grouping import (
    MLP,
    Block,
    PatchEmbed,
    bert_tokenizer,
    randomized,
    save_model,
)

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot.groupvit import grouped
from attn2mask.training.zeroshot.ovsegmentor import OVSegmentorModel, layout
from attn2mask.training.zeroshot.protocol import original
from attn2mask.training.zeroshot.segmenter import load_segmenter

TABLE = load_table("voc")
PROTOCOL = original("ovsegmentor", TABLE)
EPS = 1e-5


class MixerMLP(MLP):
    """An MLP over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for each in (self.q_proj(query), self.k_proj(key), self.v_proj(key))
        )
        found = F.scaled_dot_product_attention(q, k, v)
        return self.proj(found.transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn, self.norm2 = CrossAttention(width, heads), nn.LayerNorm(width, EPS)
        self.mlp, self.norm_post = MLP(width, hidden, width), nn.LayerNorm(width, EPS)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        x = query + self.attn(query, key)
        return self.norm_post(x + self.mlp(self.norm2(x)))


class Assign(CrossAttention):
    """Each token goes to one group, and a group is the mean of its tokens. Returns the soft shares too."""

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.q_proj(query) @ self.k_proj(key).transpose(1, 2) * query.shape[2] ** -0.5
        soft = raw.softmax(1)
        hard = F.one_hot(soft.argmax(1), query.shape[1]).transpose(1, 2).float()
        hard = hard / (hard.sum(2, keepdim=True) + 1)
        return self.proj(hard @ self.v_proj(key)), soft


class GroupingBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, tokens: int, groups: int) -> None:
        super().__init__()
        for name in ("norm_tokens", "norm_post_tokens", "norm_x", "norm_new_x"):
            setattr(self, name, nn.LayerNorm(width, EPS))
        self.mlp_inter = MixerMLP(tokens, width // 2, groups)
        self.pre_assign_attn = CrossBlock(width, heads, hidden)
        self.assign = Assign(width, 1)
        self.mlp_channels = MLP(width, 4 * width, width)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm_x(x)
        queries = self.norm_post_tokens(self.mlp_inter(self.norm_tokens(tokens)))
        queries = self.pre_assign_attn(queries, x)
        found, soft = self.assign(queries, x)
        found = found + queries
        return found + self.mlp_channels(self.norm_new_x(found)), soft


class Stage(nn.Module):
    def __init__(
        self, width: int, heads: int, hidden: int, depth: int, tokens: int = 0, groups: int = 0
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, hidden, EPS) for _ in range(depth))
        if tokens:
            self.group_token = nn.Parameter(torch.zeros(1, tokens, width))
            self.downsample = GroupingBlock(width, heads, hidden, tokens, groups)


class Encoder(nn.Module):
    """The image tower with 8 heads: two stages, and groups after the first one."""

    def __init__(
        self,
        width: int,
        hidden: int,
        depths: tuple[int, int],
        tokens: int,
        groups: int,
        patch: int,
        side: int,
    ) -> None:
        super().__init__()
        self.side, self.patch_embed = side, PatchEmbed(width, patch)
        self.pos_embed = nn.Parameter(torch.zeros(side**2, width))
        self.layers = nn.ModuleList(
            [Stage(width, 8, hidden, depths[0], tokens, groups), Stage(width, 8, hidden, depths[1])]
        )
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The groups (N, G, D), and the soft shares (N, G, h, w)."""
        height, width = (side // self.patch_embed.proj.stride[0] for side in pixels.shape[-2:])
        square = self.pos_embed.T.reshape(1, -1, self.side, self.side)
        positions = F.interpolate(square, (height, width), mode="bicubic").flatten(2).transpose(1, 2)
        x = self.patch_embed(pixels) + positions
        first, second = self.layers
        x = torch.cat([x, first.group_token.expand(len(x), -1, -1)], 1)
        for block in first.blocks:
            x = block(x)
        x, soft = first.downsample(x[:, : height * width], x[:, height * width :])
        for block in second.blocks:
            x = block(x)
        return self.norm(x), soft.unflatten(2, (height, width))


class Projector(nn.Module):
    def __init__(self, width: int, hidden: int, outside: int) -> None:
        super().__init__()
        self.linear_hidden = nn.Sequential(nn.Conv1d(width, hidden, 1), nn.BatchNorm1d(hidden), nn.ReLU())
        self.linear_out = nn.Conv1d(hidden, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(self.linear_hidden(x[..., None]))[..., 0]


class Published(nn.Module):
    """OVSegmentor with the names of its file."""

    def __init__(self, encoder: Encoder, bert: BertConfig, hidden: int, outside: int) -> None:
        super().__init__()
        self.img_encoder, self.text_encoder = encoder, nn.Module()
        self.text_encoder.transformer = BertModel(bert)  # with a pooler
        self.img_projector = Projector(encoder.pos_embed.shape[1], hidden, outside)
        self.text_projector = Projector(bert.hidden_size, hidden, outside)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


@pytest.fixture(scope="module")
def network() -> Published:
    """Thin towers with 8 heads, and one head of 64 in BERT."""
    bert = BertConfig(
        vocab_size=len(bert_tokenizer()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=40,
    )
    return randomized(Published(Encoder(32, 48, (2, 1), 6, 4, 8, 4), bert, 20, 12))


def published_state(network: nn.Module) -> dict[str, Tensor]:
    """Its tensors, and those that the published file has for training."""
    return network.state_dict() | {
        "text_encoder.transformer.embeddings.position_ids": torch.arange(40)[None],
        "img_encoder_momentum.norm.weight": torch.zeros(32),
        "multimodal_groupingblock.norm_x.weight": torch.zeros(32),
        "bridge_projector.linear_out.weight": torch.zeros(3, 3, 1),
        "align_proj_img.weight": torch.zeros(3),
        "logit_scale_mask": torch.tensor(1.0),
    }


def write(state: dict[str, Tensor], file: Path) -> str:
    """The file with its tokenizer beside it, as a value of --weights."""
    bert_tokenizer().save_pretrained(file.parent)
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    else:
        torch.save({"model": state, "epoch": 3}, file)
    return str(file)


@pytest.mark.parametrize("name", ["it.pth", "it.safetensors"])
@torch.no_grad()
def test_a_published_file_computes_what_it_did(tmp_path, network, name):
    weights = write(published_state(network), tmp_path / name)
    segmenter = load_segmenter("ovsegmentor", weights, PROTOCOL, TABLE)
    found = segmenter.network.eval()
    assert found.scale == pytest.approx(float(network.logit_scale.exp()))
    assert segmenter.record["sha256"]
    torch.manual_seed(0)
    for size in ((32, 32), (40, 24)):
        pixels = torch.randn(2, 3, *size)
        tokens, shares = grouped(found.tower, pixels)
        expected_tokens, expected_shares = network.img_encoder(pixels)
        torch.testing.assert_close(tokens, expected_tokens, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(shares, expected_shares, rtol=1e-4, atol=1e-5)
        expected = network.img_projector(expected_tokens[0])
        torch.testing.assert_close(found.projection(tokens[0]), expected, rtol=1e-4, atol=1e-4)
        assert found(pixels).logits.shape == (2, 21, *size)
    tokens = bert_tokenizer()("a photo of a cow.", return_tensors="pt")
    states = network.text_encoder.transformer(**tokens).last_hidden_state
    expected = F.normalize(network.text_projector(states[:, 0])[0], dim=0)
    torch.testing.assert_close(found.directions[9], expected, rtol=1e-4, atol=1e-5)


def test_the_published_shapes_are_all_used():
    """Of ViT-B and BERT-base, as comments of the code that published them state them; without values."""
    with torch.device("meta"):
        encoder = Encoder(768, 3072, (6, 6), 64, 8, 16, 14)
        state = Published(encoder, BertConfig(), 4096, 256).state_dict()
        assert state["img_encoder.layers.0.downsample.mlp_inter.fc1.weight"].shape == (384, 64)
        state = {
            name: tensor
            for name, tensor in state.items()
            if ".pooler." not in name and not name.endswith("num_batches_tracked")
        }
        config, tensors = layout(state)
        expected = OVSegmentorModel(config).state_dict()
    assert config.vision_config.image_size == 224
    assert config.text_config.num_attention_heads == 12
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in expected.items() if not name.endswith("num_batches_tracked")
    }


def test_a_folder_of_our_own_needs_no_network(tmp_path):
    model = save_model("ovsegmentor", tmp_path)
    segmenter = load_segmenter("ovsegmentor", str(tmp_path), PROTOCOL, TABLE)
    found = segmenter.network.tower.state_dict()
    for name, tensor in model.vision_model.state_dict().items():
        assert found[name].equal(tensor)
    with torch.no_grad():
        assert segmenter.network.eval()(torch.randn(1, 3, 20, 36)).logits.shape == (1, 21, 20, 36)


def without(name: str) -> Callable[[dict], None]:
    return lambda state: state.pop(name)


def with_other(state: dict) -> None:
    state["img_encoder.cls_token"] = torch.zeros(3)


def with_another_shape(state: dict) -> None:
    state["img_encoder.norm.weight"] = torch.zeros(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("img_encoder.layers.0.blocks.1.norm1.bias"),
            "tensors that OVSegmentorModel has and the file lacks: 1, such as"
            " vision_model.encoder.stages.0.layers.1.layer_norm1.bias",
        ),
        (
            without("img_encoder.patch_embed.proj.weight"),
            "holds no OVSegmentorModel: it lacks the tensor img_encoder.patch_embed.proj.weight",
        ),
        (with_other, "the file has and OVSegmentorModel lacks: 1, such as img_encoder.cls_token"),
        (
            with_another_shape,
            "that have other shapes in OVSegmentorModel: 1, such as vision_model.layernorm.weight",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, network, change, message):
    state = published_state(network)
    change(state)
    weights = write(state, tmp_path / "it.pth")
    with pytest.raises(UserError, match=message) as raised:
        load_segmenter("ovsegmentor", weights, PROTOCOL, TABLE)
    assert "\n" not in str(raised.value)


def test_the_method_needs_weights():
    with pytest.raises(UserError, match="--method ovsegmentor needs --weights"):
        load_segmenter("ovsegmentor", None, PROTOCOL, TABLE)
