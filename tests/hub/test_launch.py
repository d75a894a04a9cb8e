"""Processes that a command starts: they do the work of one process, and errors and signals are passed on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from attn2mask.builders.errors import UserError
from attn2mask.builders.locks import locked
from attn2mask.builders.shards import BuildDirectory, plan
from attn2mask.hub.cli import main
from attn2mask.hub.launch import launcher_options
from attn2mask.training.run import saved_step

TINY = ("voc", "--num-images", "4", "--shard-size", "1", "--steps", "2", "--workers", "1")
COMMAND = (sys.executable, "-m", "attn2mask")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    """These tests may run below a launcher themselves."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "ATTN2MASK_LAUNCHED"):
        monkeypatch.delenv(name, raising=False)


def run(*argv: object, folder: Path) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, cwd=folder, timeout=600)


def rows(path: Path) -> list[dict]:
    directory = BuildDirectory(path)
    return [row for shard in plan(4, 1) for row in directory.rows(shard)]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The build of one process."""
    path = tmp_path_factory.mktemp("one") / "data"
    found = run("build", *TINY, "--out", path, folder=path.parent)
    assert found.returncode == 0, found.stderr
    return path


@pytest.mark.slow
def test_two_processes_build_the_rows_of_one(built, tmp_path):
    found = run("build", *TINY, "--out", "data", "--num-processes", 2, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "with 2 processes" in found.stdout
    lines = found.stderr.splitlines()
    assert lines[:2] == ["Building a dataset with the class table voc", "Starting 2 processes"]
    assert rows(tmp_path / "data") == rows(built)
    # How many processes made them is no part of what was made.
    assert (tmp_path / "data" / "build.yaml").read_bytes() == (built / "build.yaml").read_bytes()


def test_training_reports_its_two_processes(built, tmp_path):
    options = ("--dataset", built, "--max-steps", 1, "--batch-size", 4, "--workers", 0, "--num-processes", 2)
    found = run("train", *options, "--output-dir", "run", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "2 processes x 2 images" in found.stdout + found.stderr
    record = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert record["hardware"].startswith("2 x ")


@pytest.mark.slow
def test_a_configuration_of_accelerate_starts_its_processes(tmp_path):
    """Of one process, which passes its exit status and its one line on."""
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO",
        "num_processes": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "mixed_precision": "no",
        "use_cpu": True,
    }
    (tmp_path / "one.yaml").write_text(json.dumps(config))
    found = run("build", "voc", "--model", "./missing", "--accelerate-config", "one.yaml", folder=tmp_path)
    assert found.returncode == 2
    assert found.stdout == ""
    *started, error = found.stderr.splitlines()
    assert error.startswith("attn2mask: error: there is no model './missing'")
    assert started == [
        "Building a dataset with the class table voc",
        "Starting the processes of one.yaml",
        "Loading the painter ./missing",
    ]


def test_a_mistake_in_all_processes_is_one_line(tmp_path):
    found = run("build", "voc", "--model", "./missing", "--num-processes", 2, folder=tmp_path)
    assert found.returncode == 2
    assert found.stdout == ""
    errors = [line for line in found.stderr.splitlines() if not line.startswith("Loading the painter")]
    assert errors[:2] == ["Building a dataset with the class table voc", "Starting 2 processes"]
    assert len(errors) == 3
    assert errors[2].startswith("attn2mask: error: there is no model './missing'")


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_all_processes(tmp_path, sent, status):
    command = [*COMMAND, "build", "voc", "--out", "data", "--workers", "1", "--num-processes", "2"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=ONE_THREAD, cwd=tmp_path
    ) as process:
        lines = iter(process.stderr.readline, "")
        for _ in range(2):
            next(line for line in lines if line.startswith("Loading the painter"))
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        time.sleep(1)
        process.send_signal(sent)
        error = process.stderr.read()
        assert process.wait(timeout=120) == status
    assert "Traceback" not in error
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    if sent == signal.SIGINT:
        assert error.count("interrupted; run the same command again to resume") == 1


def test_options_for_accelerate(monkeypatch, tmp_path):
    """What starts several processes on CPUs and on GPUs, and how a configuration is completed."""
    gpus = 0
    monkeypatch.setattr("attn2mask.builders.devices.gpu_count", lambda: gpus)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    options, use_cpu = launcher_options(2, None)
    assert use_cpu
    assert "--multi_gpu" in options
    assert options[options.index("--num_processes") + 1] == "2"
    assert options[options.index("--main_process_port") + 1] == "0"
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert options[options.index("--num_cpu_threads_per_process") + 1] == str(threads)
    gpus = 2
    options, use_cpu = launcher_options(2, None)
    assert not use_cpu
    assert "--multi_gpu" in options
    with pytest.raises(UserError, match="--num-processes 4: this machine has 2 GPUs"):
        launcher_options(4, None)
    file = tmp_path / "machines.yaml"
    file.write_text(
        "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 16\nmain_process_port: 29501\n"
    )
    assert launcher_options(None, str(file)) == (["--config_file", str(file)], False)
    file.write_text("distributed_type: 'NO'\nnum_machines: 1\nnum_processes: 1\nuse_cpu: false\n")
    assert launcher_options(None, str(file)) == (
        ["--config_file", str(file), "--main_process_port", "0"],
        False,
    )
    options, _ = launcher_options(2, str(file))
    assert options[2:5] == ["--num_processes", "2", "--multi_gpu"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("a: [", "cannot be read"), ("- 1", "is not a configuration of accelerate")],
)
def test_a_configuration_that_is_none(tmp_path, capsys, content, message):
    file = tmp_path / "accelerate.yaml"
    if content is not None:
        file.write_text(content)
    assert main(["build", "voc", "--accelerate-config", str(file)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"attn2mask: error: --accelerate-config {file} ")
    assert message in error


def test_one_process_and_processes_of_a_launcher_start_no_more(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("attn2mask.hub.launch.launch", lambda *_: pytest.fail("it was launched"))
    monkeypatch.chdir(tmp_path)
    assert main(["build", "voc", "--model", "./missing", "--num-processes", "1"]) == 2
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["build", "voc", "--model", "./missing", "--num-processes", "2"]) == 2
    assert capsys.readouterr().err.count("no model './missing'") == 2


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_ends_with_its_launcher_and_loses_nothing(built, tmp_path, processes):
    """accelerate's launcher is killed. The training saves its state, and leaves no process and no lock."""
    options = ["--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    options += ["--multi_gpu"] if processes > 1 else []
    given = ["--dataset", str(built), "--batch-size", "4", "--workers", "0", "--output-dir", "run"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--module", "attn2mask", "train"]
    with subprocess.Popen(
        [*command, *given, "--max-steps", "10000", "--checkpoint-every", "10000"],
        stderr=subprocess.DEVNULL,
        env=ONE_THREAD | {"ACCELERATE_USE_CPU": "true"},
        cwd=tmp_path,
    ) as launcher:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "log.jsonl").exists():  # after the first 20 steps
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        started = psutil.Process(launcher.pid).children(recursive=True)
        assert len(started) >= processes
        launcher.kill()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
    with locked(tmp_path / "run", 0, "the next run", "run"):
        assert saved_step(tmp_path / "run") >= 20
