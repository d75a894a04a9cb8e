"""Published state dicts become backbones that compute what the published networks compute."""

import hashlib
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoBackbone, ResNetConfig, SwinConfig

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.training import backbones
from attn2mask.training.backbones import RECIPES, find_backbone
from attn2mask.training.deeplabv3plus import DeepLabV3PlusForSemanticSegmentation
from attn2mask.training.models import build_network

TABLE = load_table("voc")
DEPTHS = (1, 2, 1, 3)


class Bottleneck(nn.Module):
    """A block with the names of torchvision; in a ResNet-D (`pooled`) with those of timm."""

    def __init__(self, inside: int, outside: int, stride: int, pooled: bool) -> None:
        super().__init__()
        width = outside // 4
        self.conv1, self.bn1 = nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(width), nn.BatchNorm2d(outside)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False)
        self.downsample = None
        if pooled and inside != outside:
            pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
            shortcut = nn.Conv2d(inside, outside, 1, bias=False)
            self.downsample = nn.Sequential(pool, shortcut, nn.BatchNorm2d(outside))
        elif inside != outside:
            shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outside))

    def forward(self, features: Tensor) -> Tensor:
        found = self.bn1(self.conv1(features)).relu()
        found = self.bn3(self.conv3(self.bn2(self.conv2(found)).relu()))
        return (found + (self.downsample(features) if self.downsample else features)).relu()


class PublishedResNet(nn.Module):
    """A narrow ResNet-50 or ResNet-50-D in the layout in which torchvision and timm publish them."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(3, 16, 7, 2, 3, bias=False)
        if deep:
            norms = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            self.conv1 = nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1, bias=False),
                norms[0],
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, 1, 1, bias=False),
                norms[1],
                nn.ReLU(),
                nn.Conv2d(8, 16, 3, 1, 1, bias=False),
            )
        self.bn1, self.fc = nn.BatchNorm2d(16), nn.Linear(64, 10)
        inside = 16
        for stage, (outside, depth) in enumerate(zip((16, 32, 48, 64), DEPTHS, strict=True), start=1):
            blocks = []
            for block in range(depth):
                stride = 2 if block == 0 and stage > 1 else 1
                blocks.append(Bottleneck(inside if block == 0 else outside, outside, stride, deep))
            # The first shortcut of a published network is a convolution: its first stage widens the stem.
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inside = outside

    def forward(self, images: Tensor) -> list[Tensor]:
        features = nn.functional.max_pool2d(self.bn1(self.conv1(images)).relu(), 3, 2, 1)
        found = []
        for stage in range(1, 5):
            features = getattr(self, f"layer{stage}")(features)
            found.append(features)
        return found


def published(deep: bool) -> PublishedResNet:
    torch.manual_seed(0)
    network = PublishedResNet(deep).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


def undilated(network: DeepLabV3PlusForSemanticSegmentation) -> nn.Module:
    """Its backbone with the strides of its pretraining."""
    network.config.output_stride, network.config.multi_grid = 32, ()
    plain = DeepLabV3PlusForSemanticSegmentation(network.config)
    plain.load_state_dict(network.state_dict())
    return plain.backbone.eval()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("deep", [False, True], ids=["ResNet", "ResNet-D"])
def test_a_published_resnet_computes_what_it_did(tmp_path, deep, ending):
    network, file = published(deep), tmp_path / f"it{ending}"
    if ending == ".pth":
        torch.save({"state_dict": network.state_dict()}, file)
    else:
        save_file(network.state_dict(), file)
    found = build_network("deeplabv3plus", str(file), TABLE, seed=0, multi_grid=True)
    assert found.config.resnet_d == deep
    assert not found.config.backbone_from_scratch
    assert found.config.backbone_weights["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        first, *_, last = network(images)
        low, high = undilated(found)(images).feature_maps
    torch.testing.assert_close(low, first)
    torch.testing.assert_close(high, last)


def test_a_multi_grid_dilates_the_last_blocks(tmp_path):
    torch.save(published(True).state_dict(), tmp_path / "it.pth")
    dilations = {}
    for multi_grid in (False, True):
        network = build_network("deeplabv3plus", str(tmp_path / "it.pth"), TABLE, 0, multi_grid=multi_grid)
        last = network.backbone.encoder.stages[-1]
        dilations[multi_grid] = [block.layer[1].convolution.dilation[0] for block in last.layers]
        assert last.layers[0].shortcut.convolution.stride == (1, 1)  # and no pooling, as in BECO
    assert dilations == {False: [1, 2, 2], True: [2, 4, 8]}


@pytest.mark.parametrize(
    ("architecture", "backbone", "message"),
    [
        ("deeplabv3plus", "scratch:small", "--multi-grid needs deeplabv3plus on a ResNet with 3 blocks"),
        ("deeplabv3plus", "scratch:swin-tiny", "give --multi-grid false"),
        ("upernet", "scratch:resnet50", "which upernet on scratch:resnet50 is not"),
    ],
)
def test_where_the_weights_allow_no_multi_grid(architecture, backbone, message):
    with pytest.raises(UserError, match=message):
        build_network(architecture, backbone, TABLE, 0, multi_grid=True)


def test_upernet_takes_no_resnet_d():
    with pytest.raises(UserError, match="is a ResNet-D, which upernet cannot have"):
        build_network("upernet", "scratch:resnet50d", TABLE, 0)


# Swin: the names of a transformers' checkpoint, and those of the three publishers.

SWIN = SwinConfig(
    embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=3, out_features=["stage4"]
)


def authors_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The state dict of a `SwinBackbone` as the authors of Swin publish it."""
    state = {key: value for key, value in backbone.state_dict().items() if key.startswith("swin.")}
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("swin.").removeprefix("encoder.")
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("embeddings.norm", "patch_embed.norm").replace("layernorm.", "norm.")
        name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        name = name.replace("attention.o_proj", "attn.proj")
        name = re.sub(r"attention\.relative_position_bias\.", "attn.", name)
        if part := re.search(r"attention\.([qkv])_proj", name):
            name = name.replace(part[0], "attn.qkv")
            found[name] = torch.cat([found[name], value]) if name in found else value
        else:
            found[name] = value
    found["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.long)
    return found | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}


