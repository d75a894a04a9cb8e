"""Hub client: read a repository, retry transient errors, and turn failures into one-line UserErrors.

`errors_in_one_line` also bounds the time and the size of every response.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.options import option
from attn2mask.hub.responses import LONGEST_PAUSE, TRANSIENT, Unreachable, asked_pause, without_password

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

logger = logging.getLogger(__name__)

Kind = Literal["dataset", "model", "space"]
KINDS: tuple[Kind, ...] = ("dataset", "model", "space")
# The folder of a kind in the addresses of the Hub, and a file that a publication of it holds.
FOLDERS = {"dataset": "datasets/", "model": "", "space": "spaces/"}
MARKS = {"dataset": "build.json", "model": "training_config.json", "space": "attn2mask-*.whl"}
Result = TypeVar("Result")

TRIES = 6  # how often a request is sent if the Hub responds with a status in TRANSIENT, or not at all
LONGEST_WAIT = 16  # seconds between two of them
CONFLICT = 412  # the Hub's status if the parent of a commit is no longer the newest commit
# Files that do not make a repository somebody's.
NEUTRAL_FILES = {".gitattributes", ".gitignore", "README.md", "LICENSE"}


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """How to publish: the options that all `attn2mask publish` commands share."""

    private: bool = option("make a new repository private; an existing public one is refused", False)
    revision: str | None = option(
        "branch; it is created from main if it does not exist", None, default_text="main", metavar="BRANCH"
    )
    create_pr: bool = option("open a pull request instead of writing to the branch", False)
    dry_run: bool = option("only list every file and print the card; publish nothing", False)
    force: bool = option("publish even if the repository holds files of other origin", False)


@dataclass(frozen=True)
class Target(PublishOptions):
    """Where to publish, and how.

    Attributes:
        repo_id: "owner/name", or "name" for a repository of the user.

    Raises UserError for a name that the Hub does not allow.
    """

    repo_id: str

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise UserError(
                f"the Hub does not allow the name {self.repo_id!r}: {first_line(error)}"
            ) from error
        if self.create_pr and self.revision not in (None, "main"):
            raise UserError(
                f"--create-pr opens a pull request against main: leave out --revision {self.revision}"
            )


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at one revision.

    Attributes:
        sha: the newest commit.
        files: by path.
        card: the text of README.md; None without one.
        is_new: the branch does not exist yet, and this is main.
    """

    sha: str
    files: dict[str, "RepoFile"]
    card: str | None
    private: bool
    is_new: bool


def read_repository(api: "HfApi", kind: Kind, target: Target) -> Repository | None:
    """The repository at the target's branch, or at main if the branch does not exist; None if there is no
    repository.

    Raises UserError if the name belongs to a repository of another kind (unless `force` is set), and if its
    card is not UTF-8 text.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def info(kind: str, revision: str | None = None) -> Any:
        return with_retries(lambda: api.repo_info(repo_id, repo_type=kind, revision=revision))

    repo_id = target.repo_id
    try:
        try:
            found, is_new = info(kind, target.revision), False
        except RevisionNotFoundError:
            found, is_new = info(kind), True
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        others = () if target.force else [other for other in KINDS if other != kind]
        for other in others:
            with suppress(RepositoryNotFoundError):
                info(other)
                raise UserError(
                    f"{repo_id} is a {other}, but you publish a {kind}: choose another name, or give --force"
                    f" for a {kind} of the same name"
                ) from None
        return None
    files = list_files(api, kind, repo_id, found.sha)
    card = None
    if "README.md" in files:
        file = with_retries(
            lambda: api.hf_hub_download(repo_id, "README.md", repo_type=kind, revision=found.sha)
        )
        try:
            card = Path(file).read_bytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"README.md of {repo_id} is not UTF-8 text ({error}): correct it first"
            ) from error
    return Repository(found.sha, files, card, bool(found.private), is_new)


def list_files(api: "HfApi", kind: Kind, repo_id: str, revision: str) -> dict[str, "RepoFile"]:
    """The files of a repository at one revision, by path."""
    from huggingface_hub.hf_api import RepoFile

    tree = with_retries(
        lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=kind))
    )
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def check_writable(repository: Repository | None, kind: Kind, target: Target) -> None:
    """Raise UserError for a repository that must not be written, as the target's options say."""
    from attn2mask.hub.cards.markdown import as_list, split

    repo_id = target.repo_id
    if repository is None:
        if target.create_pr:
            raise UserError(f"there is no {kind} {repo_id} for a pull request: leave out --create-pr")
        return
    if target.private and not repository.private:
        raise UserError(f"{repo_id} exists and is public: make it private in its settings first")
    is_ours = any(fnmatchcase(path.split("/")[-1], MARKS[kind]) for path in repository.files)
    if repository.card is not None:
        is_ours |= "attn2mask" in as_list(split(repository.card)[0].get("tags"))
    others = sorted(set(repository.files) - NEUTRAL_FILES)
    if others and not is_ours and not target.force:
        raise UserError(
            f"{repo_id} holds files that attn2mask did not publish, such as {others[0]}: choose another"
            " repository, or give --force to publish beside them"
        )


