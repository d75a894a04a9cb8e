"""Ends builds, trainings, adaptations and publishes at random moments, by SIGKILL, SIGTERM and SIGINT, and
does to their output what machines do to it: what comes of it in the end must be what comes of a run that
nothing happened to. Trainings and adaptations are also started by `accelerate launch`, which is then ended.

    make survival                                        # 50 kills of each, ten minutes of two cores
    python tests/survival.py --kills 300 --seed 1       # at other moments, an hour

It goes on where it was stopped. Each attempt is a process of its own, forked from one that has imported all,
so that kills fall into work. Half of them come by the clock, with a random signal. The others are SIGKILL
and come by steps: at the n-th time that the process opens, renames or removes a file of its output, or at its
n-th request of a Hub on this machine. Those of launchers come by the clock alone.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import psutil
from background import let_children_get_signals
from loopback_hub import LoopbackHub
from tqdm import tqdm

LIMIT = 900  # seconds after which an attempt hangs
IN_A_ROW = 6  # kills of one output, before it is finished and looked at
ROWS, SHARD = 16, 2
# The exit statuses that a signal may end in.
STATUSES = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {-signal.SIGTERM, 128 + signal.SIGTERM},
    signal.SIGINT: {128 + signal.SIGINT},
}
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")  # as Python's audit hooks call them

# In processes that are killed. Imports stand inside: this file is read anew by every process.


def build(inputs: Path, out: Path) -> int:
    from attn2mask.hub.cli import main

    options = f"--num-images {ROWS} --shard-size {SHARD} --height 64 --width 64 --steps 2 --batch-size 2"
    given = ["--model", str(inputs / "model"), "--captions", str(inputs / "captions.txt"), "--out", str(out)]
    return main(["build", "voc", *given, *options.split(), "--store-scores", "--workers", "1"])


def train(inputs: Path, out: Path) -> int:
    from attn2mask.hub.cli import main

    return main(training(inputs, out))


def training(inputs: Path, out: Path) -> list[str]:
    options = "--max-steps 12 --batch-size 4 --crop-size 32 --checkpoint-every 3 --eval-every 6 --workers 0"
    given = [f"--dataset={inputs / 'rows'}", f"--eval-dataset={inputs / 'rows'}", f"--output-dir={out}"]
    given += [f"--backbone={inputs / 'backbone'}", "--resume"]
    return ["train", *given, *options.split()]


def adapt(inputs: Path, out: Path) -> int:
    from attn2mask.hub.cli import main

    return main(adaptation(inputs, out))


def adaptation(inputs: Path, out: Path) -> list[str]:
    options = "--max-steps 12 --batch-size 2 --rank 2 --crop-size 64 --checkpoint-every 3 --sample-every 0"
    given = [f"--data={inputs / 'frames'}", f"--model={inputs / 'model'}", f"--output-dir={out}"]
    return ["adapt", *given, *options.split(), "--resume"]


def launched_train(inputs: Path, out: Path) -> NoReturn:
    """In two processes."""
    launch(["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"], training(inputs, out))


def launched_adapt(inputs: Path, out: Path) -> NoReturn:
    launch(["--num_processes", "1"], adaptation(inputs, out))


def launch(options: list[str], command: list[str]) -> NoReturn:
    """Become accelerate's launcher of a command."""
    options += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *options]
    os.execv(sys.executable, [*launcher, "--module", "attn2mask", *command])


def publish_dataset(inputs: Path, out: Path) -> int:
    from attn2mask.hub.cli import main

    return main(["publish", "dataset", str(inputs / "data"), f"org/{out.name}"])


def publish_model(inputs: Path, out: Path) -> int:
    from attn2mask.hub.cli import main

    return main(["publish", "model", str(inputs / "run"), f"org/{out.name}"])


def remask(inputs: Path, out: Path) -> int:
    from attn2mask.hub.cli import main

    return main(["remask", str(out), "--out", f"{out}-remasked"])


def publish_damaged(inputs: Path, out: Path) -> int:
    from attn2mask.hub.cli import main

    return main(["publish", "dataset", str(out), "org/refused"])


# What came of it.


def names(out: Path) -> list[str]:
    """All files but locks."""
    files = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return sorted(name for name in files if not name.startswith((".lock-", ".held-by-", ".finish")))


