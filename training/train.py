"""Trains segmenters on a dataset of pseudo-masks: two networks that co-train, or one alone.

    attn2mask train --dataset data/voc --preset voc-resnet50 --output-dir runs/r50
    attn2mask train --dataset data/voc --preset voc-resnet50 --output-dir runs/r50 --resume   # after a kill
    attn2mask train --dataset data/voc data/real --shares 0.75 0.25 --output-dir runs/both
    accelerate launch training/train.py --dataset data/voc --output-dir runs/demo

The output directory holds network A at its root and network B in `peer/`, as transformers saves them, with
`training_config.json` and `train.yaml`; `best/`, the same at the highest mIoU on `--eval-dataset`, on which
it must therefore not be measured, with this mIoU in `selection.json`;
`predictions/`, images of the evaluations; and the files of a run (see `run.py`). Where images are resized
before prediction, the size is chosen at the end (see `prediction_size.py`).
"""

import sys

if __name__ == "__main__":  # before all other imports, so that Ctrl-C can be handled from here on
    from attn2mask.__main__ import main

    sys.exit(main(["train", *sys.argv[1:]]))

import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import digest, write_file
from attn2mask.builders.images import overlay
from attn2mask.builders.options import identity_of, to_yaml
from attn2mask.builders.row_reader import is_build, rows_in
from attn2mask.builders.seals import seal_of
from attn2mask.builders.shards import BuildDirectory
from attn2mask.training.backbones import backbone_digest
from attn2mask.training.benchmarks import Example, hub_name, open_images
from attn2mask.training.checkpoint import is_exported, make_processor, save_checkpoint
from attn2mask.training.config import BatchPlan, TrainConfig
from attn2mask.training.cotraining import Pair, cotraining_losses
from attn2mask.training.data import Crops, OpenedRows, Source, loader, loading, number_of_rows, open_datasets
from attn2mask.training.inference import LONGEST, SHORTEST
from attn2mask.training.models import build_network, split_parameters
from attn2mask.training.prediction_size import IMAGES, best_size, examples_of_rows, mean_iou_by_size
from attn2mask.training.run import (
    Run,
    end,
    make_accelerator,
    recorded_run,
    saved_step,
    working_in,
    write_identity,
)

logger = logging.getLogger(__name__)

ENDS = 2**16  # bytes at both ends of a file of rows that identify its content
TRACKED_CROPS = 8  # crops of the first batch that trackers get, with their labels


def train(config: TrainConfig) -> None:
    """Train by `config`; the module's text says what the output directory holds afterwards.

    Raises UserError for options, rows and directories that cannot be used, and for a loss that is not finite.
    """
    config, output = config.resolve(), Path(config.output_dir)
    accelerator, batches = make_accelerator(config, config.mixing)
    opened = open_datasets(config, verify=not config.no_verify and accelerator.is_main_process)
    table = opened[0].table
    origins = [rows_record(dataset) for dataset in config.dataset]
    identity = run_identity(config, origins)
    recorded_run(output, identity, config.resume)
    if saved_step(output) == config.max_steps and is_exported(output):
        logger.info("%s is finished: all %d steps are done", output, config.max_steps)
        return
    images = open_images(config.eval_dataset, config.eval_split, table) if config.eval_dataset else None
    check_sizes(config)
    several = len(opened) > 1
    crops = [Crops(config, each.table, each.dataset, each.decode, several) for each in opened]
    size_images = images_for_size(config, opened, crops)
    logger.info("Making the networks")
    pair = make_pair(config, table, batches, accelerator)
    optimizer = make_optimizer(pair, config)
    pair, optimizer = accelerator.prepare(pair, optimizer)
    has_warmup = bool(config.mixing and config.warmup_epochs)
    numbers = [number_of_rows(each.rows) for each in opened] if has_warmup or several else [1]
    warmup = config.warmup_steps(sum(numbers)) if has_warmup else 0
    sources = [
        Source(each.rows, crop, weight)
        for each, crop, weight in zip(opened, crops, config.shares or numbers, strict=True)
    ]
    rows = mixture_record(config, origins, numbers) if several else origins[0]
    run = Training(config, accelerator, pair, optimizer, table, rows, warmup)
    with working_in(output, accelerator):
        recorded_run(output, identity, config.resume)  # another run may have started or gone on
        accelerator.wait_for_everyone()  # before the first process writes, all have checked the directory
        if accelerator.is_main_process:
            write_identity(output, identity)
        accelerator.wait_for_everyone()
        run.begin()
        batch_loader = loader(sources, run.share(), batches.per_process, config.workers)
        logger.info("%s, %s precision: %s", accelerator.device, accelerator.mixed_precision, batches)
        with run.progress("training"), loading(batch_loader) as loaded:
            run.train(loaded, batches, images, size_images)
        run.finish()
        del loaded, batch_loader, run, pair, optimizer
        end(accelerator)


