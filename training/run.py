"""One run of training or adaptation: its directory, state, log and progress.

The directory of a run holds `run.json` (what a resumed run must have in common with it), `state.safetensors`
(weights, the optimizer's state and the step) and `log.jsonl` (the losses). The first two hold checksums.
Every random choice of a run is a function of (seed, step, process), so that a resumed run needs no state of a
random generator. On a CPU it ends with the same weights bit for bit. On a GPU some operations of torch are
not deterministic.

Only one run at a time works in a directory (see `builders/locks.py`). On Ctrl-C or SIGTERM a run saves its
state after the present step, and ends.
"""

import gc
import json
import logging
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from tqdm import tqdm

from attn2mask.builders.devices import device_name
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.files import write_file
from attn2mask.builders.locks import locked, run_name
from attn2mask.builders.options import stored_options
from attn2mask.builders.provenance import FORMAT_VERSION, provenance
from attn2mask.builders.seals import SEAL, read_sealed, write_sealed
from attn2mask.training.config import BatchPlan, RunOptions, plan_batches
from attn2mask.training.data import Share
from attn2mask.training.tensor_file import open_tensors, write_tensors

logger = logging.getLogger(__name__)

# How long processes wait for one that encodes, paints or evaluates alone.
PROCESS_TIMEOUT = timedelta(hours=4)
# Seconds that a run waits for another one in its directory to end: a launcher gives its processes this long
# to save after SIGTERM, and a scheduler may start them again at once.
PATIENCE = 30
CHECK_EVERY = 20  # steps between two checks of the losses, each of which waits for the GPU
IMAGE_TRACKERS = ("tensorboard", "wandb", "swanlab")  # whose `log_images` takes lists of images by name
IDENTITY, STATE, LOG = "run.json", "state.safetensors", "log.jsonl"
START_AGAIN = "delete it, and the same command starts again"


def make_accelerator(config: RunOptions, mixing: bool) -> tuple[Accelerator, BatchPlan]:
    """The Accelerator of a run, and how it spreads a global batch.

    Raises UserError for a tracker that is unknown or not installed, for a precision that the machine does not
    have, and for a batch that cannot be split.
    """
    tracker = None if config.report_to in ("", "none") else config.report_to
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=tracker,
            project_dir=config.output_dir,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)],
        )
    except (ValueError, ImportError) as error:
        raise UserError(f"--report-to or --mixed-precision: {' '.join(str(error).split())}") from error
    if tracker and not accelerator.log_with:
        raise UserError(f"--report-to {tracker}: it is not installed; install it, or give --report-to none")
    if not accelerator.is_main_process:  # one process reports the progress; all report warnings
        logging.getLogger("attn2mask").setLevel(logging.WARNING)
    batches = plan_batches(config.batch_size, accelerator.num_processes, config.micro_batch, mixing)
    accelerator.gradient_accumulation_steps = batches.accumulation
    return accelerator, batches


def recorded_run(output: Path, identity: dict[str, Any], resume: bool) -> dict[str, Any]:
    """What `run.json` of a directory holds; empty for a new directory.

    Raises UserError if the directory holds another run (another `identity`), this run without `resume`, or
    something else.
    """
    file = output / IDENTITY
    if not file.exists():
        if output.exists() and any(path.name[0] != "." for path in output.iterdir()):
            raise UserError(f"{output} is not empty and holds no run: choose another --output-dir")
        return {}
    was, now = read_sealed(file, "choose another --output-dir"), json.loads(json.dumps(identity))
    if _may_be_equal(was.get("revision"), now.get("revision")):
        now.pop("revision", None)
    differ = [f"{k} ({was.get(k)} there, {v} now)" for k, v in now.items() if was.get(k) != v]
    if differ:
        raise UserError(f"{output} holds another run: {', '.join(differ)}; choose another --output-dir")
    if not resume:
        raise UserError(f"{output} already holds this run: give --resume to resume it")
    return was


def _may_be_equal(was: Any, now: Any) -> bool:
    """Whether revisions of a dataset, or of each of several, are equal where both are known. One is None if
    the Hub could not be asked.
    """
    one, two = (value if isinstance(value, list) else [value] for value in (was, now))
    return len(one) == len(two) and all(
        None in pair or pair[0] == pair[1] for pair in zip(one, two, strict=True)
    )


