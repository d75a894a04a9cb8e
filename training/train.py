"""Trains segmenters on a dataset of pseudo-masks: two networks that co-train, or one alone.

    accelerate launch training/train.py --dataset data/voc --preset voc-resnet50 --output-dir runs/r50
    accelerate launch training/train.py --dataset data/voc --output-dir runs/r50 --resume   # after a kill

The output directory: network A at its root and B in `peer/`, as transformers saves them; `best/`, the same at
the highest score of `--eval-dataset`; `state.safetensors`, from which `--resume` goes on to the last bit;
`log.jsonl`, `predictions/` and the tracker's files to look at. Every random choice is a function of (seed,
step, process), so a resumed run needs no generator's state.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.options import parse, run_command
from attn2mask.builders.shards import BuildDirectory
from attn2mask.training.benchmarks import hub_name
from attn2mask.training.checkpoint import is_exported
from attn2mask.training.config import BatchPlan, Settings, TrainConfig, plan_batches
from attn2mask.training.cotraining import Pair, cotraining_losses
from attn2mask.training.data import Crops, loader, open_rows

if TYPE_CHECKING:
    from accelerate import Accelerator

    from attn2mask.builders.classes import ClassTable

PATIENCE = timedelta(hours=4)  # of processes for one that encodes, paints or scores alone
CHECK_EVERY = 20  # steps between looks at the losses, each of which waits for the GPU


def train(config: TrainConfig) -> None:
    """Train as ``config`` says; see the module's text for what is left in the output directory."""
    from accelerate.utils import set_seed

    settings, output = config.settings(), Path(config.output_dir)
    accelerator = make_accelerator(config, output)
    batches = plan_batches(
        settings.batch_size, accelerator.num_processes, config.micro_batch, settings.mixing
    )
    rows, table = open_rows(config.dataset, config.streaming, settings.reliability)
    record = rows_record(config.dataset)
    start = steps_done(output, config, record)
    if start >= settings.max_steps and is_exported(output):
        accelerator.print(f"{output} has all its {settings.max_steps} steps; nothing to do")
        return
    pictures = open_evaluation(config, table)
    accelerator.print(f"{accelerator.device}, {accelerator.mixed_precision} precision: {batches}")

    pair = make_pair(settings, table, config.seed, batches, accelerator)
    optimizer = make_optimizer(pair, settings)
    pair, optimizer = accelerator.prepare(pair, optimizer)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        identity = json.dumps(config.identity() | {"rows": record}, indent=2) + "\n"
        write_file(output / "run.json", identity.encode())
    accelerator.wait_for_everyone()
    run = Run(config, settings, table, record, accelerator, pair, optimizer, output)
    if start:
        run.load()
    trim_log(output / "log.jsonl", run.step, accelerator.is_main_process)
    crops = Crops(
        settings.crop_size, settings.resize, config.seed, table.ignore_index, len(table.names),
        settings.reliability,
    )  # fmt: skip
    feed = iter(
        loader(
            rows, crops, per_process=batches.per_process, batch=settings.batch_size, start=run.step,
            stop=settings.max_steps, rank=accelerator.process_index, processes=accelerator.num_processes,
            workers=config.workers,
        )
    )  # fmt: skip
    values = {k: v for k, v in asdict(config).items() if isinstance(v, (int, float, str))}
    accelerator.init_trackers("logs", config=values)
    bar = tqdm(
        total=settings.max_steps, initial=run.step, desc="training", unit="step",
        disable=not accelerator.is_main_process, mininterval=1,
    )  # fmt: skip
    pair.train()
    while run.step < settings.max_steps:
        entropy = [config.seed, run.step, accelerator.process_index]
        set_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        losses, names = training_step(run, feed, batches)
        run.note(losses, names, bar)
        bar.update()
        done = run.step == settings.max_steps
        if pictures is not None and (run.step % run.eval_every == 0 or done):
            run.evaluate(pictures)
        if run.step % config.checkpoint_every == 0 or done:
            run.save()  # last, so that what it says of the scores is true
    bar.close()
    run.finish()
    del feed, pair, optimizer
    end(accelerator)


