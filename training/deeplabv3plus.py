"""DeepLabv3+ on the hierarchical backbones of transformers, such as ResNet, Swin and ConvNeXt.

    AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018,
https://arxiv.org/abs/1802.02611. Every saved model comes with a copy of this file, which therefore imports
only torch and transformers. Importing it registers the architecture with transformers' Auto classes.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

# Images are padded to multiples of it, so that the feature maps of all strides align with the pixels.
COARSEST_STRIDE = 32


class DeepLabV3PlusConfig(PreTrainedConfig):
    """The configuration of a `DeepLabV3PlusForSemanticSegmentation`.

    Args:
        backbone_config: the backbone, which has the stages `stage1` (stride 4) and `stage4`; by default
            ResNet-50.
        output_stride: the stride of the last feature map. A ResNet is dilated to 8 or 16; None keeps the
            backbone's own, which is the only choice for other families.
        multi_grid: factors of the dilations in the blocks of a ResNet's last stage, one for each block; none
            by default. DeepLabv3 has 1, 2, 4.
        resnet_d: whether a ResNet has the stem and the shortcuts of ResNet-D.
        atrous_rates: dilations of the pyramid, in points of the last feature map. The paper's 6, 12, 18 are
            for stride 16; they are doubled for 8 and halved for 32.
        decoder_channels: width of the pyramid and of the decoder.
        low_level_channels: width to which the decoder narrows the features of stride 4.
        dropout: fraction of the pyramid's output that is dropped in training.
        semantic_loss_ignore_index: the label that the loss ignores.
    """

    model_type = "deeplabv3plus"
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    output_stride: int | None = 16
    multi_grid: Sequence[int] = ()
    resnet_d: bool = False
    atrous_rates: Sequence[int] = (6, 12, 18)
    decoder_channels: int = 256
    low_level_channels: int = 48
    dropout: float = 0.1
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs) -> None:
        if not isinstance(self.backbone_config, PreTrainedConfig):
            described = {"model_type": "resnet"} | (self.backbone_config or {})
            self.backbone_config = AutoConfig.for_model(**described)
        self.backbone_config.out_features = ["stage1", "stage4"]
        super().__post_init__(**kwargs)


class ConvNormReLU(nn.Sequential):
    """A convolution that divides height and width by its stride, batch normalization and ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dilation: int = 1,
        groups: int = 1,
        stride: int = 1,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                bias=False,
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class SeparableConv(nn.Sequential):
    """A depthwise 3 x 3 convolution, then a 1 x 1 convolution over the channels."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__(
            ConvNormReLU(in_channels, in_channels, 3, dilation, groups=in_channels),
            ConvNormReLU(in_channels, out_channels),
        )


class AtrousSpatialPyramidPooling(nn.Module):
    """Context at several distances: a point, atrous convolutions, the whole image."""

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNormReLU(in_channels, channels),
                *(SeparableConv(in_channels, channels, rate) for rate in rates),
            ]
        )
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormReLU(in_channels, channels))
        self.projection = nn.Sequential(
            ConvNormReLU(channels * (len(rates) + 2), channels), nn.Dropout(dropout)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        maps = [branch(features) for branch in self.branches]
        maps.append(self.pooling(features).expand_as(maps[0]))
        return self.projection(torch.cat(maps, dim=1))


class DeepLabV3PlusHead(nn.Module):
    """The pyramid on the last feature map, and the decoder that combines it with the features of stride 4."""

    def __init__(self, config: DeepLabV3PlusConfig, low_level: int, high_level: int) -> None:
        super().__init__()
        channels = config.decoder_channels
        self.pyramid = AtrousSpatialPyramidPooling(high_level, channels, config.atrous_rates, config.dropout)
        self.low_level = ConvNormReLU(low_level, config.low_level_channels)
        self.decoder = SeparableConv(channels + config.low_level_channels, channels)
        self.classifier = nn.Conv2d(channels, config.num_labels, 1)

    def forward(self, low_level: torch.Tensor, high_level: torch.Tensor) -> torch.Tensor:
        """Feature maps (N, C1, H/4, W/4) and (N, C4, H/s, W/s) -> logits (N, classes, H/4, W/4)."""
        context = self.pyramid(high_level)
        context = F.interpolate(context, size=low_level.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(self.decoder(torch.cat([context, self.low_level(low_level)], dim=1)))


class DeepLabV3PlusForSemanticSegmentation(PreTrainedModel):
    """`model(pixel_values=...)` gives logits at the input's size.

    Training needs batches of two images or more, because the features of whole images are normalized. Raises
    ValueError for an output stride, a `multi_grid` or a `resnet_d` that the backbone cannot have.
    """

    config_class = DeepLabV3PlusConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: DeepLabV3PlusConfig) -> None:
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config, trust_remote_code=False)
        family = self.backbone.config.model_type
        if config.resnet_d:
            if family != "resnet":
                raise ValueError(f"{family} cannot have the stem of ResNet-D: only ResNets can")
            make_resnet_d(self.backbone)
        if config.output_stride is not None:
            if family != "resnet" or config.output_stride not in (8, 16, 32):
                raise ValueError(
                    f"no output stride of {config.output_stride} on {family}: ResNets can have 8, 16 or 32,"
                    " other backbones only their own (None)"
                )
            dilate(self.backbone, config.output_stride, config.multi_grid)
        self.decode_head = DeepLabV3PlusHead(config, *self.backbone.channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            # By fan-in, which is also right for depthwise convolutions.
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values: (N, 3, H, W), normalized as the image processor does; any H and W.
            labels: class ids (N, H, W), int64, with `semantic_loss_ignore_index` where there is no label.

        Returns: `logits` (N, classes, H, W), and with labels `loss`, their mean cross-entropy.
        """
        height, width = pixel_values.shape[-2:]
        padding = (0, -width % COARSEST_STRIDE, 0, -height % COARSEST_STRIDE)
        padded = F.pad(pixel_values, padding, mode="replicate")
        logits = self.decode_head(*self.backbone(padded).feature_maps)
        logits = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        logits = logits[..., :height, :width]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