def timm_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def later(match: re.Match) -> str:
        return f"layers.{int(match[1]) + 1}.downsample"

    return {re.sub(r"layers\.(\d)\.downsample", later, key): value for key, value in state.items()}


def torchvision_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        key = key.replace("patch_embed.proj", "features.0.0").replace("patch_embed.norm", "features.0.2")
        key = key.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
        key = re.sub(r"layers\.(\d)\.blocks", lambda m: f"features.{2 * int(m[1]) + 1}", key)
        found[re.sub(r"layers\.(\d)\.downsample", lambda m: f"features.{2 * int(m[1]) + 2}", key)] = value
    return found


@pytest.mark.parametrize("publisher", ["authors", "timm", "torchvision"])
def test_a_published_swin_computes_what_it_did(tmp_path, publisher):
    torch.manual_seed(0)
    backbone = AutoBackbone.from_config(SWIN)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    state = authors_state(backbone)
    state = {"authors": dict, "timm": timm_state, "torchvision": torchvision_state}[publisher](state)
    torch.save({"model": state} if publisher == "authors" else state, tmp_path / "it.pth")
    network = build_network("deeplabv3plus", str(tmp_path / "it.pth"), TABLE, 0)
    config = network.config.backbone_config
    assert (config.depths, config.num_heads, config.window_size) == ([1, 2, 1, 1], [1, 2, 2, 4], 3)
    images = torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        expected = backbone.eval().swin(images).last_hidden_state
        torch.testing.assert_close(network.backbone.eval().swin(images).last_hidden_state, expected)


# Where weights come from


