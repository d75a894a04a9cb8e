"""The referee: a small reference segmenter trained on drawn scenes with exact masks, in VOC's classes.

Painted images have no exact masks, so their masks are compared with the referee's predictions. It was trained
on no painted image. A fifth of its training images went through the painter's autoencoder, whose blur painted
images have too. Every report that uses it gives its own accuracy on drawn scenes beside.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

EMBEDDED = Path(__file__).parent.parent / "builders" / "embedded" / "referee"
WEIGHTS = "referee.safetensors"
CLASSES = 21


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Images (N, H, W, 3) uint8 as (N, 3, H, W) float32 in [-1, 1], for the referee and for autoencoders."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut; `stride` 2 halves height and width."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(8, outside), nn.GroupNorm(8, outside)])
        self.shortcut = (
            nn.Conv2d(inside, outside, 1, stride) if stride > 1 or inside != outside else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.norms[0](self.first(x)))
        return F.silu(self.shortcut(x) + self.norms[1](self.second(y)))


class Referee(nn.Module):
    """A U-Net: (N, 3, H, W) in [-1, 1], H and W multiples of 32, to logits (N, 21, H, W) of VOC's ids."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96, 128)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2)
        self.down = nn.ModuleList([Block(a, b, 2) for a, b in itertools.pairwise(widths)])
        self.middle = Block(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            [Block(a + b, b) for a, b in zip(widths[::-1][:-1], widths[::-1][1:], strict=True)]
        )
        self.head = nn.Conv2d(widths[0], CLASSES * 4, 3, 1, 1)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The features of each level, from half of height and width down to (N, 128, H / 32, W / 32)."""
        levels = [F.silu(self.stem(x))]
        for block in self.down:
            levels.append(block(levels[-1]))
        levels[-1] = self.middle(levels[-1])
        return levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = self.encode(x)
        y = levels.pop()
        for block in self.up:
            y = block(torch.cat([F.interpolate(y, scale_factor=2.0, mode="nearest"), levels.pop()], 1))
        return F.pixel_shuffle(self.head(y), 2)

    @torch.no_grad()
    def segment(self, images: np.ndarray, batch_size: int = 16) -> np.ndarray:
        """Images (N, H, W, 3) uint8 to masks (N, H, W) uint8 of VOC's ids."""
        starts = range(0, len(images), batch_size)
        logits = (self(to_tensor(images[start : start + batch_size])) for start in starts)
        return np.concatenate([part.argmax(1).to(torch.uint8).numpy() for part in logits])


def load_referee(folder: Path = EMBEDDED) -> Referee:
    """The referee with the weights of `folder`, in float32 and in evaluation mode."""
    referee = Referee()
    referee.load_state_dict({name: w.float() for name, w in load_file(folder / WEIGHTS).items()})
    return referee.eval()
