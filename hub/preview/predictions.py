"""Predictions of a checkpoint for an image of the user, as HTML."""

import numpy as np
from PIL import Image

from attn2mask.builders.images import as_rgb, encode_png, overlay
from attn2mask.builders.table_reader import bare_table
from attn2mask.hub.preview.pieces import legend, tiles
from attn2mask.training.checkpoint import Checkpoint

LONGEST_SIDE = 1024  # pixels; larger images are made smaller


def prediction_page(checkpoint: Checkpoint, image: Image.Image) -> str:
    """The image, and over it the prediction of both networks together, and of each alone if there are two."""
    from attn2mask.training.inference import segment

    image = as_rgb(image)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    pixels = np.asarray(image)
    table = bare_table(checkpoint.table_name, checkpoint.names)
    networks = [network for network in (checkpoint.network, checkpoint.peer) if network is not None]
    ensembles = {"prediction": networks}
    if len(networks) > 1:
        ensembles = {"both networks": networks, "network A": networks[:1], "network B": networks[1:]}
    predictions = {
        name: segment(networks, checkpoint.processor, pixels) for name, networks in ensembles.items()
    }
    images = [(encode_png(pixels), "image")]
    images += [(encode_png(overlay(pixels, ids, table)), name) for name, ids in predictions.items()]
    return legend(next(iter(predictions.values())), table, {}) + tiles(images)


def checkpoint_facts(checkpoint: Checkpoint) -> list[str]:
    """What the head of the page says about a checkpoint."""
    size = sum(weight.numel() for weight in checkpoint.network.parameters())
    return [
        type(checkpoint.network).__name__,
        f"{size / 1e6:.1f} M parameters",
        f"{len(checkpoint.names)} classes",
        "networks A and B" if checkpoint.peer is not None else "one network",
    ]
