"""The wheel's contents, the declared dependencies and their pins, and what the code must not contain."""

import ast
import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import tomllib
import warnings
import zipfile
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT, syntax_tree

from attn2mask.hub.space import installed_package, wheel_of

PACKAGES = ("builders", "training", "hub")
# These folders are for maintainers, and are not in the wheel.
MAINTAINERS = ("training/pretraining/", "training/experiments/", "training/candidate/")
PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def repository() -> list[str]:
    """The files that git has, or would add, by path from the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in set(listed.splitlines()) if (ROOT / name).is_file())


def shipped() -> list[str]:
    """The files that the wheel must hold."""
    files = [
        name for name in repository() if name.split("/")[0] in PACKAGES and not name.startswith(MAINTAINERS)
    ]
    return ["__init__.py", "__main__.py", "py.typed", *files]


def sources() -> list[str]:
    return [name for name in repository() if name.endswith(".py") and not name.startswith("tests/")]


def modules() -> list[str]:
    """The modules of the wheel, but for `__main__`."""
    names = [
        "attn2mask." + name.removesuffix(".py").replace("/", ".")
        for name in shipped()
        if name.endswith(".py")
    ]
    return [name.removesuffix(".__init__") for name in names if name != "attn2mask.__main__"]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    """The wheel's files by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_files_that_ship_and_no_others(wheel):
    inside = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert inside == {f"attn2mask/{name}" for name in shipped()}
    assert {"builders/synthesize.py", "builders/drawn/scenes.py", "hub/cli.py"} <= set(shipped())
    assert {"builders/tables/voc.yaml", "builders/tables/imagenet_s.tsv"} <= set(shipped())


def test_the_wheel_has_the_command_the_licenses_and_the_types(wheel):
    files = contents(wheel)
    info = {name.split("/", 1)[1]: text for name, text in files.items() if ".dist-info/" in name}
    assert b"attn2mask = attn2mask.__main__:main" in info["entry_points.txt"]
    assert "attn2mask/py.typed" in files
    assert b"Princeton University" in info["licenses/builders/tables/imagenet_s.LICENSE"]
    assert b"Apache License" in info["licenses/LICENSE"]
    metadata = info["METADATA"].decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11\n" in metadata


