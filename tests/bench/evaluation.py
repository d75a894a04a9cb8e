"""The metric, compared with the forward pass, on images of VOC's size."""

from collections.abc import Iterator

import numpy as np
import torch
from bench.timing import Row, measure

from attn2mask.builders.table_reader import load_table
from attn2mask.training.config import TrainConfig
from attn2mask.training.miou import MeanIoU
from attn2mask.training.models import build_network

SIZE = (375, 500)


def evaluation(quick: bool) -> Iterator[Row]:
    """The smallest network is the fastest. For any other network the share of the metric is less."""
    demo, table = TrainConfig().resolve(), load_table("voc")
    network = build_network(demo.architecture, demo.backbone, table, seed=0).eval()
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((1, 3, *SIZE), np.float32))
    mask, found = (rng.integers(0, 21, SIZE, np.uint8) for _ in range(2))
    mask[rng.random(SIZE) < 0.05] = 255
    metric = MeanIoU(num_labels=21)

    @torch.no_grad()
    def forward() -> None:
        network(pixel_values=image)

    def count() -> None:
        metric.add(prediction=found, reference=mask)

    forward(), count()
    yield measure(
        f"the metric / one network's forward pass, {SIZE[1]} x {SIZE[0]}",
        count,
        forward,
        3 if quick else 20,
        goal="<= 0.03",
    )
