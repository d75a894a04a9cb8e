"""What `attn2mask evaluate` measures: a checkpoint, or a zero-shot method with its weights."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import bare_table, load_table
from attn2mask.training.benchmarks import difference, named_classes, recorded_table
from attn2mask.training.checkpoint import Checkpoint, load_checkpoint
from attn2mask.training.evaluate_config import EvaluateConfig
from attn2mask.training.inference import LARGEST, OVERLAP, PLAIN, Augmentation, Decide
from attn2mask.training.zeroshot.protocol import Protocol, common, original, read_words
from attn2mask.training.zeroshot.segmenter import load_segmenter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """Networks with all that their predictions depend on.

    Attributes:
        networks: one or two, whose logits are averaged.
        processor: makes pixels of images, as an image processor of transformers does.
        table: the class table of the images.
        decide: makes ids of logits.
        scores_background: whether the pixels of the background count.
        reduce_labels: whether masks that do not name their classes count them from 1.
        plain: how images are predicted without test-time augmentation; None if `augmentation` has none.
        record: what metrics.json says of it, beside the options.
        digests: what distinguishes the weights from others.
    """

    networks: Sequence[nn.Module]
    processor: Any
    table: ClassTable
    augmentation: Augmentation
    record: dict[str, Any]
    digests: Any
    decide: Decide = LARGEST
    scores_background: bool = True
    reduce_labels: bool = False
    plain: Augmentation | None = None


def measured_checkpoint(config: EvaluateConfig) -> Measured:
    """The networks of a checkpoint. Raises UserError if it cannot be loaded, if it has other classes than the
    images, and if it was chosen on these images.
    """
    logger.info("Loading the checkpoint %s", config.checkpoint)
    checkpoint = load_checkpoint(config.checkpoint, config.trust_remote_code, not config.no_verify)
    check_choices(config, checkpoint.record)
    networks = [network for network in (checkpoint.network, checkpoint.peer) if network is not None]
    overlap = OVERLAP if config.overlap is None else config.overlap
    augmentation = Augmentation(config.factors, config.flip, config.window, config.crf is not None, overlap)
    return Measured(
        networks,
        checkpoint.processor,
        table_of_checkpoint(config, checkpoint),
        augmentation,
        {"checkpoint_chosen_on": checkpoint.record.get("chosen_on"), "method": None},
        [digest_of(network) for network in networks],
        reduce_labels=bool(getattr(checkpoint.processor, "do_reduce_labels", False)),
        plain=None if augmentation.is_direct else PLAIN,
    )


def measured_method(config: EvaluateConfig) -> Measured:
    """A zero-shot method with its weights. Raises UserError for weights that do not fit, and for options that
    the method or its protocol does not have.
    """
    table = table_of_images(config)
    protocol = protocol_of(config, table)
    logger.info("Loading %s", f"{config.method} from {config.weights}" if config.weights else config.method)
    segmenter = load_segmenter(config.method, config.weights, protocol, table)
    method = {
        "name": config.method,
        "protocol": protocol.facts(),
        "normalization": protocol.normalization or segmenter.preprocessor.normalization,
        **segmenter.record,
    }
    plain = Augmentation(window=protocol.window, overlap=protocol.overlap, via_pixels=True)
    is_plain = config.factors == (1.0,) and not config.flip
    return Measured(
        [segmenter.network.eval()],
        segmenter.preprocessor,
        table,
        replace(plain, scales=config.factors, flip=config.flip, crf=config.crf is not None),
        {"checkpoint_chosen_on": None, "method": method},
        method,
        segmenter.decision,
        scores_background=protocol.background != "none",
        plain=None if is_plain else plain,
    )


def protocol_of(config: EvaluateConfig, table: ClassTable) -> Protocol:
    """The protocol that the options name. Raises UserError for options that it does not have."""
    words = None if config.words is None else read_words(config.words)
    if config.protocol == "common":
        return common(
            table,
            config.background,
            config.size,
            config.threshold,
            words,
            config.window,
            config.overlap,
        )
    protocol = original(config.method, table)
    for name in ("size", "threshold", "words", "window", "overlap"):
        if getattr(config, name) is not None:
            raise UserError(
                f"--{name} changes the protocol of the publication: leave it out, or take --protocol common"
            )
    if config.background not in (None, protocol.background):
        raise UserError(
            f"--background {config.background}: the protocol of {config.method}'s publication has the rule"
            f" {protocol.background}; leave it out, or take --protocol common"
        )
    return protocol


def check_choices(config: EvaluateConfig, record: dict[str, Any]) -> None:
    """Raises UserError if the images are those on which the checkpoint or the options were chosen."""
    chosen = record.get("chosen_on") or {}
    same_split = config.split is None or chosen.get("split") in (None, config.split)
    if chosen and same_split and same_place(config.dataset, chosen["dataset"]):
        raise UserError(
            f"checkpoint {config.checkpoint} was chosen on {config.dataset}: measure it on other images, or"
            " measure the last networks of the training, which are in the folder above"
        )
    size = record.get("prediction_size") or {}
    if size.get("dataset") and same_place(config.dataset, size["dataset"]):
        raise UserError(
            f"the size at which checkpoint {config.checkpoint} predicts was chosen on {config.dataset}:"
            " measure it on other images"
        )
    if config.chosen_on and same_place(config.dataset, config.chosen_on):
        raise UserError(
            f"--chosen-on {config.chosen_on}: scales, mirroring and windows must be chosen on other images"
            " than those of --dataset"
        )


def same_place(one: str, other: str) -> bool:
    """Whether two names of datasets are the same folder, or the same dataset of the Hub."""
    return one == other or Path(one).resolve() == Path(other).resolve()


def table_of_checkpoint(config: EvaluateConfig, checkpoint: Checkpoint) -> ClassTable:
    """The class table of the images. Raises UserError if the checkpoint has other classes."""
    if config.table is not None:
        table = load_table(config.table)
    elif (recorded := recorded_table(config.dataset)) is not None:
        table = recorded
    else:
        ignore = getattr(checkpoint.network.config, "semantic_loss_ignore_index", None)
        table = bare_table(checkpoint.table_name or "the checkpoint's table", checkpoint.names, ignore)
    if checkpoint.names != table.names:
        raise UserError(
            f"checkpoint {config.checkpoint} has other classes than {table.name}: "
            f"{difference(checkpoint.names, table.names)}"
        )
    return table


def table_of_images(config: EvaluateConfig) -> ClassTable:
    """The class table of the images. Raises UserError if they do not name their classes."""
    if config.table is not None:
        return load_table(config.table)
    table = recorded_table(config.dataset) or named_classes(
        config.dataset, config.split, config.allow_incomplete
    )
    if table is None:
        raise UserError(f"{config.dataset} does not name its classes: give their class table, --table TABLE")
    return table


def digest_of(network: nn.Module) -> str:
    """SHA-256 over the weights of a network."""
    total = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