def test_a_folder_of_timm_names_its_recipe(tmp_path):
    save_file(published(True).state_dict(), tmp_path / "model.safetensors")
    described = {"architecture": "resnet50d", "pretrained_cfg": {"tag": "ra2_in1k"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    weights = build_network("deeplabv3plus", str(tmp_path), TABLE, 0).config.backbone_weights
    assert weights["recipe"] == "timm resnet50d.ra2_in1k"


def test_a_file_of_torchvision_is_known_by_its_digest(tmp_path, monkeypatch):
    torch.save(published(False).state_dict(), tmp_path / "it.pth")
    assert find_backbone(str(tmp_path / "it.pth")).record()["recipe"] is None
    digest = hashlib.sha256((tmp_path / "it.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(RECIPES, digest[:8], "torchvision's")
    assert find_backbone(str(tmp_path / "it.pth")).record() == {"recipe": "torchvision's", "sha256": digest}


def test_the_shipped_backbone_has_its_record():
    record = find_backbone("embedded").record()
    assert record["recipe"].startswith("this project")
    assert len(record["sha256"]) == 64


@pytest.mark.parametrize(
    ("source", "alike"),
    [
        ("timm/resnet50d.ra2_in1k", "scratch:resnet50d to"),
        ("microsoft/resnet-50", "scratch:resnet50 to"),
        ("microsoft/swin-base-patch4-window7-224-in22k", "scratch:swin-base to"),
        ("some/net", "scratch:NAME to"),
    ],
)
def test_weights_that_cannot_be_fetched_end_the_run(source, alike, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no connection\nand a long story")

    find_backbone.cache_clear()
    monkeypatch.setattr(backbones, "hf_hub_download", unreachable)
    with pytest.raises(UserError) as raised:
        build_network("deeplabv3plus", source, TABLE, 0)
    text = str(raised.value)
    assert f"backbone {source} cannot be fetched from the Hub (no connection): give --backbone" in text
    assert "local folder or file" in text
    assert alike in text
    assert "\n" not in text


class Unsafe:
    def __reduce__(self):
        return (print, ("this code must not run",))


def write_unsafe(file: Path) -> None:
    torch.save({"layer1.0.conv1.weight": Unsafe()}, file)


def write_other(file: Path) -> None:
    torch.save({"some.weight": torch.zeros(3)}, file)


def write_list(file: Path) -> None:
    torch.save([torch.zeros(3)], file)


def write_partial(file: Path) -> None:
    state = published(False).state_dict()
    del state["layer3.0.bn2.weight"]
    torch.save(state, file)


def write_grouped(file: Path) -> None:
    state = published(False).state_dict()
    state["layer2.0.conv2.weight"] = state["layer2.0.conv2.weight"][:, :2]
    torch.save(state, file)


def write_junk(file: Path) -> None:
    file.write_bytes(b"this is no file of torch")


def write_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"a": 1}, protocol=2))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_unsafe, "holds other objects than tensors, such as print, and is not loaded"),
        (write_junk, "cannot be read"),
        (write_pickle, "cannot be read|holds no state dict"),
        (write_list, "holds no state dict"),
        (write_other, "holds no state dict of a ResNet or a Swin"),
        (write_partial, "lack 1 tensors, such as encoder.stages.2.layers.0.layer.1.normalization.weight"),
        (write_grouped, "cannot be loaded"),
    ],
)
def test_files_that_hold_no_backbone(tmp_path, capsys, write, message):
    write(tmp_path / "it.pth")
    with pytest.raises(UserError, match=message) as raised:
        build_network("deeplabv3plus", str(tmp_path / "it.pth"), TABLE, 0)
    assert "\n" not in str(raised.value)
    assert "this code must not run" not in capsys.readouterr().out


def test_a_configuration_of_our_own_has_random_weights(tmp_path):
    ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4).save_pretrained(tmp_path)
    network = build_network("deeplabv3plus", str(tmp_path), TABLE, 0)
    assert network.config.backbone_from_scratch
    assert network.config.backbone_weights == {}
