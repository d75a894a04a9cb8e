"""What users install: the wheel, what importing costs, the pins, and what must stand nowhere in the code."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

PACKAGES = ("builders", "training", "hub")
PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


def repository() -> list[str]:
    """What git has, or would take, by path from the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in set(listed.splitlines()) if (ROOT / name).is_file())


def sources() -> list[str]:
    return [name for name in repository() if name.endswith(".py") and name.split("/")[0] in PACKAGES]


def modules() -> list[str]:
    names = ["attn2mask." + name.removesuffix(".py").replace("/", ".") for name in sources()]
    return [name.removesuffix(".__init__") for name in names]


def data() -> list[str]:
    return [
        name
        for name in repository()
        if name.startswith(("builders/tables/", "builders/embedded/", "training/embedded/"))
    ]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy, so that nothing is left behind in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in repository():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        folder / "source",
    ]
    build = subprocess.run(command, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        yield archive


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel):
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {"builders/synthesize.py", "builders/worlds/scenes.py", "hub/cli.py"} <= set(sources())
    assert {"builders/tables/voc.yaml", "builders/tables/imagenet_s.tsv"} <= set(data())
    assert inside == {f"attn2mask/{name}" for name in [*sources(), *data()]}


def test_the_wheel_has_the_command_and_the_license(wheel):
    info = {name.split("/", 1)[1]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "attn2mask = attn2mask.hub.cli:main" in wheel.read(info["entry_points.txt"]).decode()
    assert "licenses/LICENSE" in info
    assert "License-Expression: Apache-2.0" in wheel.read(info["METADATA"]).decode()


def test_the_embedded_painter_is_small():
    size = sum(
        file.stat().st_size for file in (ROOT / "builders/embedded/painter").rglob("*") if file.is_file()
    )
    assert size <= 25e6


def test_no_pickles():
    assert [name for name in repository() if Path(name).suffix in PICKLES] == []


def test_every_module_imports_without_torchvision():
    python(
        "import sys, importlib\n"
        "sys.modules['torchvision'] = None\n"  # an import of it raises ImportError
        f"for name in {modules()!r}: importlib.import_module(name)\n"
    )


def test_importing_the_builders_is_cheap():
    """So are the command line and its help."""
    heavy = "print(sorted({'torch', 'diffusers', 'transformers', 'datasets'} & set(sys.modules)))"
    assert python(f"import sys, attn2mask.builders; {heavy}") == "[]\n"
    code = f"import sys; from attn2mask.hub.cli import main; code = main(['--help']); {heavy}"
    assert python(code).splitlines()[-1] == "[]"


def dangers(tree: ast.AST) -> list[str]:
    """Ways by which a file from elsewhere would be run as code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [
                name.name for name in node.names if name.name.split(".")[0] in ("pickle", "dill", "joblib")
            ]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{name.name}" for name in node.names]
            found += [
                name for name in names if name.split(".")[0] in ("pickle", "dill") or name == "torch.load"
            ]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            found.append("torch.load")
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            found.append(f"{node.arg}={ast.unparse(node.value)}")
    return found


def test_dangers_are_found():
    code = "import pickle\nfrom torch import load\ntorch.load(f)\nx(trust_remote_code=True)"
    assert dangers(ast.parse(code)) == ["pickle", "torch.load", "torch.load", "trust_remote_code=True"]


@pytest.mark.parametrize("name", sources())
def test_source(name):
    """Compiles as Python 3.11 without a warning, and runs no code from elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = ast.parse((ROOT / name).read_text(), name, feature_version=(3, 11))
    assert dangers(tree) == []


def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    lists = [project["build-system"]["requires"], project["project"]["dependencies"], *extras]
    wanted = [Requirement(line) for requirements in lists for line in requirements]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().split():
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"constraints.txt: {line} is no exact pin"
        name, version = line.split("==")
        assert canonicalize_name(name) not in pins, f"constraints.txt pins {name} twice"
        pins[canonicalize_name(name)] = version
    missing = [r.name for r in wanted if canonicalize_name(r.name) not in pins]
    assert missing == []
    assert [str(r) for r in wanted if pins[canonicalize_name(r.name)] not in r.specifier] == []
