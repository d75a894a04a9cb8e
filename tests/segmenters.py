"""Stand-ins for networks and image processors, and examples to evaluate them on."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from attn2mask.training.benchmarks import Example


class Segmenter(nn.Module):
    """Logits from each pixel's color alone, at a `stride`-th of the size; `calls`: the sizes seen."""

    def __init__(self, seed: int, classes: int = 21, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.stride = nn.Conv2d(3, classes, 1), stride
        self.frozen = nn.BatchNorm2d(3).eval()
        self.config = SimpleNamespace(semantic_loss_ignore_index=255)
        self.calls: list[tuple[int, int]] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.calls.append(tuple(pixel_values.shape[-2:]))
        assert not self.training
        return SimpleNamespace(logits=self.layer(F.avg_pool2d(pixel_values, self.stride)))


def processor(size: tuple[int, int] | None = None):
    """Stands in for an image processor of transformers; `size` (h, w) resizes."""

    def process(images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        assert return_tensors == "pt"
        resized = images.resize(size[::-1]) if size else images
        return {"pixel_values": torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 127.5 - 1}

    return process


def examples(count: int = 3, classes: int = 21) -> list[Example]:
    rng = np.random.default_rng(5)
    made = []
    for i in range(count):
        height, width = rng.integers(33, 60, 2)
        blocks = rng.integers(0, classes + 1, (8, 8))
        blocks[blocks == classes] = 255
        target = blocks.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.int32)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        made.append(Example(f"image {i}", image, target))
    return made
