"""A Space: what `attn2mask publish space` publishes.

    README.md           the card, whose metadata tell the Hub how to start the Space
    app.py              starts the preview page of a dataset or of a checkpoint of the Hub
    requirements.txt    the libraries, in the versions that are installed here
    attn2mask-*.whl     this package, which app.py unpacks

The wheel is made from the files of the installed package, or from those that a checkout ships.
"""

import base64
import hashlib
import io
import logging
import re
import sys
import tomllib
import zipfile
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn2mask.builders.errors import UserError
from attn2mask.hub.artifacts import Publication
from attn2mask.hub.hub_client import errors_in_one_line, with_retries
from attn2mask.hub.responses import Unreachable

if TYPE_CHECKING:
    from attn2mask.hub.cards.markdown import Card

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
INSTALL = "install attn2mask again from its wheel"
# Of the metadata of the installed package. The others say where and how it was installed.
METADATA = ("METADATA", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/*")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"  # torch without the libraries of GPUs
APP = '''"""The preview page of attn2mask. README.md says what it shows."""

import sys
import tempfile
import zipfile
from pathlib import Path

(wheel,) = Path(__file__).parent.glob("attn2mask-*.whl")
package = tempfile.mkdtemp(prefix="attn2mask-")
zipfile.ZipFile(wheel).extractall(package)
sys.path.insert(0, package)

from attn2mask.hub.preview.space import start  # noqa: E402

start({arguments})
'''


def gather_space(
    dataset: str | None, checkpoint: str | None, config_name: str | None, model: str
) -> Publication:
    """The Space of a dataset or of a checkpoint of the Hub, whose prompts `model` paints.

    Raises UserError if the arguments name both or none, if gradio is not installed, if the Hub has no such
    dataset or checkpoint, for a painter that is not on the Hub, and if the package cannot be made into a
    wheel. Without a network, a warning says what is not checked.
    """
    if (dataset is None) == (checkpoint is None):
        raise UserError("the Space shows one dataset or one checkpoint: give --dataset or --checkpoint")
    try:
        gradio = version("gradio")
    except PackageNotFoundError as error:
        extra = "pip install 'attn2mask[preview]'"
        raise UserError(f"publish space needs gradio, an optional extra: {extra}") from error
    kind, shown = ("dataset", dataset) if checkpoint is None else ("model", checkpoint)
    if config_name is not None and kind == "model":
        raise UserError("--config-name is for --dataset: a checkpoint has no configs")
    for flag, name in (
        ("--dataset" if kind == "dataset" else "--checkpoint", shown),
        ("--model", model),
    ):
        if name != "embedded" and (
            Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII)
        ):
            raise UserError(f"{flag} {name}: a Space needs a repository of the Hub: NAMESPACE/NAME")
    check_shown(kind, shown, config_name)
    arguments = {"kind": kind, "repo": shown, "config_name": config_name, "model": model}
    package = installed_package()
    wheel = f"attn2mask-{package.version}-py3-none-any.whl"
    files: dict[str, Path | bytes] = {
        "app.py": app_code(arguments).encode(),
        "requirements.txt": requirements(package).encode(),
        wheel: wheel_of(package),
    }

    def make_card(repo_id: str, old: str | None) -> "Card":
        from attn2mask.hub.cards.space import space_card

        return space_card(repo_id, kind, shown, model, gradio, python_version(), old)

    def owns(path: str, paths: Collection[str]) -> bool:
        return path in files or fnmatchcase(path, "attn2mask-*.whl")

    def loading_code(repo_id: str, revision: str | None) -> str:
        return f'gradio_client.Client("{repo_id}").predict("a dog on a sofa", 0, api_name="/paint")'

    return Publication("space", f"Publish the page of {shown}", files, make_card, owns, loading_code)


def check_shown(kind: str, repo: str, config_name: str | None) -> None:
    """Raise UserError if the Hub has no such dataset or checkpoint, or if it cannot be shown."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(library_name="attn2mask")
    try:
        with errors_in_one_line(repo):
            try:
                files = with_retries(lambda: api.list_repo_files(repo, repo_type=kind))
            except RepositoryNotFoundError as error:
                raise UserError(
                    f"the Hub has no {kind} {repo} that you may read: publish it first"
                ) from error
    except Unreachable as error:
        logger.warning("it is not checked whether the Hub has the %s %s: %s", kind, repo, error)
        return
    if kind == "dataset":
        shown_config(files, repo, config_name)
    elif "config.json" not in files:
        raise UserError(f"{repo} holds no checkpoint (it has no config.json)")


def shown_config(files: Collection[str], repo: str, config_name: str | None) -> str:
    """The config of a dataset that a Space shows, from the files of its repository: the only one, or
    `config_name`. Raises UserError if there is no such build, or no choice among several.
    """
    names = sorted(file.split("/")[0] for file in files if fnmatchcase(file, "*/build.json"))
    if not names:
        raise UserError(f"{repo} holds no build that `attn2mask publish dataset` published")
    if config_name is None and len(names) > 1:
        raise UserError(f"{repo} has several configs: choose one with --config-name: {', '.join(names)}")
    if config_name is not None and config_name not in names:
        raise UserError(f"--config-name {config_name}: {repo} has only {', '.join(names)}")
    return config_name or names[0]


def app_code(arguments: Mapping[str, Any]) -> str:
    """The code of app.py, which starts the page with these arguments."""
    given = (f"{name}={value!r}" for name, value in arguments.items() if value is not None)
    return APP.replace("{arguments}", ", ".join(given))


def requirements(package: Distribution) -> str:
    """requirements.txt: the libraries that the package needs, in the installed versions. gradio is left out,
    because the Hub installs it.
    """
    names = [
        re.match(r"[\w.-]+", line)[0]
        for line in package.requires or ()
        if not re.search(r"\bextra\s*==", line)
    ]
    # A local version such as 2.13.0+cpu is not on the package index.
    pins = sorted(f"{name}=={version(name).partition('+')[0]}" for name in names)
    return "\n".join([f"--extra-index-url {CPU_WHEELS}", *pins, ""])


def installed_package() -> Distribution:
    """This package with the metadata of its installation. Raises UserError if it is not installed.

    The folder attn2mask.egg-info, which an installation leaves in a checkout, is no such metadata.
    """
    for package in distributions(name="attn2mask"):
        if package.read_text("WHEEL"):
            return package
    raise UserError(f"the metadata of attn2mask cannot be found: {INSTALL}")


def wheel_of(package: Distribution) -> bytes:
    """The wheel of this package; equal files make equal bytes.

    Raises UserError if the package lies neither in a checkout nor where a wheel was installed.
    """
    files = {f"attn2mask/{name}": (PACKAGE / name).read_bytes() for name in package_files(package)}
    for file in package.files or ():
        folder, _, name = file.as_posix().partition("/")
        if folder.endswith(".dist-info") and any(fnmatchcase(name, pattern) for pattern in METADATA):
            files[file.as_posix()] = Path(str(package.locate_file(file))).read_bytes()
    info = f"attn2mask-{package.version}.dist-info"
    if f"{info}/METADATA" not in files:
        raise UserError(f"the metadata of attn2mask {package.version} cannot be found: {INSTALL}")
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980, so that equal files make equal wheels
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def package_files(package: Distribution) -> list[str]:
    """The files of this package that a wheel holds, by their paths in the package's folder.

    In a checkout, pyproject.toml names them, as setuptools reads it; elsewhere the list of what was installed
    does. Raises UserError if there is neither.
    """
    project = PACKAGE / "pyproject.toml"
    if project.is_file():
        settings = tomllib.loads(project.read_text("utf-8"))["tool"]["setuptools"]
        patterns = {name: ["*.py"] for name in settings["packages"]}
        for name, more in settings["package-data"].items():
            patterns[name] = patterns[name] + more
        found = {
            file.relative_to(PACKAGE).as_posix()
            for name, own in patterns.items()
            for pattern in own
            for file in PACKAGE.joinpath(*name.split(".")[1:]).glob(pattern)
            if file.is_file() and file.suffix != ".pyc"
        }
    else:
        paths = (
            file for file in package.files or () if file.parts[0] == "attn2mask" and file.suffix != ".pyc"
        )
        found = {file.relative_to("attn2mask").as_posix() for file in paths}
    if missing := sorted(name for name in found if not (PACKAGE / name).is_file()):
        raise UserError(f"{PACKAGE} lacks {missing[0]}: {INSTALL}")
    if not found:
        raise UserError(f"the files of attn2mask in {PACKAGE} are not listed: {INSTALL}")
    return sorted(found)


def _digest(content: bytes) -> str:
    """The SHA-256 as a wheel's RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def python_version() -> str:
    """The version of Python, without the last number, as the metadata of a Space have it."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"
