"""The commands of an installed wheel, in an empty folder and without a clone."""

import http.client
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import datumaro
import nbformat
import numpy as np
import pytest
from documents import blocks, read
from loopback_hub import LoopbackHub
from PIL import Image
from places import ROOT

from attn2mask.builders.table_reader import load_table
from attn2mask.hub.export.formats import FORMATS
from attn2mask.training.benchmarks import open_images


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel by name, without their list, whose order does not matter."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


class Installation:
    """A virtual environment with the wheel, and an empty folder that its commands run in."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.environment, self.folder = environment, folder
        folder.mkdir()

    def run(self, *command: str, status: int = 0) -> str:
        """Run a command of the environment, such as `attn2mask`; returns what it prints."""
        binary = str(self.environment / "bin" / command[0])
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables["PATH"] = f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        run = subprocess.run(
            [binary, *command[1:]], cwd=self.folder, env=variables, capture_output=True, text=True
        )
        assert run.returncode == status, f"{command}\n{run.stdout}\n{run.stderr}"
        return run.stdout if status == 0 else run.stderr


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installation:
    """The wheel alone is installed. Its dependencies are read from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, wheel], check=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    # Python ignores the .pth files of a folder that is added in this way, and with them an editable install.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installation(environment, folder / "empty")


def test_version_and_help_of_every_command(installed):
    assert installed.run("attn2mask", "--version") == "attn2mask 0.1.0\n"
    assert installed.run("python", "-m", "attn2mask", "--version") == "attn2mask 0.1.0\n"
    code = (
        "import contextlib, sys\n"
        "import attn2mask\n"
        "from attn2mask.hub.cli import COMMANDS, main\n"
        "print(attn2mask.__file__)\n"
        "for command in COMMANDS:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main([*command.split(), '--help'])\n"
        "print(sorted({'torch', 'diffusers', 'datasets'} & set(sys.modules)))"
    )
    place, *text, heavy = installed.run("python", "-c", code).splitlines()
    assert Path(place).is_relative_to(installed.environment)
    assert heavy == "[]"
    usages = {line.split()[2] for line in text if line.startswith("usage: attn2mask ")}
    expected = (
        "build show remask filter aliases draw train adapt evaluate predict compare evaluate-rules export"
        " publish preview demo"
    )
    assert usages == set(expected.split())


def test_maintainers_code_is_not_installed(installed):
    error = installed.run("python", "-c", "import attn2mask.training.experiments", status=1)
    assert "ModuleNotFoundError: No module named 'attn2mask.training.experiments'" in error


# Executes the notebook in a folder by a kernel of this environment.
EXECUTE = """
import os, sys
import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient

folder = sys.argv[1]
notebook = nbformat.read(os.path.join(folder, "quickstart.ipynb"), as_version=4)
kernel = KernelManager()
kernel.kernel_spec.argv[0] = sys.executable
NotebookClient(notebook, km=kernel, timeout=600, resources={"metadata": {"path": folder}}).execute()
"""
BUILD = "--num-images 4 --steps 2 --store-scores --batch-size 4 --workers 1 --shard-size 4".split()


def test_build_show_and_remask(installed):
    installed.run("attn2mask", "build", "voc", *BUILD, "--out", "rows")
    installed.run("attn2mask", "show", "rows", "--rows", "2", "--out", "sheet.png")
    Image.open(installed.folder / "sheet.png").verify()


@pytest.mark.slow
def test_a_space_paints_a_prompt(installed, wheel, tmp_path, monkeypatch):
    """`publish space` of the installed wheel, and then app.py of what was published, in an empty folder."""
    with LoopbackHub() as hub:
        for name, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        installed.run("attn2mask", "build", "voc", *BUILD, "--out", "shown")
        installed.run("attn2mask", "publish", "dataset", "shown", "org/rows")
        installed.run("attn2mask", "publish", "space", "org/page", "--dataset", "org/rows")
        folder = tmp_path / "space"
        folder.mkdir()
        for name, content in hub.files("space", "org/page").items():
            (folder / name).write_bytes(content)
        assert contents(folder / wheel.name) == contents(wheel)
        # Without the installed package, so that app.py can only take the wheel beside it.
        environment = tmp_path / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        (packages,) = environment.glob("lib/python3*/site-packages")
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        space = {"SPACE_ID": "org/page", "GRADIO_SERVER_PORT": port, "OMP_NUM_THREADS": "1"}
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | space
        command = [environment / "bin" / "python", "app.py"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=folder, env=variables, **pipes) as process:
            try:
                line = process.stdout.readline()
                assert line.startswith("org/rows: http://"), line or process.stderr.read()
                page = request(port, "GET", "/")
                assert "org/rows" in page
                asked = json.dumps({"data": ["a dog on a sofa", 3]})
                event = json.loads(request(port, "POST", "/gradio_api/call/paint", asked))["event_id"]
                events = request(port, "GET", f"/gradio_api/call/paint/{event}")
            finally:
                process.terminate()
                _, error = process.communicate(timeout=60)
    assert "event: complete" in events, error
    (painted,) = json.loads(events.split("event: complete\ndata: ")[1].splitlines()[0])
    alts = re.findall(r'<img[^>]* alt="([^"]*)"', painted)
    assert alts[:2] == ["image", "mask"]
    assert [re.match("\u201c(\\w+)\u201d", alt)[1] for alt in alts[3:]] == ["dog", "sofa", "a", "on"]
    assert "Traceback" not in error