def built(stage: "Stage", out: Path) -> dict[str, Any]:
    """Files, the shards by their rows."""
    from attn2mask.builders.shards import BuildDirectory, plan

    rows = {f"{shard}": list(BuildDirectory(out).rows(shard)) for shard in plan(ROWS, SHARD)}
    texts = {name: (out / name).read_text() for name in ("build.json", "report.json", "README.md")}
    return {"names": names(out), **rows, **texts}


def trained(stage: "Stage", out: Path) -> dict[str, Any]:
    """Names of files, all tensors and scores, and the last step; not how long it took."""
    from safetensors.numpy import load_file

    found: dict[str, Any] = {"names": names(out)}
    for file in out.rglob("*.safetensors"):
        tensors = load_file(file).items()
        found |= {f"{file.relative_to(out)}: {name}": array.tobytes() for name, array in tensors}
    for file in out.rglob("metrics.json"):
        found[f"{file.relative_to(out)}"] = json.loads(file.read_text())
    steps = []
    for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()):
        if "eval_mean_iou" in line:
            found[f"evaluation at step {line['step']}"] = line
        else:  # losses are means since the last line, and a run that must stop writes one
            steps.append(line["step"])
    assert steps == sorted(set(steps))
    return found | {"last step": steps[-1]}


def published(kind: str) -> Callable[["Stage", Path], dict[str, Any]]:
    """All files of the repository, and how often it was published."""

    def result(stage: "Stage", out: Path) -> dict[str, Any]:
        repo = stage.hub.repos[kind, f"org/{out.name}"]
        files = {path: content.replace(out.name.encode(), b"NAME") for path, content in
                 stage.hub.files(kind, f"org/{out.name}").items()}  # fmt: skip
        return files | {"commits": [commit.title for commit in repo.commits.values()]}

    return result


def whole_shards(stage: "Stage", out: Path) -> None:
    """No shard is damaged, and a report stands only where all stand."""
    from attn2mask.builders.shards import BuildDirectory, plan

    if not (out / "build.json").exists():
        assert not list(out.rglob("*.parquet"))
        return
    states = {BuildDirectory(out).state(shard) for shard in plan(ROWS, SHARD)}
    assert "damaged" not in states
    assert states == {"made"} or not (out / "report.json").exists()


def whole_states(stage: "Stage", out: Path) -> None:
    """What is there to go on from can be read."""
    from safetensors.numpy import load_file

    for file in (out / "run.json", out / "training_config.json"):
        assert not file.exists() or json.loads(file.read_text())
    for file in out.glob("*.safetensors"):
        load_file(file)


def all_or_nothing(kind: str) -> Callable[["Stage", Path], None]:
    """The repository holds nothing yet, or all."""

    def check(stage: "Stage", out: Path) -> None:
        repo = stage.hub.repos.get((kind, f"org/{out.name}"))
        shown = set(stage.hub.files(kind, f"org/{out.name}")) if repo else set()
        wanted = set(stage.whole[f"publish_{kind}"].result) - {"commits"}
        assert shown in (set(), {".gitattributes"}, wanted)

    return check


@dataclass(frozen=True)
class Victim:
    """A command that is killed; what is compared in the end, and what must hold after every kill."""

    run: Callable[[Path, Path], int]
    result: Callable[["Stage", Path], dict[str, Any]]
    check: Callable[["Stage", Path], None]
    steps: Literal["files", "requests", "none"]
    share: float = 1.0

    @property
    def name(self) -> str:
        return self.run.__name__


VICTIMS = (
    Victim(build, built, whole_shards, "files"),
    Victim(train, trained, whole_states, "files"),
    Victim(adapt, trained, whole_states, "files"),
    Victim(launched_train, trained, whole_states, "none", 0.1),
    Victim(launched_adapt, trained, whole_states, "none", 0.1),
    Victim(publish_dataset, published("dataset"), all_or_nothing("dataset"), "requests", 0.5),
    Victim(publish_model, published("model"), all_or_nothing("model"), "requests", 0.5),
)
PRELOADED = (
    *("attn2mask.builders.build", "attn2mask.builders.synthesize", "attn2mask.builders.painter"),
    *("attn2mask.builders.remask", "attn2mask.training.train", "attn2mask.training.adapt"),
    *(
        "attn2mask.training.evaluate_command",
        "attn2mask.training.evaluation",
        "attn2mask.training.inference",
        "attn2mask.training.charts",
    ),
    *("attn2mask.hub.publish", "attn2mask.hub.cards.dataset", "attn2mask.hub.cards.segmenter"),
    *("datasets", "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"),
    *("transformers.models.clip.modeling_clip", "transformers.models.resnet.modeling_resnet"),
)


