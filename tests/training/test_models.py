"""Every architecture on every family of backbones goes through the same tests: a new pair is a subclass of
three lines. The networks are tiny, and built from a folder with a configuration alone.
"""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from transformers import (
    AutoBackbone,
    ConvNextConfig,
    Dinov2Config,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    pipeline,
)

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.training.backbones import SCRATCH, find_backbone
from attn2mask.training.checkpoint import load_checkpoint, make_processor, save_checkpoint
from attn2mask.training.deeplabv3plus import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation, dilate
from attn2mask.training.models import build_network, split_parameters

TABLE = load_table("voc")
CLASSES, IGNORE = len(TABLE.names), TABLE.ignore_index

RESNET = ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 2])
SWIN = SwinConfig(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=3)
CONVNEXT = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])


def images(number: int, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(seed))


def targets(number: int, height: int = 64, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(CLASSES, (number, height, width), generator=generator)
    ids[:, : height // 4] = IGNORE
    return ids


def photograph() -> Image.Image:
    image = Image.new("RGB", (90, 70), (90, 140, 220))
    ImageDraw.Draw(image).ellipse((20, 15, 70, 60), fill=(180, 40, 30))
    return image


def same(one: torch.nn.Module, other: torch.nn.Module) -> list[bool]:
    """Parameter by parameter."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return [torch.equal(first, second) for first, second in pairs]


class NetworkTester:
    """What every network must do. Subclasses name an architecture and a backbone's configuration."""

    architecture: str
    backbone: PreTrainedConfig

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        self.backbone.save_pretrained(tmp_path / "backbone")
        return tmp_path / "backbone"

    @pytest.fixture
    def network(self, folder) -> PreTrainedModel:
        return self.build(folder)

    def build(self, folder: Path, seed: int = 0) -> PreTrainedModel:
        return build_network(self.architecture, str(folder), TABLE, seed)

    @pytest.mark.parametrize("size", [(64, 64), (32, 32), (33, 47), (97, 65)])
    def test_logits_have_the_size_of_the_input(self, network, size):
        with torch.no_grad():
            logits = network.eval()(pixel_values=images(2, *size)).logits
        assert logits.shape == (2, CLASSES, *size)
        assert logits.isfinite().all()

    def test_every_parameter_learns(self, network):
        network.train()(pixel_values=images(2), labels=targets(2)).loss.backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        assert [name for name, gradient in gradients.items() if gradient is None] == []
        assert all(gradient.isfinite().all() for gradient in gradients.values())

    def test_backbone_and_head_share_out_the_parameters(self, network):
        backbone, head = split_parameters(network)
        assert {id(p) for p in backbone}.isdisjoint(id(p) for p in head)
        assert len(backbone) + len(head) == len(list(network.parameters()))
        assert any(p is network.decode_head.classifier.weight for p in head)

    def test_the_loss_is_cross_entropy_without_ignored_pixels(self, network):
        with torch.no_grad():
            output = network.eval()(pixel_values=images(2), labels=targets(2))
        kept = targets(2) != IGNORE
        expected = F.cross_entropy(output.logits.permute(0, 2, 3, 1)[kept], targets(2)[kept])
        torch.testing.assert_close(output.loss, expected)

    def test_a_step_lowers_the_loss(self, network):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        losses = []
        for _ in range(6):
            loss = network.train()(pixel_values=images(2), labels=targets(2)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_bfloat16(self, network):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network.train()(pixel_values=images(2)).logits
        logits.float().sum().backward()
        assert logits.isfinite().all()

    def test_batch_of_one(self, network):
        """The head cannot normalize a single value, and says so rather than train on nothing."""
        assert network.eval()(pixel_values=images(1)).logits.shape == (1, CLASSES, 64, 64)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network.train()(pixel_values=images(1))

    def test_save_and_load(self, network, tmp_path):
        save_checkpoint(tmp_path / "run", network, None, make_processor(64), {})
        loaded = load_checkpoint(tmp_path / "run").network
        assert type(loaded) is type(network)
        with torch.no_grad():
            before, after = network.eval()(images(2, 33, 47)), loaded(images(2, 33, 47))
        torch.testing.assert_close(before.logits, after.logits)

    def test_pipeline(self, network, tmp_path):
        save_checkpoint(tmp_path / "run", network, None, make_processor(64), {})
        found = pipeline("image-segmentation", model=str(tmp_path / "run"))(photograph())
        assert {segment["label"] for segment in found} <= set(TABLE.names)
        assert {segment["mask"].size for segment in found} == {(90, 70)}

    def test_from_scratch_all_is_drawn_from_the_seed(self, folder):
        state = torch.get_rng_state()
        first, again, other = self.build(folder), self.build(folder), self.build(folder, seed=1)
        assert torch.equal(state, torch.get_rng_state())
        assert all(same(first, again))
        assert not all(same(first.backbone, other.backbone))
        assert not all(same(first.decode_head, other.decode_head))
        assert first.config.backbone_from_scratch

    def test_pretrained_weights_are_shared_and_heads_are_not(self, network, tmp_path):
        network.backbone.save_pretrained(tmp_path / "pretrained")
        first, other = (self.build(tmp_path / "pretrained", seed) for seed in (1, 2))
        assert all(same(first.backbone, network.backbone))
        assert all(same(other.backbone, network.backbone))
        assert not all(same(first.decode_head, other.decode_head))
        assert not first.config.backbone_from_scratch

    def test_the_configuration_knows_the_classes(self, network):
        config = network.config
        assert tuple(config.id2label[i] for i in range(config.num_labels)) == TABLE.names
        assert config.label2id["tvmonitor"] == 20
        assert (config.class_table, config.semantic_loss_ignore_index) == ("voc", IGNORE)


class TestDeepLabV3PlusOnResNet(NetworkTester):
    architecture = "deeplabv3plus"
    backbone = RESNET


class TestDeepLabV3PlusOnSwin(NetworkTester):
    architecture = "deeplabv3plus"
    backbone = SWIN


class TestDeepLabV3PlusOnConvNeXt(NetworkTester):
    architecture = "deeplabv3plus"
    backbone = CONVNEXT


class TestUperNetOnResNet(NetworkTester):
    architecture = "upernet"
    backbone = RESNET


class TestUperNetOnSwin(NetworkTester):
    architecture = "upernet"
    backbone = SWIN


class TestUperNetOnConvNeXt(NetworkTester):
    architecture = "upernet"
    backbone = CONVNEXT


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize(
    "kind", [{"layer_type": "basic"}, {}, {"downsample_in_bottleneck": True}], ids=["basic", "v1.5", "v1"]
)
def test_dilation_computes_what_strides_did_on_a_finer_grid(kind, output_stride):
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[2] * 4, out_features=["stage4"], **kind
    )
    strided, dilated = AutoBackbone.from_config(config).eval(), AutoBackbone.from_config(config).eval()
    dilated.load_state_dict(strided.state_dict())
    dilate(dilated, output_stride)
    with torch.no_grad():
        (coarse,), (fine,) = (
            strided(images(1, 96, 160)).feature_maps,
            dilated(images(1, 96, 160)).feature_maps,
        )
    assert fine.shape[-2:] == (96 // output_stride, 160 // output_stride)
    step = 32 // output_stride
    torch.testing.assert_close(fine[..., ::step, ::step], coarse)


def test_a_dilated_network_is_saved_as_one(tmp_path):
    """The stride is part of the configuration, so that loading dilates again."""
    config = DeepLabV3PlusConfig(backbone_config=RESNET.to_dict(), output_stride=8, num_labels=CLASSES)
    network = DeepLabV3PlusForSemanticSegmentation(config).eval()
    network.save_pretrained(tmp_path)
    loaded = DeepLabV3PlusForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.backbone(images(1)).feature_maps[-1].shape[-2:] == (8, 8)
    torch.testing.assert_close(network(images(1)).logits, loaded(images(1)).logits)


def test_padding_keeps_the_pixels_where_they_are():
    """An image's logits do not depend on what padding has to add, but near where it is added."""
    config = DeepLabV3PlusConfig(backbone_config=RESNET.to_dict(), atrous_rates=(1,), num_labels=CLASSES)
    network = DeepLabV3PlusForSemanticSegmentation(config).eval()
    network.decode_head.pyramid.pooling[1][0].weight.data.zero_()  # which sees the whole image
    whole = images(1, 384, 384)
    with torch.no_grad():
        expected, cut = network(whole).logits, network(whole[..., :371, :333]).logits
    torch.testing.assert_close(cut[..., :32, :32], expected[..., :32, :32], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backbone", "output_stride"), [(SWIN, 16), (CONVNEXT, 32), (RESNET, 4)])
def test_output_strides_that_a_backbone_cannot_have(backbone, output_stride):
    config = DeepLabV3PlusConfig(backbone_config=backbone.to_dict(), output_stride=output_stride)
    with pytest.raises(ValueError, match=f"no output stride of {output_stride}"):
        DeepLabV3PlusForSemanticSegmentation(config)


def test_the_pyramid_reaches_as_far_on_every_backbone(tmp_path):
    reaches = set()
    for backbone in (RESNET, SWIN):
        backbone.save_pretrained(tmp_path / backbone.model_type)
        config = build_network("deeplabv3plus", str(tmp_path / backbone.model_type), TABLE, 0).config
        reaches.add(tuple(rate * (config.output_stride or 32) for rate in config.atrous_rates))
    assert reaches == {(96, 192, 288)}


def test_a_pyramid_for_small_crops_stays_within_them(tmp_path):
    RESNET.save_pretrained(tmp_path)
    rates = {
        crop: tuple(build_network("deeplabv3plus", str(tmp_path), TABLE, 0, crop).config.atrous_rates)
        for crop in (64, 96, 512, 768)
    }
    assert rates[512] == rates[768] == (6, 12, 18)
    assert all(1 <= rate <= crop // 16 // 2 for crop in (64, 96) for rate in rates[crop])


def test_convolutions_keep_the_variance():
    """Depthwise ones as well, whose fan-in is 9 whatever their width."""
    config = DeepLabV3PlusConfig(backbone_config=RESNET.to_dict(), decoder_channels=64)
    head = DeepLabV3PlusForSemanticSegmentation(config).decode_head
    depthwise, pointwise = (block[0].weight for block in head.decoder)
    assert depthwise.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.15)
    assert pointwise.std().item() == pytest.approx(math.sqrt(2 / (64 + 48)), rel=0.15)


@pytest.mark.parametrize("name", SCRATCH)
def test_scratch_backbones_are_built(name):
    with torch.device("meta"):
        config = find_backbone(f"scratch:{name}").config
        parameters = sum(p.numel() for p in AutoBackbone.from_config(config).parameters())
    assert parameters == pytest.approx(
        {
            "small": 1.94e6,
            "resnet50": 23.5e6,
            "resnet50d": 23.5e6,
            "swin-tiny": 27.5e6,
            "swin-base": 86.7e6,
            "convnext-tiny": 27.8e6,
        }[name],
        rel=0.01,
    )


def test_a_small_network_for_cpus():
    network = build_network("deeplabv3plus", "scratch:small", TABLE, 0)
    assert sum(p.numel() for p in network.parameters()) < 4e6


def test_names_of_the_pretraining_are_dropped(tmp_path):
    ResNetForImageClassification(
        ResNetConfig(**RESNET.to_dict() | {"id2label": {0: "tench", 1: "goldfish", 2: "x"}})
    ).save_pretrained(tmp_path)
    network = build_network("upernet", str(tmp_path), TABLE, 0)
    assert not network.config.backbone_from_scratch
    assert "tench" not in network.config.to_json_string()


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "bert"}', '{"model_type": "unheard-of"}'])
def test_folders_that_hold_no_backbone(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=str(tmp_path)) as raised:
        build_network("upernet", str(tmp_path), TABLE, 0)
    assert len(str(raised.value).splitlines()) == 1


def test_weights_of_another_backbone(tmp_path):
    AutoBackbone.from_config(CONVNEXT).save_pretrained(tmp_path)
    RESNET.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"weights lack .* tensors, such as"):
        build_network("upernet", str(tmp_path), TABLE, 0)


def test_weights_of_another_width(tmp_path):
    AutoBackbone.from_config(RESNET).save_pretrained(tmp_path)
    ResNetConfig(**RESNET.to_dict() | {"embedding_size": 16}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded"):
        build_network("upernet", str(tmp_path), TABLE, 0)


@pytest.mark.parametrize(
    ("architecture", "backbone", "message"),
    [
        ("segformer", "scratch:small", "no architecture 'segformer': choose deeplabv3plus or upernet"),
        ("upernet", "scratch:huge", "no backbone 'scratch:huge'; scratch: takes small, "),
        ("upernet", "no/such/folder", "cannot be fetched from the Hub"),
    ],
)
def test_what_cannot_be_built(architecture, backbone, message):
    with pytest.raises(UserError, match=message):
        build_network(architecture, backbone, TABLE, 0)


def test_backbones_without_scales_are_refused(tmp_path):
    Dinov2Config(hidden_size=16, num_hidden_layers=6, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="dinov2 does not have four stages"):
        build_network("deeplabv3plus", str(tmp_path), TABLE, 0)


def test_an_empty_folder_is_no_backbone(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        build_network("deeplabv3plus", str(tmp_path), TABLE, 0)