class PooledConv2d(nn.Conv2d):
    """A 1 x 1 convolution of a shortcut of ResNet-D. If it has a stride, it reads means of 2 x 2 points."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.stride != (1, 1):
            features = F.avg_pool2d(features, self.stride)
        return F.conv2d(features, self.weight)


def make_resnet_d(resnet: Any) -> None:
    """Give a `ResNetBackbone` the stem (three 3 x 3 convolutions) and the shortcuts of ResNet-D, in place.

    He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019.
    """
    config, narrow = resnet.config, resnet.config.embedding_size // 2
    resnet.embedder.embedder = nn.Sequential(
        ConvNormReLU(config.num_channels, narrow, 3, stride=2),
        ConvNormReLU(narrow, narrow, 3),
        ConvNormReLU(narrow, config.embedding_size, 3),
    )
    for block in (block for stage in resnet.encoder.stages for block in stage.layers):
        if not isinstance(block.shortcut, nn.Identity):
            plain = block.shortcut.convolution
            block.shortcut.convolution = PooledConv2d(
                plain.in_channels, plain.out_channels, 1, plain.stride, bias=False
            )


def dilate(resnet: Any, output_stride: int, multi_grid: Sequence[int] = ()) -> None:
    """Replace the strides of a `ResNetBackbone` beyond `output_stride` by dilation, in place.

    The weights do not change. Without `multi_grid` and ResNet-D, the finer feature map contains the values of
    the old one at the old places. (A strided convolution itself reads features of the finer grid, so it has
    the dilation before it.) `multi_grid` multiplies the dilations in the blocks of the last stage, as Chen et
    al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017), describe it.
    """
    stride, dilation = 4, 1  # after the stem
    for stage in resnet.encoder.stages:
        convolutions = [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
        strided = [convolution for convolution in convolutions if convolution.stride == (2, 2)]
        before = dilation
        if strided and stride == output_stride:
            dilation *= 2
            for convolution in strided:
                convolution.stride = (1, 1)
        elif strided:
            stride *= 2
        for convolution in convolutions:
            if convolution.kernel_size == (3, 3):
                rate = before if convolution in strided else dilation
                convolution.dilation = convolution.padding = (rate, rate)
    if not multi_grid:
        return
    if len(multi_grid) != len(stage.layers):
        raise ValueError(
            f"a multi-grid of {len(multi_grid)} factors on a last stage of {len(stage.layers)} blocks"
        )
    for factor, block in zip(multi_grid, stage.layers, strict=True):
        for convolution in block.modules():
            if isinstance(convolution, nn.Conv2d) and convolution.kernel_size == (3, 3):
                convolution.dilation = convolution.padding = (factor * dilation, factor * dilation)


DeepLabV3PlusConfig.register_for_auto_class()
DeepLabV3PlusForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")

AutoConfig.register(DeepLabV3PlusConfig.model_type, DeepLabV3PlusConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(
    DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation, exist_ok=True
)
# The models that `pipeline` knows by name; for others it prints a warning.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(
    DeepLabV3PlusConfig.model_type, DeepLabV3PlusForSemanticSegmentation.__name__
)
