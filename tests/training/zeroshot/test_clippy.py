"""CLIPpy: a published file computes what the published network computes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel
from zeroshot_models_grouping import Block, PatchEmbed, randomized, save_model, t5_tokenizer

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot.clippy import CLIPpyModel, layout
from attn2mask.training.zeroshot.protocol import original
from attn2mask.training.zeroshot.segmenter import load_segmenter

TABLE = load_table("voc")
PROTOCOL = original("clippy", TABLE)


class Trunk(nn.Module):
    """A ViT with the names of timm, heads of 64, and a class token."""

    def __init__(self, width: int, hidden: int, depth: int, patch: int, side: int) -> None:
        super().__init__()
        self.side, self.patch_embed = side, PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, width))
        self.blocks = nn.Sequential(*(Block(width, width // 64, hidden, 1e-6) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        """The patches (N, D, h, w)."""
        shape = [side // self.patch_embed.proj.stride[0] for side in pixels.shape[-2:]]
        square = self.pos_embed[0, 1:].T.reshape(1, -1, self.side, self.side)
        places = F.interpolate(square, shape, mode="bicubic").flatten(2).transpose(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(pixels), -1, -1)
        x = torch.cat([first, self.patch_embed(pixels) + places], 1)
        return self.norm(self.blocks(x))[:, 1:].transpose(1, 2).unflatten(2, shape)


class Dense(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inside, outside, bias=False)


class Published(nn.Module):
    """CLIPpy with the names of its file."""

    def __init__(self, trunk: Trunk, text: T5Config) -> None:
        super().__init__()
        self.visual, transformer = nn.Module(), nn.Module()
        self.visual.trunk, transformer.auto_model = trunk, T5EncoderModel(text)
        dense = Dense(text.d_model, trunk.cls_token.shape[2])
        self.text = nn.ModuleList([transformer, nn.Identity(), dense])  # the second one takes the mean
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


@pytest.fixture(scope="module")
def network() -> Published:
    text = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=24,
        d_kv=64,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
    )
    return randomized(Published(Trunk(128, 80, 2, 8, 4), text))


def write(state: dict[str, Tensor], file: Path, prefix: str = "module.") -> str:
    """The file with its tokenizer beside it, as a value of --weights."""
    t5_tokenizer().save_pretrained(file.parent)
    state = {prefix + name: tensor for name, tensor in state.items()}
    if file.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, file)
    else:
        torch.save({"state_dict": state, "epoch": 3}, file)
    return str(file)


def both_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def first_name(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The embeddings of T5 have two names. Here they have only one."""
    return {name: tensor for name, tensor in state.items() if "embed_tokens" not in name}


def second_name(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if "shared" not in name}