@contextmanager
def working_in(output: Path, accelerator: Accelerator) -> Iterator[None]:
    """Keep other runs out of the directory of a run. Raises UserError if another one is working there."""
    processes = accelerator.num_processes
    with locked(output, accelerator.process_index, run_name(processes), "run", PATIENCE):
        yield


def write_identity(output: Path, identity: dict[str, Any]) -> None:
    """Write `run.json` into the directory of a run, unless it is there."""
    if not (output / IDENTITY).exists():
        write_sealed(output / IDENTITY, identity)


def saved_step(output: Path) -> int:
    """The step of the last checkpoint; 0 without one. Raises UserError as `saved_note`."""
    return saved_note(output)["step"] if (output / STATE).exists() else 0


def saved_note(output: Path) -> dict[str, Any]:
    """What is stored beside the tensors of the last checkpoint, whose checksum is not compared. Raises
    UserError for a damaged checkpoint, and for one of another run.
    """
    _, note = open_tensors(output / STATE, START_AGAIN, verify=False)
    match note:
        case {"run": run, "step": int(step), "loss": float(), "seconds": float(), "kept": dict()}:
            if run != read_sealed(output / IDENTITY, "choose another --output-dir")[SEAL]:
                raise UserError(f"{output / STATE} is of another run than {IDENTITY}: {START_AGAIN}")
            if step > 0:
                return note
    raise UserError(f"{output / STATE} is damaged: {START_AGAIN}")