def attempt_inside(
    run: Callable[[Path, Path], int], inputs: Path, out: Path, log: Path, last: int, largest: int | None
) -> None:
    """In a process of its own: the command, which dies at its step `last`, where that is not 0, and can write
    no file of more than `largest` bytes. Beside `log` it leaves the number of its steps.
    """
    os.setsid()  # its processes are known by their session
    threading.Thread(target=end_with_parent, daemon=True).start()
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    seen = 0

    def step(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in STEPS and str(arguments[0]).startswith(str(out)):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(step)
    try:
        status = run(inputs, out)
    except KeyboardInterrupt:  # before the command took over
        status = 130
    log.with_suffix(".steps").write_text(str(seen))
    sys.stdout.flush()
    sys.exit(status)


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@dataclass
class Whole:
    """An attempt that nothing happened to."""

    result: dict[str, Any]
    seconds: float
    steps: int


@dataclass
class Tally:
    """What was done to a victim so far."""

    kills: int = 0
    rounds: int = 0
    seconds: float = 0.0
    done: str = ""


@dataclass
class Stage:
    """Where it happens: `folder` holds the inputs and what is made of them; one Hub for all."""

    folder: Path
    hub: LoopbackHub
    seed: int = 0
    whole: dict[str, Whole] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))
        self.requests = 0

    @property
    def environment(self) -> dict[str, str]:
        """Of the process that attempts are forked from: to be set before the first."""
        # Without git: a commit in between would be seen in the records.
        options = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GIT_DIR": os.devnull}
        return self.hub.environment(self.folder / "hf") | options

    @property
    def inputs(self) -> Path:
        return self.folder / "inputs"

    @property
    def log(self) -> Path:
        return self.folder / "attempt.log"

    def start(
        self, victim: Victim, out: Path, last: int = 0, largest: int | None = None, log: Path | None = None
    ) -> multiprocessing.Process:
        """An attempt, which dies at its step `last`."""
        log = log or self.log
        log.with_suffix(".steps").unlink(missing_ok=True)
        of_files = last if victim.steps == "files" else 0
        process = self.context.Process(
            target=attempt_inside, args=(victim.run, self.inputs, out, log, of_files, largest)
        )
        self.requests = 0

        def request(method: str, path: str) -> None:
            self.requests += 1
            time.sleep(0.02)
            if victim.steps == "requests" and self.requests == last:
                process.kill()

        self.hub.before = request
        process.start()
        return process

    def end(self, process: multiprocessing.Process, seconds: float = LIMIT) -> int:
        """The exit status of an attempt that must end by itself, and leave no process behind."""
        process.join(seconds)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"not done after {seconds:.0f} seconds:\n{self.tail()}")
        deadline = time.monotonic() + 60
        while left := session(process.pid, self.folder):
            assert time.monotonic() < deadline, f"{left} live on"
            time.sleep(0.1)
        return process.exitcode

    def attempt(self, victim: Victim, out: Path, **options: Any) -> int:
        """The exit status of an attempt."""
        return self.end(self.start(victim, out, **options))

    def end_by_clock(self, victim: Victim, out: Path, seconds: float, which: signal.Signals) -> int:
        """The exit status of an attempt that gets a signal after `seconds`, unless it has ended."""
        process = self.start(victim, out)
        process.join(seconds)
        with suppress(ProcessLookupError):
            os.kill(process.pid, which)
        return self.end(process)

    def finish(self, victim: Victim, out: Path) -> None:
        """Run the command to its end; what comes of it is what comes of the whole attempt."""
        status = self.attempt(victim, out)
        assert status == 0, self.tail()
        found, wanted = victim.result(self, out), self.wholes(victim).result
        differ = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        assert not differ, f"{victim.name} in {out}: {', '.join(differ[:10])}"

    def wholes(self, victim: Victim) -> Whole:
        """The attempt of a victim that nothing happened to, which is made once."""
        if victim.name not in self.whole:
            out = self.folder / f"whole-{victim.name}"
            shutil.rmtree(out, ignore_errors=True)
            began = time.monotonic()
            status = self.attempt(victim, out)
            assert status == 0, self.tail()
            seconds, steps = time.monotonic() - began, self.requests
            if victim.steps == "files":
                steps = int(self.log.with_suffix(".steps").read_text())
            self.whole[victim.name] = Whole(victim.result(self, out), seconds, steps)
        return self.whole[victim.name]

    def out_of(self, victim: Victim) -> Path:
        """The output of the attempt that nothing happened to."""
        self.wholes(victim)
        return self.folder / f"whole-{victim.name}"

    def error(self) -> str:
        """The one line with which the last attempt ended."""
        text = self.log.read_text(errors="replace")
        assert "Traceback" not in text, self.tail()
        errors = [line for line in text.splitlines() if line.startswith("attn2mask: error: ")]
        assert len(errors) == 1, self.tail()
        return errors[0]

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def session(leader: int, folder: Path) -> list[str]:
    """The processes of a session that still run, and those that a launcher started in sessions of their own,
    whose options name files in `folder`.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            command = " ".join(process.cmdline())
            launched = f"--output-dir={folder}" in command
            if (launched or os.getsid(process.pid) == leader) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(command)
    return found


def free_locks(out: Path) -> None:
    """No process holds a lock of an output."""
    from filelock import FileLock

    for file in out.glob(".lock-*"):
        with FileLock(file).acquire(timeout=0):
            pass


def torture(stage: Stage, victim: Victim, kills: int, tally: Tally, kept: Callable[[], None]) -> None:
    """Kill a victim until `tally` says `kills`; `kept` is called after each."""
    whole = stage.wholes(victim)
    while tally.kills < kills:
        out, began = stage.folder / f"{victim.name}-{tally.rounds}", time.monotonic()
        for _ in range(IN_A_ROW):
            rng = random.Random(f"{stage.seed} {victim.name} {tally.rounds} {tally.kills}")
            which = signal.SIGKILL
            if victim.steps == "none" or rng.random() < 0.5:
                which = rng.choice(list(STATUSES))
                status = stage.end_by_clock(victim, out, rng.uniform(0, whole.seconds), which)
            else:
                status = stage.attempt(victim, out, last=rng.randint(1, whole.steps))
            if status == 0:
                break
            # Launchers have statuses of their own.
            assert victim.steps == "none" or status in STATUSES[which], f"{status}: {stage.tail()}"
            free_locks(out)
            tally.kills += 1
            victim.check(stage, out)
            kept()
            if tally.kills == kills:
                break
        stage.finish(victim, out)
        tally.rounds += 1
        tally.seconds += time.monotonic() - began
        shutil.rmtree(out, ignore_errors=True)
        kept()


# What machines do besides.


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A file system of `size` bytes at `folder`; gives a function that changes its options."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def can_mount() -> bool:
    return (
        os.geteuid() == 0
        and shutil.which("mount") is not None
        and "CapEff:\t0000000000000000" not in (Path("/proc/self/status").read_text())
    )


def full_disk(stage: Stage, rng: random.Random) -> str:
    """Disks of several sizes run full; with room made the same command ends as ever."""
    for victim in (v for v in VICTIMS if v.steps == "files"):
        files = [file.stat().st_size for file in stage.out_of(victim).rglob("*") if file.is_file()]
        for share in (0.05, rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.9)):
            if can_mount():
                with disk(stage.folder / "disk", int(sum(files) * share)) as change:
                    assert stage.attempt(victim, stage.folder / "disk" / "out") == 2, stage.tail()
                    assert "No space left on device; free some space" in stage.error()
                    change(f"size={10 * sum(files)}")
                    stage.finish(victim, stage.folder / "disk" / "out")
            else:
                out = stage.folder / "disk"
                assert stage.attempt(victim, out, largest=int(max(files) * share)) == 2, stage.tail()
                assert "File too large" in stage.error()
                stage.finish(victim, out)
                shutil.rmtree(out)
    return "on file systems of their own" if can_mount() else "by a limit on the size of files"


def read_only(stage: Stage, rng: random.Random) -> str:
    """Where nothing can be written, one line says so, and nothing changes."""
    assert can_mount() or os.geteuid(), "root may write anywhere, and can't mount here"
    for victim in (v for v in VICTIMS if v.steps == "files"):
        place = stage.folder / "disk"
        with disk(place, 10**8) if can_mount() else permissions(place) as change:
            whole = stage.wholes(victim)
            stage.attempt(victim, place / "out", last=rng.randint(1, whole.steps))
            before = names(place / "out") if (place / "out").exists() else None
            change("ro")
            assert stage.attempt(victim, place / "out") == 2, stage.tail()
            assert "Read-only file system" in stage.error() or "Permission denied" in stage.error()
            assert before == (names(place / "out") if (place / "out").exists() else None)
            change("rw")
            stage.finish(victim, place / "out")
    return ""


@contextmanager
def permissions(folder: Path) -> Iterator[Callable[[str], None]]:
    """A folder; gives a function that lets nobody write in it ("ro"), or its owner ("rw")."""
    folder.mkdir()

    def change(mode: str) -> None:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o555 if mode == "ro" else 0o755)

    try:
        yield change
    finally:
        change("rw")
        shutil.rmtree(folder)


def damaged_shards(stage: Stage, rng: random.Random) -> str:
    """A shard that is cut off, flipped in a bit or another's: who needs it names it, the build mends it."""
    victim, out = VICTIMS[0], stage.folder / "damaged"
    for kind in ("cut", "flipped", "foreign"):
        shutil.copytree(stage.out_of(victim), out)
        file = out / "data" / f"train-{rng.randrange(ROWS // SHARD):05d}.parquet"
        content = bytearray(file.read_bytes())
        if kind == "cut":
            del content[rng.randrange(len(content)) :]
        elif kind == "flipped":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            others = [other for other in file.parent.iterdir() if other != file]
            content = rng.choice(others).read_bytes()
        file.write_bytes(content)
        for run in (remask, publish_damaged):
            assert stage.attempt(replace(victim, run=run), out) == 2
            assert file.name in stage.error()
            assert "again" in stage.error()
        assert ("dataset", "org/refused") not in stage.hub.repos
        stage.finish(victim, out)
        assert f"{file} is damaged; making it again" in stage.log.read_text()
        shutil.rmtree(out)
    return ""