@pytest.mark.parametrize(
    ("name", "prefix", "names"),
    [
        ("it.pt", "module.", both_names),
        ("it.pt", "", first_name),
        ("it.safetensors", "module.", second_name),
    ],
)
@torch.no_grad()
def test_a_published_file_computes_what_it_did(tmp_path, network, name, prefix, names):
    weights = write(names(network.state_dict()), tmp_path / name, prefix)
    segmenter = load_segmenter("clippy", weights, PROTOCOL, TABLE)
    assert segmenter.decision.scale == pytest.approx(float(network.logit_scale.exp()))
    assert segmenter.decision.activation == "softmax"
    queries = PROTOCOL.queries
    assert len(queries) == 60
    texts = []
    for text in ("a photo of an airplane", "a photo of a bicycle"):  # alone, so that nothing is padded
        tokens = t5_tokenizer()(text, return_tensors="pt")["input_ids"]
        states = network.text[0].auto_model(input_ids=tokens).last_hidden_state[0]
        texts.append(F.normalize(network.text[2].linear(states.mean(0)), dim=0))
    torch.manual_seed(0)
    for size in ((32, 32), (40, 24)):
        pixels = torch.randn(2, 3, *size)
        found = segmenter.network.eval()(pixels).logits
        assert found.shape == (2, 60, *size)
        patches = F.normalize(network.visual.trunk(pixels), dim=1)
        for query, text in enumerate(texts):
            cosines = (patches * text[:, None, None]).sum(1, keepdim=True)
            expected = F.interpolate(cosines, size, mode="bilinear")[:, 0]
            torch.testing.assert_close(found[:, query], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_shorter_texts_of_a_query_are_padded_without_effect(tmp_path, network):
    weights = write(network.state_dict(), tmp_path / "it.pt")
    protocol = replace(PROTOCOL, templates=("scene",))
    vectors = []
    for text in protocol.prompts("airplane"):
        tokens = t5_tokenizer()(text, return_tensors="pt")["input_ids"]
        states = network.text[0].auto_model(input_ids=tokens).last_hidden_state[0]
        vectors.append(F.normalize(network.text[2].linear(states.mean(0)), dim=0))
    assert len(vectors) == 5
    found = load_segmenter("clippy", weights, protocol, TABLE).network.directions[0]
    torch.testing.assert_close(found, F.normalize(sum(vectors), dim=0), rtol=1e-4, atol=1e-5)


def test_the_published_shapes_are_all_used():
    """Of ViT-B and Sentence-T5-base; without values."""
    text = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)
    with torch.device("meta"):
        state = Published(Trunk(768, 3072, 12, 16, 14), text).state_dict()
        assert state["visual.trunk.blocks.11.attn.qkv.weight"].shape == (2304, 768)
        config, tensors = layout(state)
        expected = CLIPpyModel(config).state_dict()
    assert config.vision_config.image_size == 224
    assert (config.vision_config.num_attention_heads, config.text_config.num_heads) == (12, 12)
    del expected["text_model.encoder.embed_tokens.weight"]  # the second name of one tensor
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


@torch.no_grad()
def test_a_folder_of_our_own_gives_ids(tmp_path):
    model = save_model("clippy", tmp_path)
    segmenter = load_segmenter("clippy", str(tmp_path), PROTOCOL, TABLE)
    assert segmenter.network.tower.layernorm.weight.equal(model.vision_model.layernorm.weight)
    pixels = torch.randn(1, 3, 20, 36)
    values = segmenter.network.eval()(pixels).logits
    wide = segmenter.network(F.pad(pixels, (0, 4, 0, 4))).logits
    torch.testing.assert_close(values, wide[..., :20, :36])  # padded, and cut again
    image = np.zeros((20, 36, 3), np.uint8)
    expected = (values[0] * segmenter.decision.scale).softmax(0)
    expected = torch.cat([expected[20:].amax(0, keepdim=True), expected[:20]]).argmax(0)
    assert segmenter.decision(values, image)[0].equal(expected.int())


def test_the_protocol_can_set_the_factor(tmp_path):
    save_model("clippy", tmp_path)
    protocol = replace(PROTOCOL, scale=7.0)
    assert load_segmenter("clippy", str(tmp_path), protocol, TABLE).decision.scale == 7


def test_images_are_resized_bicubically(tmp_path):
    save_model("clippy", tmp_path)
    preprocessor = load_segmenter("clippy", str(tmp_path), replace(PROTOCOL, crop=None), TABLE).preprocessor
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8))
    pixels = preprocessor(image)["pixel_values"][0]
    size = (round(224 * 60 / 50), 224)
    expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    deviation = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    np.testing.assert_allclose(pixels.permute(1, 2, 0), (expected - mean) / deviation, rtol=1e-4, atol=1e-5)


def without(name: str) -> Callable[[dict], None]:
    return lambda state: state.pop(name)


def with_other(state: dict) -> None:
    state["visual.head.proj.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("text.2.linear.weight"),
            "CLIPpyModel has and the file lacks: 1, such as text_projection.weight",
        ),
        (without("visual.trunk.cls_token"), "the file lacks: 1, such as vision_model.embeddings.cls_token"),
        (
            without("visual.trunk.pos_embed"),
            "holds no CLIPpyModel: it lacks the tensor vision_model.embeddings.position",
        ),
        (with_other, "the file has and CLIPpyModel lacks: 1, such as visual.head.proj.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, network, change, message):
    state = network.state_dict()
    change(state)
    weights = write(state, tmp_path / "it.pt")
    with pytest.raises(UserError, match=message) as raised:
        load_segmenter("clippy", weights, PROTOCOL, TABLE)
    assert "\n" not in str(raised.value)