class Run:
    """The state of a run, and how it is stored: `step`, the number of finished steps; `loss`, the mean of the
    losses at their last check; and `kept`, further JSON values that a resumed run needs.
    """

    def __init__(
        self,
        config: RunOptions,
        accelerator: Accelerator,
        weights: Callable[[], Mapping[str, torch.Tensor]],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """`config` is resolved, `optimizer` is prepared; `weights` returns the changing tensors by name."""
        self.config, self.accelerator = config, accelerator
        self.weights, self.optimizer = weights, optimizer
        self.output = Path(config.output_dir)
        self.step, self.loss = 0, 0.0
        self.kept: dict[str, Any] = {}
        self._pending: list[tuple[int, dict[str, torch.Tensor], Sequence[str]]] = []
        self._seconds, self._started = 0.0, time.monotonic()
        self._checked = (self._started, 0)
        self._signals: list[int] = []  # that this process got
        self._group = None  # of processes that agree to stop; not that of GPUs, which would wait for them
        if accelerator.num_processes > 1:
            self._group = torch.distributed.new_group(timeout=PROCESS_TIMEOUT, backend="gloo")

    @property
    def finished(self) -> bool:
        return self.step == self.config.max_steps

    @property
    def seconds(self) -> float:
        """How long the run took so far, over all of its resumed parts."""
        return self._seconds + time.monotonic() - self._started

    # State

    def begin(self, since: float | None = None) -> None:
        """Resume from the last checkpoint, if any, and open the log. This part started at time `since`."""
        self._started = since or self._started
        if saved_step(self.output):
            self._load()
        self._checked = (time.monotonic(), self.step)
        if self.accelerator.is_main_process:
            trim_log(self.output / LOG, self.step)
        values = {k: v for k, v in asdict(self.config).items() if isinstance(v, (int, float, str))}
        self.accelerator.init_trackers("logs", config=values)

    def save(self) -> None:
        """Write `state.safetensors`. Raises UserError, and keeps the last checkpoint, if a loss or a weight
        is not finite.
        """
        self.check_losses()
        if not all(weight.isfinite().all() for weight in self.weights().values()):
            raise UserError(f"a weight is not finite at step {self.step}: lower --learning-rate")
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        note = {
            "run": read_sealed(self.output / IDENTITY, "choose another --output-dir")[SEAL],
            "step": self.step,
            "loss": self.loss,
            "seconds": self.seconds,
            "scaler": scaler.state_dict() if scaler else None,
            "kept": self.kept,
        }
        save_state(self.output / STATE, self.weights(), self.optimizer, note)

    def _load(self) -> None:
        note = saved_note(self.output)
        weights, optimizer, _ = load_state(self.output / STATE)
        try:
            with torch.no_grad():
                for name, weight in self.weights().items():
                    weight.copy_(weights[name])
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})
            if note["scaler"]:
                self.accelerator.scaler.load_state_dict(note["scaler"])
        except (LookupError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.output / STATE} does not fit this run: {START_AGAIN}") from error
        self.step, self.loss, self._seconds = note["step"], note["loss"], note["seconds"]
        self.kept |= note["kept"]

    def record(self, command: str, **facts: Any) -> dict[str, Any]:
        """What training_config.json holds: the resolved options, `facts`, and where the run took place."""
        return {
            "format_version": FORMAT_VERSION,
            "command": command,
            **facts,
            "options": stored_options(self.config),
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "hardware": hardware(self.accelerator),
            "mixed_precision": str(self.accelerator.mixed_precision),
            **provenance(),
        }

    # Progress

    def share(self) -> Share:
        """The positions of the run that this process loads, from the present step on."""
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        return Share(self.config.batch_size, self.step, self.config.max_steps, index, processes)

    @contextmanager
    def progress(self, doing: str) -> Iterator[None]:
        """A progress bar over the steps, in the main process. Inside, Ctrl-C and SIGTERM do not end the
        program; `must_stop` tells that they came.
        """
        # In the main process the variable TQDM_DISABLE decides, which any other value would override.
        hidden = {} if self.accelerator.is_main_process else {"disable": True}
        bar = tqdm(
            total=self.config.max_steps,
            initial=self.step,
            desc=doing,
            unit="step",
            mininterval=1,
            **hidden,
        )
        with bar as self._bar, noted_signals(self._signals):
            try:
                yield
            except (MemoryError, RuntimeError) as error:
                full = isinstance(error, MemoryError | torch.OutOfMemoryError)
                if not full and "can't allocate memory" not in str(error):  # as torch says it on CPUs
                    raise
                raise UserError(
                    f"memory was full at step {self.step + 1}: lower --micro-batch, which accumulates"
                    f" gradients, or --crop-size ({first_line(error)})"
                ) from error

    def must_stop(self) -> bool:
        """Whether a process of the unfinished run got a signal to end. All processes get the same answer."""
        if self.finished:
            return False
        which = torch.tensor(max(self._signals, default=0))
        if self._group is not None:
            torch.distributed.all_reduce(which, torch.distributed.ReduceOp.MAX, self._group)
            self._signals[:] = [int(which)] if which else []
        return bool(which)

    def stop(self) -> NoReturn:
        """End the processes of a run that must stop, whose state is saved. Raises KeyboardInterrupt after
        Ctrl-C, and SystemExit with status 143 after SIGTERM.
        """
        logger.info("%s holds step %d: --resume continues from there", self.output, self.step)
        end(self.accelerator)
        if signal.SIGTERM in self._signals:
            sys.exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def set_rate(self) -> None:
        """Give the optimizer the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.config.rate(self.step)

    def count(self, losses: dict[str, torch.Tensor], rows: Sequence[str] = ()) -> None:
        """Count a finished step, with this process's losses by name and the rows that it saw. The losses are
        checked every `CHECK_EVERY` steps.
        """
        self.step += 1
        self._pending.append((self.step, losses, rows))
        if len(self._pending) == CHECK_EVERY or self.finished:
            self.check_losses()
        self._bar.update()

    def check_losses(self) -> None:
        """Log and show the means of the losses since the last check. Raises UserError if one is not finite,
        with the rows of its step.
        """
        if not self._pending:
            return
        names = list(self._pending[0][1])
        values = torch.stack([torch.stack([*losses.values()]) for _, losses, _ in self._pending])
        values = self.accelerator.reduce(values, "mean").cpu()  # (steps, losses)
        for (step, _, rows), of_step in zip(self._pending, values, strict=True):
            if not of_step.isfinite().all():
                saved = saved_step(self.output)
                kept = f"the checkpoint of step {saved} is kept" if saved else "nothing was saved yet"
                where = f", on rows {', '.join(rows)}" if rows else ""
                advice = ", or examine these rows" if rows else ""
                raise UserError(
                    f"the loss is {float(of_step.max())} at step {step}{where}; {kept}."
                    f" Lower --learning-rate{advice}"
                )
        self._pending.clear()
        self.loss = float(values.mean())
        now, (then, before) = time.monotonic(), self._checked
        speed = (self.step - before) * self.config.batch_size / max(now - then, 1e-9)
        self._checked = (now, self.step)
        rate = self.config.learning_rate * self.config.rate(self.step)
        means = dict(zip(names, values.mean(0).tolist(), strict=True))
        shown = {name: f"{value:.3g}" for name, value in (means | {"lr": rate}).items()}
        self._bar.set_postfix(shown, images_s=f"{speed:.1f}")
        self.log(means | {"learning_rate": rate, "images_per_second": speed})

    def log_images(self, images: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Give images (H, W, 3) uint8 to the `IMAGE_TRACKERS` in use. Those of one name have one size."""
        for tracker in self.accelerator.trackers:
            if tracker.name in IMAGE_TRACKERS:
                # TensorBoard takes one array, and has to know the order of its axes.
                axes = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                arrays = {name: np.stack(of_name) if axes else of_name for name, of_name in images.items()}
                tracker.log_images(arrays, step=self.step, **axes)

    def log(self, values: dict[str, float]) -> None:
        """Give values to the tracker, and write them as a line of log.jsonl."""
        self.accelerator.log(values, step=self.step)
        if self.accelerator.is_main_process:
            with (self.output / LOG).open("a") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")