def request(port: str, method: str, path: str, body: str | None = None) -> str:
    """A response of the Space, which is asked for by the name that the Hub gives it."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=120)
    headers = {"Host": "org-page.hf.space", "Content-Type": "application/json"}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    assert response.status == 200
    return response.read().decode()


@pytest.mark.slow
def test_every_command_with_the_dependencies_that_are_declared(wheel, tmp_path):
    """A new environment holds the wheel and what it requires, in the versions of constraints.txt."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, wheel], check=True)
    run_every_command(Installation(environment, tmp_path / "empty"))


@pytest.mark.slow
def test_the_quick_start_of_the_readme(installed):
    tested = [block for block in blocks(read("README.md")) if block.tested]
    assert {block.language for block in tested} == {"console", "python"}
    for block in tested:
        if block.language == "python":
            (installed.folder / "quick_start.py").write_text(block.text)
            installed.run("python", "quick_start.py")
        else:
            for command in block.commands():
                installed.run(*shlex.split(command, comments=True))


@pytest.mark.slow
def test_an_export_in_each_format(installed):
    installed.run("attn2mask", *"draw objects --num-images 4 --size 64 --out exact".split())
    for name, form in FORMATS.items():
        command = ["export", "exact", "--val-rows", "1", "--format", name, "--out", f"exported/{name}"]
        installed.run("attn2mask", *command, *["--instances"] * (form.holds == "boxes"))
        folder = installed.folder / "exported" / name
        if form.exporter is None:
            assert len(open_images(folder, "train", load_table("voc"))) == 3
        else:
            importer = {"yolo_ultralytics": "yolo"}.get(name, form.exporter)
            assert len(datumaro.Dataset.import_from(str(folder), importer)) == 4


@pytest.mark.slow
def test_the_notebook_at_toy_size(installed):
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    sizes = "NUM_IMAGES, MAX_STEPS, HELD_OUT = "
    (chosen,) = (cell for cell in cells if sizes in cell.source)
    chosen.source = re.sub(rf"{sizes}.*", f"{sizes}2, 2, 3", chosen.source)
    folder = installed.folder / "notebook"
    folder.mkdir()
    nbformat.write(notebook, folder / "quickstart.ipynb")
    installed.run("python", "-c", EXECUTE, str(folder))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_images"] == 3


def run_every_command(installed: Installation) -> None:
    def attn2mask(line: str, *more: str) -> str:
        return installed.run("attn2mask", *line.split(), *more)

    folder = installed.folder
    attn2mask("build voc --out rows", *BUILD)
    attn2mask("build --config rows/build.yaml --out again")
    for shard in (folder / "rows").rglob("*.parquet"):
        assert shard.read_bytes() == (folder / "again" / shard.relative_to(folder / "rows")).read_bytes()
    attn2mask("show rows --out sheet.png --rows 2")
    attn2mask("remask rows --threshold fixed --out remasked")
    attn2mask("draw objects --num-images 4 --size 64 --out drawn")
    attn2mask("train --dataset rows --output-dir segmenter --max-steps 2 --batch-size 2 --crop-size 48")
    frames = folder / "frames"
    frames.mkdir()
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (128, 256, 3), np.uint8)
        Image.fromarray(pixels).save(frames / f"{seed}.png")
    attn2mask("adapt --data frames --output-dir lora --max-steps 1 --batch-size 1 --rank 2 --sample-every 0")
    attn2mask("build voc --lora lora --out adapted", *BUILD)
    attn2mask("evaluate --checkpoint segmenter --dataset drawn --out metrics.json")
    attn2mask("publish dataset rows you/rows --dry-run")
    attn2mask("publish model segmenter you/segmenter --dry-run")
    attn2mask("publish model lora you/lora --dry-run")
    attn2mask("preview --help")
    (folder / "kitchen.yaml").write_text("name: kitchen\nclasses:\n  - {name: mug}\n  - {name: kettle}\n")
    if Path("/usr/share/wordnet").exists():
        attn2mask("aliases kitchen.yaml")
    else:
        assert "WordNet" in installed.run("attn2mask", "aliases", "kitchen.yaml", status=2)
    attn2mask("demo --num-images 8 --max-steps 2 --out demo")