def create_repository(api: "HfApi", kind: Kind, target: Target) -> None:
    """Create the repository, and the branch if the target names one, unless they exist."""
    repo_id, branch, private = target.repo_id, target.revision, target.private or None
    sdk = "gradio" if kind == "space" else None
    with_retries(
        lambda: api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
    )
    if branch is not None and branch != "main":
        with_retries(lambda: api.create_branch(repo_id, repo_type=kind, branch=branch, exist_ok=True))


def token() -> str:
    """The token that huggingface_hub finds. Raises UserError without one, and for one that cannot be sent."""
    from huggingface_hub import get_token

    found = get_token()
    if not found:
        raise Unreachable("there is no token of the Hub: log in with `hf auth login`, or set HF_TOKEN")
    if not (found.isascii() and found.isprintable()) or " " in found:
        # The client's error about such a header would show the token.
        raise UserError("the token of the Hub holds characters that no token has: set it again")
    return found


def log_in(target: Target) -> tuple["HfApi", Target, dict[str, Any]]:
    """The client, the target with the full name of its repository, and the user whose token it is."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import httpx

    api = HfApi(token=token(), library_name="attn2mask")
    user = with_retries(api.whoami, no_retry=(httpx.ConnectError, httpx.ConnectTimeout))
    own_name = f"{user['name']}/{target.repo_id}"
    repo_id = target.repo_id if "/" in target.repo_id else own_name
    return api, replace(target, repo_id=repo_id), user


def address(endpoint: str, kind: Kind, repo_id: str) -> str:
    """The address of a repository's page."""
    return f"{endpoint}/{FOLDERS[kind]}{repo_id}"


def with_retries(request: Callable[[], Result], no_retry: tuple[type[Exception], ...] = ()) -> Result:
    """The result of `request`, which is called up to `TRIES` times while its errors are transient.

    Raises the last error, and those of the types `no_retry` at once.
    """
    for attempt in range(TRIES - 1):
        try:
            return request()
        except Exception as error:
            if isinstance(error, no_retry) or not is_transient(error):
                raise
            wait_after(error, attempt)
    return request()


def is_transient(error: BaseException | None) -> bool:
    """Whether a retry may help: the Hub's status is in `TRANSIENT`, there was no response, or half of one.

    Errors of uploads and downloads are judged by their cause.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    if isinstance(error, (RuntimeError, LocalEntryNotFoundError)):
        return is_transient(error.__cause__)
    return isinstance(error, (httpx.TransportError, json.JSONDecodeError))


def is_conflict(error: BaseException) -> bool:
    """Whether the Hub rejected a commit because its parent is no longer the newest commit."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and error.response.status_code == CONFLICT


def wait_after(error: BaseException, attempt: int) -> None:
    """Wait before the next attempt, as long as the Hub asks for, or twice as long each time."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    pause = min(asked_pause(headers) or 2.0**attempt, LONGEST_PAUSE if asked_pause(headers) else LONGEST_WAIT)
    logger.info("the Hub: %s; trying again in %g seconds", without_password(first_line(error)), pause)
    time.sleep(pause)


@contextmanager
def errors_in_one_line(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub's client into UserErrors, and bound what it waits for (`bounds`). Use it around
    calls of the client only.
    """
    from attn2mask.hub.bounds import bounded

    try:
        with bounded():
            yield
    except UserError:
        raise
    except Exception as error:
        if (explained := explanation(error, repo_id)) is None:
            raise
        raise type(explained)(without_password(str(explained))) from error


def explanation(error: Exception, repo_id: str) -> UserError | None:
    """What an error of the Hub's client means; None for one that it does not raise."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    endpoint = HfApi().endpoint
    again = "run the same command again; it sends only what is missing"
    if isinstance(error, (httpx.TransportError, ConnectionError, LocalEntryNotFoundError)):
        return Unreachable(f"no connection to {endpoint} ({first_line(error)}); {again}")
    if isinstance(error, HfHubHTTPError):
        status, reason = error.response.status_code, error.server_message or first_line(error)
        if status == 401:
            return UserError(f"{endpoint} does not accept the token: log in with `hf auth login` ({reason})")
        if status == 403:
            return UserError(f"no right to write to {repo_id}: {reason}")
        if status == CONFLICT:
            return UserError(f"{repo_id} is being changed by somebody else; {again}")
        if status in TRANSIENT:
            return UserError(f"{endpoint} responds with status {status}; {again}")
        return UserError(f"{repo_id}: {reason} ({status})")
    if isinstance(error, httpx.InvalidURL):
        return UserError("the address of the Hub is not a URL: correct HF_ENDPOINT")
    if isinstance(error, (httpx.RequestError, LookupError, TypeError, AttributeError, RecursionError)):
        return UserError(
            f"{endpoint} does not respond as the Hub does ({type(error).__name__}: {first_line(error)}):"
            " check HF_ENDPOINT"
        )
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        # An upload's error names the file; its cause says what happened.
        return UserError(f"{error} ({first_line(error)}); {again}")
    if isinstance(error, ValueError):  # what the Hub says about a card's metadata, or an unreadable response
        return UserError(f"{repo_id}: {' '.join(str(error).split())}")
    return None