def save_state(file: Path, weights: Mapping[str, torch.Tensor], optimizer: Any, note: dict[str, Any]) -> None:
    """Write weights, the optimizer's state and a JSON `note`. The file is always the old or the new one."""
    tensors = {f"model/{name}": tensor for name, tensor in weights.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items() if value is not None}
    write_tensors(file, tensors, note)


def load_state(
    file: Path,
) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, torch.Tensor]], dict[str, Any]]:
    """What `save_state` wrote, on the CPU: the weights, the optimizer's state by number of the parameter, the
    note. Raises UserError if the file is not as it was written.
    """
    stored, note = open_tensors(file, START_AGAIN)
    tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    weights = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    optimizer: dict[int, dict[str, torch.Tensor]] = {}
    for name in tensors.keys() - {f"model/{name}" for name in weights}:
        _, index, key = name.split("/")
        optimizer.setdefault(int(index), {})[key] = tensors[name]
    return weights, optimizer, note


def trim_log(file: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which will be made again, and a last line that was cut off.

    Raises UserError for a line that is damaged.
    """
    if not file.exists():
        return
    kept = []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        try:
            logged = json.loads(line)["step"]
            if not isinstance(logged, int):
                raise TypeError("the step is not a number")
        except (LookupError, RecursionError, TypeError, ValueError) as error:
            if not line.endswith(b"\n"):  # a full disk, or a kill
                continue
            raise UserError(f"{file}, line {number} is damaged: delete this line") from error
        kept += [line] if logged <= step else []
    write_file(file, b"".join(line.rstrip(b"\n") + b"\n" for line in kept))


@contextmanager
def noted_signals(received: list[int]) -> Iterator[None]:
    """Append the number of each SIGINT and SIGTERM to `received`, instead of ending the program. What the
    program ignores, as SIGINT in the background, stays ignored.
    """
    before = {
        which: signal.signal(which, lambda number, frame: received.append(number))
        for which in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(which) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def hardware(accelerator: Accelerator) -> str:
    """The hardware of a run: "2 x NVIDIA H100", or "2 x CPU (x86_64, 1 thread)"."""
    name = device_name(accelerator.device)
    if name == "cpu":
        threads = torch.get_num_threads()
        name = f"CPU ({platform.machine()}, {threads} thread{'s' * (threads > 1)})"
    return f"{accelerator.num_processes} x {name}"


def end(accelerator: Accelerator) -> None:
    """End the processes together: gloo aborts if one ends while another still communicates."""
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
