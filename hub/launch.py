"""Start a command in several processes with accelerate: `attn2mask train ... --num-processes 4`.

accelerate's launcher runs inside this process. So this process decides about the exit status, passes signals
on, and shows the error of the first process that failed as one line, without the launcher's traceback. Each
process leaves its error in a file, which torchrun names in TORCHELASTIC_ERROR_FILE.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from attn2mask.builders.cores import usable_cores
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.interrupts import LAUNCHED as _MARK
from attn2mask.builders.yaml_reader import load_yaml

logger = logging.getLogger(__name__)

GRACE = 30  # seconds that processes have to save their work after SIGTERM, as with torchrun
_MISTAKE = "attn2mask_user_error"  # in a process's file of errors: the one line of its UserError


def is_launched() -> bool:
    """Whether this process is one of several that a launcher started: `launch`, accelerate, or torchrun."""
    return _MARK in os.environ or "LOCAL_RANK" in os.environ


def end_with_launcher() -> None:
    """If a launcher started this process, let it end soon after the launcher: by SIGTERM, after which a run
    saves its state, and by force `GRACE` seconds later. Otherwise a launcher that is killed would leave
    processes that go on beside those of the next launch.
    """
    # accelerate names one process that it starts alone in no other way.
    if not is_launched() and "ACCELERATE_DYNAMO_MODE" not in os.environ:
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def logs_start() -> bool:
    """Whether this process logs what the command does: the launcher, or the first of other processes."""
    return _MARK not in os.environ and not int(os.environ.get("RANK", 0))


def launch(argv: Sequence[str], num_processes: int | None, config_file: str | None) -> NoReturn:
    """Run `attn2mask ARGV` in processes of accelerate, and exit with their status.

    Args:
        num_processes: their number; that of `config_file` if it is None.
        config_file: a configuration of accelerate; this machine alone if it is None.

    Raises UserError with the error of the first process that failed, for a configuration that cannot be used,
    and for more processes than this machine has GPUs; KeyboardInterrupt after Ctrl-C; otherwise SystemExit.
    """
    options, use_cpu = launcher_options(num_processes, config_file)
    processes = f"{num_processes} processes" if num_processes else f"the processes of {config_file}"
    logger.info("Starting %s", processes)
    import psutil
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[_MARK] = "1"
    if use_cpu:  # accelerate's own `--cpu` always starts one process
        os.environ["ACCELERATE_USE_CPU"] = "true"
    logging.getLogger("torch.distributed").handlers = [logging.NullHandler()]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        launch_command(launch_command_parser().parse_args([*options, "--module", "attn2mask", *argv]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if message := failure.error_file_data.get(_MISTAKE):
            raise UserError(message) from None
        logger.error("process %d ended with exit status %d; its error is above", rank, failure.exitcode)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + error.sigval)
    except (
        subprocess.CalledProcessError
    ) as error:  # a configuration of one process, which wrote its own error
        sys.exit(error.returncode)
    except (ValueError, ImportError, OSError, AssertionError) as error:
        raise UserError(f"accelerate cannot start the processes: {first_line(error)}") from error
    finally:
        children = psutil.Process().children()
        for child in children:
            child.terminate()
        for child in psutil.wait_procs(children, GRACE)[1]:
            child.kill()
    sys.exit(0)


def launcher_options(num_processes: int | None, config_file: str | None) -> tuple[list[str], bool]:
    """The options of `accelerate launch`, and whether the processes use the CPU.

    `--multi_gpu` is what starts several processes with torchrun, on CPUs as well.
    """
    from attn2mask.builders.devices import gpu_count

    config = read_config(config_file) if config_file else {}
    count = num_processes or config.get("num_processes") or 1
    gpus = gpu_count()
    use_cpu = not gpus or str(config.get("use_cpu")).lower() == "true"
    several_machines = (config.get("num_machines") or 1) > 1
    if not use_cpu and not several_machines and count > gpus:
        raise UserError(f"--num-processes {count}: this machine has {gpus} GPU{'s' * (gpus > 1)}")
    options = ["--config_file", config_file] if config_file else []
    if num_processes or not config_file:
        options += ["--num_processes", str(count)]
    by_torchrun = config.get("distributed_type", "NO") in ("NO", "MULTI_CPU") and not config.get(
        "mpirun_config"
    )
    if by_torchrun and count > 1:
        options.append("--multi_gpu")
    if not several_machines and not config.get("main_process_port"):
        options += ["--main_process_port", "0"]  # a free one
    if not config_file:
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        options += ["--num_machines", "1", "--mixed_precision", precision, "--dynamo_backend", "no"]
    if use_cpu and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, usable_cores() // count)
        options += ["--num_cpu_threads_per_process", str(threads)]
    return options, use_cpu


def read_config(file: str) -> dict[str, Any]:
    """A configuration file of accelerate. Raises UserError for one that cannot be read."""
    try:
        config = load_yaml(Path(file).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--accelerate-config {file} cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"--accelerate-config {file} is not a configuration of accelerate")
    return config


def run_launched(run: Callable[[], object]) -> None:
    """Run a command in a launched process. If `launch` started it, `launch` shows the user's mistake."""
    try:
        run()
    except UserError as error:
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if _MARK not in os.environ or not file:  # another launcher, or the only process
            raise
        Path(file).write_text(json.dumps({"message": str(error), _MISTAKE: str(error)}))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