def make_accelerator(config: TrainConfig, output: Path) -> Accelerator:
    """accelerate's own settings with `--mixed-precision` and `--report-to`. Raises UserError for a tracker
    that is unknown or not installed, and a precision that the machine has not.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    tracker = None if config.report_to in ("", "none") else config.report_to
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision or None, log_with=tracker, project_dir=str(output),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )  # fmt: skip
    except (ValueError, ImportError) as error:
        raise UserError(f"--report-to or --mixed-precision: {' '.join(str(error).split())}") from error
    if tracker and not accelerator.log_with:
        raise UserError(f"--report-to {tracker}: it is not installed; install it, or give --report-to none")
    return accelerator


def training_step(run: Run, feed: Any, batches: BatchPlan) -> tuple[torch.Tensor, list[str]]:
    """One optimizer step on one global batch: the mean losses of the networks, and the rows that it saw."""
    accelerator, settings = run.accelerator, run.settings
    background = 0 if run.table.background is not None else None
    total, names = torch.zeros(2 if settings.co_training else 1, device=accelerator.device), []
    for part in range(batches.accumulation):
        batch = next_batch(feed)
        names += batch.pop("sample_id")
        batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        last = part == batches.accumulation - 1
        with nullcontext() if last else accelerator.no_sync(run.pair), accelerator.autocast():
            losses = cotraining_losses(
                run.pair, run.bare.online, batch, settings, run.step >= settings.warmup_steps,
                run.table.ignore_index, background,
            )  # fmt: skip
        accelerator.backward(sum(losses) / batches.accumulation)
        total += torch.stack(losses).detach() / batches.accumulation
    if settings.clip:
        accelerator.clip_grad_norm_(run.pair.parameters(), settings.clip)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * settings.rate(run.step)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    return total, names


def next_batch(feed: Any) -> dict[str, Any]:
    """The next batch; a UserError of a loading process comes back as the one line that it was."""
    try:
        return next(feed)
    except UserError as error:
        raise UserError(str(error).strip().splitlines()[-1].split("UserError: ")[-1]) from None


class Run:
    """What changes as a run goes on, and how it is kept."""

    def __init__(
        self, config: TrainConfig, settings: Settings, table: ClassTable, rows: dict[str, Any],
        accelerator: Accelerator, pair: torch.nn.Module, optimizer: Any, output: Path,
    ) -> None:  # fmt: skip
        from attn2mask.training.checkpoint import make_processor

        self.config, self.settings, self.table, self.rows = config, settings, table, rows
        self.accelerator, self.pair, self.optimizer, self.output = accelerator, pair, optimizer, output
        # Without what accelerate wraps around them, torch.compile too: names of weights are ever the same.
        self.bare = accelerator.unwrap_model(pair, keep_torch_compile=False)
        self.processor = make_processor(settings.resize or None)
        self.step, self.best, self.seconds = 0, -1.0, 0.0
        self.metrics: dict[str, Any] = {}
        self.eval_every = config.eval_every or max(1, settings.max_steps // 10)
        self.started, self.shown = time.time(), (time.time(), 0)
        self.pending: list[tuple[int, torch.Tensor, list[str]]] = []

    def note(self, losses: torch.Tensor, names: list[str], bar: tqdm) -> None:
        """Keep the losses of a step; every `CHECK_EVERY` look at them, show and log them.

        Raises UserError at a loss that is not finite, with the rows of that step.
        """
        self.pending.append((self.step, losses, names))
        if (
            len(self.pending) < CHECK_EVERY
            and self.step % self.config.checkpoint_every
            and (self.step < self.settings.max_steps)
        ):
            return
        values = torch.stack([losses for _, losses, _ in self.pending])
        values = self.accelerator.reduce(values, "mean").cpu().numpy()
        for (step, _, rows), row in zip(self.pending, values, strict=True):
            if not np.isfinite(row).all():
                kept = (
                    "the last checkpoint is kept"
                    if (self.output / "state.safetensors").exists()
                    else "nothing was saved yet"
                )
                raise UserError(
                    f"the loss is {row.max()} at step {step}, on rows {', '.join(map(str, rows))}; {kept}."
                    " Lower --learning-rate, or look at these rows"
                )
        now, (then, before) = time.time(), self.shown
        speed = (self.step - before) * self.settings.batch_size / max(now - then, 1e-9)
        self.shown = (now, self.step)
        mean = values.mean(0)
        rate = self.settings.learning_rate * self.settings.rate(self.step)
        record = {f"loss_{net}": float(v) for net, v in zip("ab", mean, strict=False)}
        record |= {"learning_rate": rate, "images_per_second": speed}
        bar.set_postfix(
            {k.replace("loss_", ""): f"{v:.3g}" for k, v in record.items() if k != "images_per_second"},
            images_s=f"{speed:.1f}",
        )
        self.log(record)
        self.pending.clear()

    def log(self, record: dict[str, float]) -> None:
        """To the tracker, and as a line of log.jsonl."""
        self.accelerator.log(record, step=self.step)
        if self.accelerator.is_main_process:
            with (self.output / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.step, **record}) + "\n")

    def save(self) -> None:
        """Write state.safetensors."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        note = {
            "step": self.step, "best": self.best, "metrics": self.metrics,
            "seconds": self.seconds + time.time() - self.started,
            "scaler": scaler.state_dict() if scaler else None,
        }  # fmt: skip
        save_state(self.output / "state.safetensors", self.bare.state_dict(), self.optimizer, note)

    def load(self) -> None:
        """Go on from state.safetensors."""
        weights, optimizer, note = load_state(self.output / "state.safetensors", self.accelerator.device)
        self.bare.load_state_dict(weights)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})
        if note["scaler"]:
            self.accelerator.scaler.load_state_dict(note["scaler"])
        self.step, self.best, self.metrics, self.seconds = (
            note["step"], note["best"], note["metrics"], note["seconds"],
        )  # fmt: skip
        self.shown = (time.time(), self.step)

    def networks(self) -> list[torch.nn.Module]:
        """Network A and, where there is one, B."""
        return [net for net in (self.bare.a, self.bare.b) if net is not None]

    def evaluate(self, pictures: Sequence) -> None:
        """Score both networks, each process on its share; keep the best, and a picture of predictions."""
        from accelerate.utils import gather_object

        from attn2mask.training.charts import prediction_sheet
        from attn2mask.training.evaluate_command import extremes
        from attn2mask.training.inference import report, score

        networks, accelerator = self.networks(), self.accelerator
        mine = range(accelerator.process_index, len(pictures), accelerator.num_processes)
        scores = score(
            networks, self.processor, pictures, self.table, device=accelerator.device,
            progress=accelerator.is_main_process, picked=mine,
        )  # fmt: skip
        for matrix in (*scores.matrices.values(), scores.told):
            whole = accelerator.reduce(torch.from_numpy(matrix).to(accelerator.device), "sum")
            matrix[:] = whole.cpu().numpy()
        for part in gather_object([scores.pictures]):
            scores.pictures |= part
        found = report(scores, self.table) | {"step": self.step}
        self.log({f"eval_{name}": found[name] for name in ("mean_iou", "pixel_accuracy")})
        if accelerator.is_main_process:
            self.metrics = found
            folder = self.output / "predictions"
            folder.mkdir(exist_ok=True)
            shown = extremes(scores, networks, self.processor, pictures)
            prediction_sheet(shown, self.table, folder / f"step-{self.step:06d}.png")
            tqdm.write(f"step {self.step}: mIoU {found['mean_iou']:.4f} on {len(pictures)} pictures")
            if found["mean_iou"] > self.best:
                self.best = found["mean_iou"]
                self.export(self.output / "best")
                (self.output / "best" / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
        accelerator.wait_for_everyone()

    def export(self, folder: Path) -> None:
        """The networks in transformers' format, with all that a card says of how they came about."""
        from attn2mask.training.checkpoint import save_checkpoint

        network, *peer = self.networks()
        save_checkpoint(folder, network, peer[0] if peer else None, self.processor, self.record())

    def record(self) -> dict[str, Any]:
        """What training_config.json holds."""
        return {
            "settings": asdict(self.settings),
            "config": asdict(self.config),
            "on_hub": {name: hub_name(getattr(self.config, name)) for name in ("dataset", "eval_dataset")}
            | {"backbone": hub_name(self.settings.backbone)},
            "rows": self.rows,
            "table": self.table.name,
            "step": self.step,
            "seconds": round(self.seconds + time.time() - self.started, 1),
            "hardware": hardware(self.accelerator),
            "mixed_precision": str(self.accelerator.mixed_precision),
            "versions": {
                name: version(name) for name in ("attn2mask", "torch", "transformers", "accelerate")
            },
        }

    def finish(self) -> None:
        """Export the last networks, and say what was made and how to use it."""
        if not self.accelerator.is_main_process:
            return
        made = [f"network A in {self.output}"]
        made += [f"B in {self.output / 'peer'}"] if self.settings.co_training else []
        if self.metrics:
            write_file(self.output / "metrics.json", (json.dumps(self.metrics, indent=2) + "\n").encode())
            made.append(f"the best (mIoU {self.best:.4f}) in {self.output / 'best'}")
        self.export(self.output)  # last: it says that all is there
        seconds = self.seconds + time.time() - self.started
        print(f"made {', '.join(made)} in {seconds:.0f} s")
        print(f"next: attn2mask evaluate --checkpoint {self.output} --dataset VOCdevkit/VOC2012 --split val")


def save_state(file: Path, weights: Mapping[str, torch.Tensor], optimizer: Any, note: dict[str, Any]) -> None:
    """Write weights, the optimizer's state and a note of what else a run goes on from, so that the file is
    always the old one or the new one.
    """
    tensors = {f"model/{name}": tensor for name, tensor in weights.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items() if value is not None}
    tensors = {name: torch.as_tensor(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(
        file, save(tensors, {"state": json.dumps(note)})
    )  # not `save_file`: a full disk is an OSError here


def load_state(
    file: Path, device: torch.device
) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, torch.Tensor]], dict[str, Any]]:
    """What `save_state` wrote: the weights, the optimizer's state by parameter, the note."""
    with safe_open(file, "pt", device=str(device)) as stored:
        note = json.loads(stored.metadata()["state"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    weights = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    optimizer: dict[int, dict[str, torch.Tensor]] = {}
    for name in tensors.keys() - {f"model/{name}" for name in weights}:
        _, index, key = name.split("/")
        optimizer.setdefault(int(index), {})[key] = tensors[name]
    return weights, optimizer, note


def trim_log(path: Path, step: int, main: bool) -> None:
    """Drop the lines of steps that will be made again."""
    if main and path.exists():
        kept = []
        for line in path.read_text().splitlines():
            with suppress(ValueError):  # the last line, where a full disk cut it off
                kept += [line] if json.loads(line)["step"] <= step else []
        write_file(path, "".join(f"{line}\n" for line in kept).encode())


def rows_record(dataset: str) -> dict[str, Any]:
    """What the rows are, for the card and for `--resume`: `num_images`, `identity` and `license` of a build
    here; the `revision` of a dataset of the Hub, where the Hub can be asked; nothing of other folders.
    """
    if (Path(dataset) / "build.json").is_file():
        record = BuildDirectory(Path(dataset)).record()
        return {name: record.get(name) for name in ("num_images", "identity", "license")}
    if hub_name(dataset) is None:
        return {}
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return {"revision": HfApi().dataset_info(dataset).sha}
    except (OSError, HTTPError):  # offline, with rows that were loaded before
        return {"revision": None}


def steps_done(output: Path, config: TrainConfig, rows: dict[str, Any]) -> int:
    """The step to go on from. Raises UserError for a directory that is not this run's, or not to be gone on
    with.
    """
    before = recorded_run(output, config.identity(), config.resume).get("rows", rows)
    if any(before.get(k) != rows.get(k) for k in ("num_images", "identity")):
        raise UserError(
            f"{output} began with other rows: {config.dataset} was built anew, or has grown;"
            " choose another --output-dir"
        )
    return saved_step(output)


def recorded_run(output: Path, identity: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The record of the run that a directory holds; empty for a new directory. Raises UserError where it is
    another run, or one to be gone on with by `--resume`, or something else.
    """
    record = output / "run.json"
    if not record.exists():
        if output.exists() and any(path.name[0] != "." for path in output.iterdir()):
            raise UserError(f"{output} is not empty and holds no run; choose another --output-dir")
        return {}
    try:
        was, now = json.loads(record.read_bytes()), json.loads(json.dumps(identity))
    except ValueError as error:
        raise UserError(f"{record} is damaged: choose another --output-dir") from error
    differ = [f"{k} ({was.get(k)} there, {v} now)" for k, v in now.items() if was.get(k) != v]
    if differ:
        raise UserError(f"{output} holds another run: {', '.join(differ)}; choose another --output-dir")
    if not resume:
        raise UserError(f"{output} holds this run already: give --resume to go on with it")
    return was


def saved_step(output: Path) -> int:
    """The step of the last checkpoint; 0 without one."""
    state = output / "state.safetensors"
    if not state.exists():
        return 0
    try:
        with safe_open(state, "pt") as file:
            return json.loads(file.metadata()["state"])["step"]
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{state} is damaged: without it the same command begins anew") from error


def open_evaluation(config: TrainConfig, table: ClassTable) -> Sequence | None:
    """The pictures of `--eval-dataset`, or None."""
    if not config.eval_dataset:
        return None
    from attn2mask.training.benchmarks import open_pictures

    return open_pictures(config.eval_dataset, config.eval_split, table)


def make_pair(
    settings: Settings, table: ClassTable, seed: int, batches: BatchPlan, accelerator: Accelerator
) -> Pair:
    """Two networks of one architecture with different initial heads, or one."""
    from attn2mask.training.models import build_network

    if settings.architecture == "upernet" and batches.per_process == 1:
        raise UserError(
            "upernet's BatchNorm can't train on one picture at a time: raise --batch-size or --micro-batch"
        )
    networks = [
        build_network(settings.architecture, settings.backbone, table, 2 * seed + k, settings.crop_size)
        for k in range(2 if settings.co_training else 1)
    ]
    pair = Pair(networks[0], networks[1] if settings.co_training else None)
    pair = pair.to(memory_format=torch.channels_last)  # convolutions read it faster, on CPUs too
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        pair = torch.nn.SyncBatchNorm.convert_sync_batchnorm(pair)
    return pair


def make_optimizer(pair: Pair, settings: Settings) -> torch.optim.Optimizer:
    """SGD or AdamW; the heads learn ``head_multiplier`` times as fast as the backbones."""
    from attn2mask.training.models import backbone_parameters, head_parameters

    nets = [net for net in (pair.a, pair.b) if net is not None]
    groups = [
        {"params": [p for net in nets for p in of(net)], "lr": rate, "initial_lr": rate}
        for of, rate in (
            (backbone_parameters, settings.learning_rate),
            (head_parameters, settings.learning_rate * settings.head_multiplier),
        )
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def hardware(accelerator: Accelerator) -> str:
    """What it runs on, for the card: "2 x NVIDIA H100", "2 x CPU (x86_64, 1 thread each)"."""
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
    else:
        threads = torch.get_num_threads()
        name = f"CPU ({platform.machine()}, {threads} thread{'s' * (threads > 1)})"
    return f"{accelerator.num_processes} x {name}"


def end(accelerator: Accelerator) -> None:
    """Leave in order: gloo aborts where a process goes while another still talks."""
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv

    def command() -> None:
        config = parse(TrainConfig, argv, "training/train.py", __doc__.splitlines()[0])
        if config.push_to_hub is None or int(os.environ.get("RANK", 0)):
            train(config)
            return
        # Only here does training know of the Hub, and only where it is asked for.
        from attn2mask.hub.publish import Target, check, publish_model

        target = Target(config.push_to_hub)
        check("model", target)
        train(config)
        publish_model(Path(config.output_dir), target)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