def two_at_once(stage: Stage, rng: random.Random) -> str:
    """A second build into a directory is refused; the first goes on."""
    victim, out, other = VICTIMS[0], stage.folder / "twice", stage.folder / "other.log"
    first = stage.start(victim, out, log=other)
    while not (out / ".held-by-0").exists():
        assert first.is_alive()
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGSTOP)  # else it may end while the second one waits for it
    assert stage.attempt(victim, out) == 2
    assert "another build is working" in stage.error()
    os.kill(first.pid, signal.SIGCONT)
    assert stage.end(first) == 0, other.read_text()
    stage.finish(victim, out)
    shutil.rmtree(out)
    return ""


def dead_workers(stage: Stage, rng: random.Random, times: int = 5) -> str:
    """The process that labels is killed, as it is for lack of memory: the build says so in one line, or had
    no more need of it, and never waits.
    """
    victim, out, refused = VICTIMS[0], stage.folder / "workers", 0
    for _ in range(times):
        process, shards = stage.start(victim, out), rng.randrange(ROWS // SHARD)
        while process.is_alive() and len(list(out.glob("manifest/*.json"))) < shards:
            time.sleep(0.01)
        while process.is_alive() and not labeling(process.pid):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        for worker in labeling(process.pid):
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        status = stage.end(process)
        if status:
            assert status == 2, stage.tail()
            assert "a labeling process died" in stage.error()
            refused += 1
        victim.check(stage, out)
        stage.finish(victim, out)
        shutil.rmtree(out)
    return f"said {refused} of {times} times"


def labeling(builder: int) -> list[psutil.Process]:
    """The labeling processes of a build."""
    with suppress(psutil.NoSuchProcess):
        return [p for p in psutil.Process(builder).children() if "spawn_main" in " ".join(p.cmdline())]
    return []


def slow_hub(stage: Stage, rng: random.Random) -> str:
    """A Hub that takes a second for an answer, and once fifteen."""
    for victim in (v for v in VICTIMS if v.steps == "requests"):
        whole, out = stage.wholes(victim), stage.folder / f"slow-{victim.name}"
        process, late = stage.start(victim, out), rng.randint(2, whole.steps)

        def wait(method: str, path: str, late: int = late) -> None:
            stage.requests += 1
            time.sleep(15 if stage.requests == late else rng.uniform(0, 1))

        stage.hub.before = wait
        assert stage.end(process) == 0, stage.tail()
        stage.finish(victim, out)
    return ""


CHECKS = (full_disk, read_only, damaged_shards, two_at_once, dead_workers, slow_hub)

# All of it.


def make_inputs(folder: Path) -> None:
    """A tiny painter, captions, drawn rows and scenes, and a tiny backbone."""
    import numpy as np
    from conftest import _build as tiny_pipeline
    from PIL import Image
    from transformers import ResNetConfig

    from attn2mask.builders.drawn.rows import draw_rows, write_rows
    from attn2mask.builders.drawn.scenes import draw_scene

    tiny_pipeline("sd15").save_pretrained(folder / "model")
    (folder / "captions.txt").write_text("a photo of a dog\na red bus on the street\nthe cat and the dog\n")
    write_rows(draw_rows("objects", 12, 4, 64), folder / "rows")
    ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
    ).save_pretrained(folder / "backbone")
    (folder / "frames").mkdir()
    for index in range(6):
        scene = draw_scene("streets", np.random.default_rng([6, index]), (72, 144))
        Image.fromarray(scene.image).save(folder / "frames" / f"{index}.png")


