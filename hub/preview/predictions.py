"""Predictions of a checkpoint for an image of the user, as HTML."""

from pathlib import Path

from attn2mask.builders.images import encode_png, overlay, read_image
from attn2mask.builders.table_reader import bare_table
from attn2mask.hub.preview.pieces import legend, tiles
from attn2mask.training.checkpoint import Checkpoint

LONGEST_SIDE = 1024  # pixels; larger images are made smaller


def prediction_page(checkpoint: Checkpoint, file: Path) -> str:
    """An image, and over it the prediction of both networks together, and of each alone if there are two."""
    from attn2mask.training.inference import segment

    pixels = read_image(file, file.name, _reduced_size)
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


def _reduced_size(width: int, height: int) -> tuple[int, int]:
    scale = min(LONGEST_SIDE / max(width, height), 1)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def checkpoint_facts(checkpoint: Checkpoint) -> list[str]:
    """What the head of the page says about a checkpoint."""
    size = sum(weight.numel() for weight in checkpoint.network.parameters())
    return [
        type(checkpoint.network).__name__,
        f"{size / 1e6:.1f} M parameters",
        f"{len(checkpoint.names)} classes",
        "networks A and B" if checkpoint.peer is not None else "one network",
    ]