class Training(Run):
    """A run that trains the two networks of `pair` (or the one that it has)."""

    config: TrainConfig

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        pair: nn.Module,
        optimizer: torch.optim.Optimizer,
        table: ClassTable,
        rows: dict[str, Any] | list[dict[str, Any]],
        warmup: int,
    ) -> None:
        """`pair` and `optimizer` are prepared; `rows` is what `rows_record` returns, or `mixture_record` for
        several datasets; `warmup` is in steps.
        """
        # Without accelerate's wrappers and torch.compile's, so that weights always have the same names.
        self.pair = accelerator.unwrap_model(pair, keep_torch_compile=False)
        self.networks = self.pair.networks
        super().__init__(config, accelerator, self.pair.state_dict, optimizer)
        self.wrapped, self.table, self.rows, self.warmup = pair, table, rows, warmup
        self.kept = {"best": -1.0, "metrics": {}, "prediction_size": None}

    @property
    def processor(self) -> Any:
        """The image processor: with the first size for prediction, until one is chosen."""
        first, *_ = [*self.config.predict_sizes, self.config.resize or None]
        chosen = self.kept["prediction_size"]
        return make_processor(chosen["size"] if chosen else first)

    def train(
        self,
        loaded: Iterator[dict[str, Any]],
        batches: BatchPlan,
        images: Sequence[Example] | None,
        size_images: Sequence[Example],
    ) -> None:
        """Train to the last step, measure on `images` meanwhile, and choose the size of prediction on
        `size_images`. Raises KeyboardInterrupt and SystemExit as `stop`.
        """
        config, table, accelerator = self.config, self.table, self.accelerator
        eval_every = config.eval_every or max(1, config.max_steps // 10)
        background = 0 if table.background is not None else None
        self.pair.train()
        while not self.finished:
            entropy = [config.seed, self.step, accelerator.process_index]
            set_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
            self.set_rate()
            online = self.pair.online if self.step >= self.warmup else None
            total, names = torch.zeros(len(self.networks), device=accelerator.device), []
            for part in range(batches.accumulation):
                batch = next(loaded)
                if self.step == part == 0:
                    self.log_crops(batch)
                names += batch.pop("sample_id")
                batch = {name: part.to(accelerator.device, non_blocking=True) for name, part in batch.items()}
                with accelerator.accumulate(self.wrapped):
                    # Accelerate gave the pair an autocast context, which each forward pass enters anew.
                    losses = cotraining_losses(
                        self.wrapped, online, batch, config, table.ignore_index, background
                    )
                    accelerator.backward(sum(losses))
                    if accelerator.sync_gradients and config.clip:
                        accelerator.clip_grad_norm_(self.wrapped.parameters(), config.clip)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                total += torch.stack(losses).detach() / batches.accumulation
            self.count(dict(zip(("loss_a", "loss_b"), total, strict=False)), names)
            if self.finished and len(config.predict_sizes) > 1:
                self.choose_size(size_images)
            if images is not None and (self.step % eval_every == 0 or self.finished):
                self.evaluate(images)
            stop = self.must_stop()
            if self.step % config.checkpoint_every == 0 or self.finished or stop:
                self.save()  # after the evaluation, whose result it holds
            if stop:
                self.stop()

    def choose_size(self, images: Sequence[Example]) -> None:
        """Choose the size at which the networks predict, by network A alone, which pipelines load."""
        choice = None
        if self.accelerator.is_main_process:
            tried = mean_iou_by_size(
                self.networks[0], images, self.table, self.config.predict_sizes, self.accelerator.device
            )
            choice = {
                "size": best_size(tried),
                "tried": {str(size): score for size, score in tried.items()},
                "dataset": self.config.size_dataset,
                "images": len(images),
            }
            logger.info("The networks predict at %d pixels, the best of %s", choice["size"], [*tried])
        self.kept["prediction_size"] = gather_object([choice])[0]

    def log_crops(self, batch: dict[str, Any]) -> None:
        """Give trackers some crops of a batch, and their labels, with white pixels where none is trusted."""
        count, ignore = TRACKED_CROPS, self.table.ignore_index
        crops = [*batch["pixels"][:count].permute(0, 2, 3, 1).numpy()]
        labels = batch["label"].where(batch["trusted"], ignore)[:count].numpy()
        drawn = [overlay(crop, ids, self.table) for crop, ids in zip(crops, labels, strict=True)]
        self.log_images({"crops": crops, "labels": drawn})

    def evaluate(self, images: Sequence[Example]) -> None:
        """Measure the networks, draw some predictions, and export the best networks so far to `best/`."""
        from attn2mask.training.charts import prediction_sheet, prediction_strips
        from attn2mask.training.evaluation import best_and_worst, evaluate, report

        accelerator = self.accelerator
        evaluation = evaluate(
            self.networks,
            self.processor,
            images,
            self.table,
            device=accelerator.device,
            progress=accelerator.is_main_process,
            indices=range(accelerator.process_index, len(images), accelerator.num_processes),
        )
        for metric in evaluation.metrics.values():
            counts = torch.from_numpy(metric.matrix).to(accelerator.device)
            metric.matrix = accelerator.reduce(counts, "sum").cpu().numpy()
            metric.num_images = len(images)
        for part in gather_object([evaluation.image_iou]):
            evaluation.image_iou |= part
        metrics = report(evaluation) | {"step": self.step}
        self.log({f"eval_{name}": metrics[name] for name in ("mean_iou", "pixel_accuracy")})
        if accelerator.is_main_process:
            self.kept["metrics"] = metrics
            folder = self.output / "predictions"
            folder.mkdir(exist_ok=True)
            drawn = best_and_worst(evaluation, self.networks, self.processor, images)
            prediction_sheet(drawn, self.table, folder / f"step-{self.step:06d}.png")
            strips = prediction_strips(drawn, self.table)
            self.log_images({f"predictions/{number}": [strip] for number, strip in enumerate(strips, 1)})
            logger.info("step %d: mIoU %.4f on %d images", self.step, metrics["mean_iou"], len(images))
            if metrics["mean_iou"] > self.kept["best"]:
                self.kept["best"] = metrics["mean_iou"]
                choice = {"dataset": self.config.eval_dataset, "split": self.config.eval_split}
                self.export(self.output / "best", choice)
                selection = (json.dumps(metrics, indent=2) + "\n").encode()
                write_file(self.output / "best" / "selection.json", selection)
        accelerator.wait_for_everyone()

    def export(self, folder: Path, chosen_on: dict[str, str | None] | None = None) -> None:
        """Write the networks in transformers' format, with the record that cards are made from. `chosen_on`
        names the images on which this step was chosen among all; None for the last step.
        """
        config = self.config
        on_hub = {name: hub_name(getattr(config, name)) for name in ("eval_dataset", "backbone")}
        on_hub["dataset"] = hub_name(config.dataset[0]) if len(config.dataset) == 1 else None
        record = self.record(
            "train",
            on_hub=on_hub,
            rows=self.rows,
            table=self.table.name,
            warmup_steps=self.warmup,
            prediction_size=self.kept["prediction_size"],
            chosen_on=chosen_on,
        )
        options = to_yaml(config, "attn2mask train --config train.yaml")
        network, *peer = self.networks
        save_checkpoint(folder, network, peer[0] if peer else None, self.processor, record, options)

    def finish(self) -> None:
        """Export the last networks, and print what was made and how to use it."""
        if not self.accelerator.is_main_process:
            return
        made = [f"network A in {self.output}"]
        made += [f"network B in {self.output / 'peer'}"] if self.config.co_training else []
        if metrics := self.kept["metrics"]:
            write_file(self.output / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
            made.append(f"the best networks on {self.config.eval_dataset} in {self.output / 'best'}")
        self.export(self.output)  # last, because it marks the run as finished
        print(f"made {', '.join(made)} in {self.seconds:.0f} s")
        checkpoint = shlex.quote(str(self.output))
        print(f"next: attn2mask evaluate --checkpoint {checkpoint} --dataset VOCdevkit/VOC2012 --split val")


def check_sizes(config: TrainConfig) -> None:
    """Raise UserError for sizes of prediction that networks cannot have, and for images that choose none."""
    sizes = config.predict_sizes
    if sizes and not SHORTEST <= min(sizes) <= max(sizes) <= LONGEST:
        raise UserError(
            f"--predict-scales {config.predict_scales}: they give {', '.join(map(str, sizes))} pixels, but"
            f" prediction needs {SHORTEST} to {LONGEST}"
        )
    if config.size_dataset and len(sizes) < 2:
        raise UserError(
            "--size-dataset: there is nothing to choose; leave it out, or give --resize and several"
            " --predict-scales"
        )


def images_for_size(
    config: TrainConfig, opened: Sequence[OpenedRows], crops: Sequence[Crops]
) -> list[Example]:
    """The images on which the size of prediction is chosen: those of --size-dataset, or else the first rows
    of the training, as many of each dataset; none where there is nothing to choose. Raises UserError for
    images that cannot be read.
    """
    if len(config.predict_sizes) < 2:
        return []
    if config.size_dataset is None:
        each = IMAGES // len(opened)
        parts = zip(opened, crops, strict=True)
        return [example for rows, crop in parts for example in examples_of_rows(rows.rows, crop, each)]
    images = open_images(config.size_dataset, None, opened[0].table)
    return [images[index] for index in range(min(len(images), IMAGES))]


def rows_record(dataset: str) -> dict[str, Any]:
    """What identifies the rows, for the card and for `--resume`: `num_images` (those that are there),
    `identity` and `license` of a build on this machine; the `revision` of a dataset of the Hub, or None if
    the Hub cannot be reached; nothing for other folders.
    """
    if is_build(dataset):
        directory = BuildDirectory(Path(dataset))
        record = directory.record()
        states = directory.states(directory.shards, verify=False)
        there = [shard for shard, state in states if state == "made"]
        return {"num_images": rows_in(there)} | {name: record.get(name) for name in ("identity", "license")}
    if hub_name(dataset) is None:
        return {}
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return {"revision": HfApi().dataset_info(dataset).sha}
    except (OSError, HTTPError):  # offline, with rows that were loaded before
        return {"revision": None}


def mixture_record(
    config: TrainConfig, origins: Sequence[dict[str, Any]], numbers: Sequence[int]
) -> list[dict[str, Any]]:
    """What the record of a training holds of several datasets with these numbers of rows: of each its name,
    its name on the Hub, its share of a batch, its number of rows, and what `rows_record` returns (`origins`).
    """
    weights = config.shares or numbers
    return [
        {
            "dataset": dataset,
            "on_hub": hub_name(dataset),
            "share": weight / sum(weights),
            "num_rows": number,
            **origin,
        }
        for dataset, weight, number, origin in zip(config.dataset, weights, numbers, origins, strict=True)
    ]


def run_identity(config: TrainConfig, origins: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What must not change when a run resumes: options, the content of the rows and the weights of the
    backbone, wherever they lie. `origins` are what `rows_record` returns for each dataset; of several, the
    rows and their revisions are lists.
    """
    digests = [rows_digest(dataset) for dataset in config.dataset]
    revisions = [origin.get("revision") for origin in origins]
    one = len(digests) == 1
    return identity_of(config) | {
        "rows": digests[0] if one else digests,
        "revision": revisions[0] if one else revisions,
        "backbone": backbone_digest(config.backbone),
    }


def rows_digest(dataset: str) -> str:
    """What identifies the content of rows: for a build, SHA-256 over its identity and the checksums of its
    whole shards; for other folders, SHA-256 over names, sizes, and first and last `ENDS` bytes of the files,
    which is quick for large folders; the name of a dataset of the Hub.
    """
    if is_build(dataset):
        directory = BuildDirectory(Path(dataset))
        manifests = filter(None, map(directory.manifest, directory.shards))
        shards = [manifest["sha256"] for manifest in manifests]
        return f"sha256:{seal_of({'identity': directory.record()['identity'], 'shards': shards})}"
    return digest(Path(dataset), ends=ENDS) if Path(dataset).exists() else dataset


def make_pair(config: TrainConfig, table: ClassTable, batches: BatchPlan, accelerator: Accelerator) -> Pair:
    """Two networks of one architecture with different initial heads, or one network."""
    if batches.per_process == 1:
        raise UserError(
            "batch normalization cannot train on one image at a time: raise --batch-size or --micro-batch"
        )
    networks = [
        build_network(
            config.architecture,
            config.backbone,
            table,
            2 * config.seed + k,
            config.crop_size,
            config.multi_grid,
            config.trust_remote_code,
        )
        for k in range(2 if config.co_training else 1)
    ]
    pair = Pair(networks[0], networks[1] if config.co_training else None)
    # Faster convolutions, also on CPUs. torch has no type for this argument.
    pair.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        pair = nn.SyncBatchNorm.convert_sync_batchnorm(pair)
    return pair


def make_optimizer(pair: Pair, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW. The learning rate of the heads is `head_multiplier` times that of the backbones."""
    parts = zip(*map(split_parameters, pair.networks), strict=True)  # the backbones, the heads
    rates = (config.learning_rate, config.learning_rate * config.head_multiplier)
    groups = [
        {"params": list(chain(*part)), "lr": rate, "initial_lr": rate}
        for part, rate in zip(parts, rates, strict=True)
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)