def set_stage(stage: Stage) -> None:
    """Make the inputs of all victims, unless they are there."""
    if not (stage.folder / "ready").exists():
        shutil.rmtree(stage.inputs, ignore_errors=True)
        stage.inputs.mkdir()
        process = stage.context.Process(target=make_inputs, args=(stage.inputs,))
        process.start()
        process.join()
        assert process.exitcode == 0
        for name, victim in (("data", VICTIMS[0]), ("run", VICTIMS[1])):
            shutil.copytree(stage.out_of(victim), stage.inputs / name)
        (stage.folder / "ready").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/survival"), help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=50, help="of each victim (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all moments (%(default)s)")
    given = parser.parse_args()
    kills = {victim.name: round(given.kills * victim.share) for victim in VICTIMS}
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"state-{given.seed}.json"
    done = json.loads(file.read_text()) if file.exists() else {}
    tallies = {name: Tally(**done.get(name, {})) for name in [*kills, *(check.__name__ for check in CHECKS)]}

    with (
        LoopbackHub() as hub,
        tqdm(total=sum(kills.values()) + len(CHECKS), unit="kill", desc="survival") as bar,
    ):

        def keep() -> None:
            from attn2mask.builders.files import write_file

            write_file(file, json.dumps({name: asdict(tally) for name, tally in tallies.items()}).encode())
            bar.n = sum(tally.kills + bool(tally.done) for tally in tallies.values())
            bar.refresh()

        stage = Stage(given.out.resolve(), hub, given.seed)
        os.environ.update(stage.environment)
        set_stage(stage)
        for check in CHECKS:
            tally, began = tallies[check.__name__], time.monotonic()
            if not tally.done:
                tally.done = check(stage, random.Random(f"{given.seed} {check.__name__}")) or "as it should"
                tally.seconds = time.monotonic() - began
                keep()
        for victim in VICTIMS:
            torture(stage, victim, kills[victim.name], tallies[victim.name], keep)

    print(f"{'':18}{'kills':>6}{'rounds':>8}{'min':>6}")
    for name, tally in tallies.items():
        counts = f"{tally.kills:6}{tally.rounds:8}" if name in kills else " " * 14
        print(f"{name:18}{counts}{tally.seconds / 60:6.1f}  {tally.done or 'equal in every round'}")


if __name__ == "__main__":
    let_children_get_signals()
    main()