def test_a_wheel_from_the_source_distribution_is_the_same(wheel, source_tree, tmp_path):
    """`python -m build` makes the wheel from the source distribution, which is made first."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source_tree]
    build = subprocess.run(command, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    (other,) = tmp_path.glob("*.whl")
    assert contents(other) == contents(wheel)


def test_the_wheel_of_a_space_has_the_same_files(wheel):
    """It is made without a build tool. The metadata are those of the installed package."""
    built, made = contents(wheel), wheel_of(installed_package())
    assert made == wheel_of(installed_package())
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        assert archive.testzip() is None
        files = {name: archive.read(name) for name in archive.namelist()}
    record = next(name for name in files if name.endswith("/RECORD"))
    listed = {name: (digest, size) for name, digest, size in csv.reader(files[record].decode().splitlines())}
    assert set(listed) == set(files) == set(built)
    for name, content in files.items():
        if ".dist-info/" not in name:
            assert content == built[name]
        if name != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert listed[name] == (f"sha256={digest}", str(len(content)))


def imported(names: Iterable[str]) -> set[str]:
    """The distributions whose modules the files import, inside functions too."""
    found = set()
    for name in names:
        for node in ast.walk(syntax_tree((ROOT / name).read_text(), name)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).split(".")[0])
    own = {"attn2mask"} | {path.stem for path in (ROOT / "tests").iterdir()}
    # The dense CRF's reference is not installed on Python 3.13.
    distributions = {"pydensecrf": ["pydensecrf2"]} | dict(packages_distributions())
    third_party = found - sys.stdlib_module_names - own
    return {canonicalize_name(distributions.get(module, [module])[0]) for module in third_party}


EXPORT = {"datumaro", "pycocotools"}  # what only the extra attn2mask[export] installs


def declared(*extras: str) -> set[str]:
    """The distributions that the package requires, with its extras."""
    lists = [
        PROJECT["project"]["dependencies"],
        *(PROJECT["project"]["optional-dependencies"][e] for e in extras),
    ]
    return {canonicalize_name(Requirement(line).name) for requirements in lists for line in requirements}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    shipped_sources = [name for name in shipped() if name.endswith(".py")]
    # huggingface_hub renders the templates of the cards with jinja2. transformers reads the tokenizers of
    # PixArt and Kolors with sentencepiece and protobuf.
    unseen = {"jinja2", "sentencepiece", "protobuf"}
    assert imported(shipped_sources) | unseen == declared() | {"gradio", "pydensecrf2"} | EXPORT
    preview = [name for name in shipped_sources if name.startswith("hub/preview/")]
    assert "gradio" not in imported(set(shipped_sources) - set(preview))
    export = [name for name in shipped_sources if name.startswith("hub/export/")]
    assert not imported(set(shipped_sources) - set(export)) & EXPORT
    assert imported(sources()) <= declared("dev", "export", "preview", "pydensecrf")
    # `make bench-peers` installs daam in an environment of its own.
    tests = [name for name in repository() if name.startswith("tests/") and name.endswith(".py")]
    assert imported(tests) - {"daam"} <= declared("dev", "export", "preview", "pydensecrf", "tensorboard")


def test_the_embedded_painter_is_small():
    size = sum(
        file.stat().st_size for file in (ROOT / "builders/embedded/painter").rglob("*") if file.is_file()
    )
    assert size <= 25e6


def test_no_pickles():
    assert [name for name in repository() if Path(name).suffix in PICKLES] == []


def test_every_module_imports_without_torchvision_and_fcntl():
    """Windows has no fcntl."""
    python(
        "import sys, importlib\n"
        "sys.modules['torchvision'] = sys.modules['fcntl'] = None\n"  # an import of them raises ImportError
        f"for name in {modules()!r}: importlib.import_module(name)\n"
    )


# Calls that run the code of a model, or ask for it on the terminal, unless an argument forbids it.
_LOADS = re.compile(r"(Auto(?!encoder)\w+|DiffusionPipeline)\.(from_pretrained|from_config|download)")


def dangers(tree: ast.AST) -> list[str]:
    """Ways by which a file from elsewhere would be run as code."""
    found = []
    safe = {  # `torch.load(..., weights_only=True)` runs no code
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "weights_only=True" in map(ast.unparse, node.keywords)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [
                name.name for name in node.names if name.name.split(".")[0] in ("pickle", "dill", "joblib")
            ]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{name.name}" for name in node.names]
            found += [
                name
                for name in names
                if (name.split(".")[0] in ("pickle", "dill") and name != "pickle.UnpicklingError")
                or name == "torch.load"
            ]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load" and node not in safe:
            found.append("torch.load")
        elif isinstance(node, ast.Call) and _LOADS.fullmatch(ast.unparse(node.func)):
            if "trust_remote_code" not in [keyword.arg for keyword in node.keywords]:
                found.append(f"{ast.unparse(node.func)} without trust_remote_code")
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            found.append(f"{node.arg}={ast.unparse(node.value)}")
    # What passes on what the user gave, which is off by default.
    allowed = ("trust_remote_code=False", "trust_remote_code=trust_remote_code")
    return [danger for danger in found if danger not in allowed]


def test_dangers_are_found():
    code = "import pickle\nfrom torch import load\ntorch.load(f)\nx(trust_remote_code=True)"
    assert dangers(ast.parse(code)) == ["pickle", "torch.load", "torch.load", "trust_remote_code=True"]
    assert dangers(ast.parse("torch.load(f, weights_only=False)")) == ["torch.load"]
    assert dangers(ast.parse("x(trust_remote_code=False, y=z(trust_remote_code=trust_remote_code))")) == []
    code = "AutoConfig.from_pretrained(x)\nDiffusionPipeline.download(x, trust_remote_code=False)"
    assert dangers(ast.parse(code)) == ["AutoConfig.from_pretrained without trust_remote_code"]
    assert dangers(ast.parse("from pickle import UnpicklingError\ntorch.load(f, weights_only=True)")) == []


@pytest.mark.parametrize("name", sources())
def test_source(name):
    """Compiles as Python 3.11 without a warning, and runs no code from elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = syntax_tree((ROOT / name).read_text(), name)
    assert dangers(tree) == []


def test_every_direct_dependency_is_pinned():
    extras = PROJECT["project"]["optional-dependencies"].values()
    lists = [PROJECT["build-system"]["requires"], PROJECT["project"]["dependencies"], *extras]
    wanted = [Requirement(line) for requirements in lists for line in requirements]
    wanted = [requirement for requirement in wanted if requirement.name != "attn2mask"]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().split():
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"constraints.txt: {line} is no exact pin"
        name, version = line.split("==")
        assert canonicalize_name(name) not in pins, f"constraints.txt pins {name} twice"
        pins[canonicalize_name(name)] = version
    missing = [r.name for r in wanted if canonicalize_name(r.name) not in pins]
    assert missing == []
    assert [str(r) for r in wanted if pins[canonicalize_name(r.name)] not in r.specifier] == []


def test_every_promise_about_security_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/\S+)`", text)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).is_file()] == []
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    promising = [section for section in sections if re.match("Where|Text|Files|What", section)]
    assert len(promising) == 5
    assert all(re.search(r"Tests?:\s+`tests/", section) for section in promising)
