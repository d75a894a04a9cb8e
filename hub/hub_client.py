"""The Hub as seen from here: what a repository holds, asked patiently; one line where it cannot be had."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from attn2mask.builders.errors import UserError
from attn2mask.hub.cards.markdown import as_list, split

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

Kind = Literal["dataset", "model"]
KINDS = ("dataset", "model", "space")  # what a name may belong to
Answer = TypeVar("Answer")

TRIES, LONGEST_WAIT = 6, 16  # of what the Hub answers with 429 or 5xx, or not at all; seconds between them
TRANSIENT = (408, 429, 500, 502, 503, 504)
CHANGED = 412  # the Hub's answer where the parent of a commit is not the newest one any more
# What a repository may hold without being anybody's data.
BARE = {".gitattributes", ".gitignore", "README.md", "LICENSE"}


@dataclass(frozen=True)
class Target:
    """Where to publish, and how.

    Attributes:
        repo_id: "owner/name", or a name alone for a repository of one's own.
        private: of a repository that is made now; a public one is refused.
        revision: the branch, made from main where it is not there; main unless given.
        create_pr: open a pull request instead.
        dry_run: only print every file and the card.
        force: publish into a repository that holds what is not this project's.

    Raises UserError for a name that the Hub does not allow.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    dry_run: bool = False
    force: bool = False

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
class Remote:
    """A revision of a repository; `is_new` where its branch is still to be made, from main."""

    sha: str
    files: dict[str, "RepoFile"]
    card: str | None
    private: bool
    is_new: bool


def look(api: "HfApi", kind: Kind, target: Target) -> Remote | None:
    """What a repository holds at a branch, or at main where the branch is still to be made; None where there
    is no repository.

    Raises UserError where the name is that of a repository of another kind, unless forced, and where its card
    is no text.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    def info(kind: str, revision: str | None = None) -> Any:
        return patiently(lambda: api.repo_info(repo_id, repo_type=kind, revision=revision))

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
                    f"{repo_id} is a {other}, and you publish a {kind}: choose another name, or give --force"
                    f" for a {kind} of the same name"
                ) from None
        return None
    tree = patiently(
        lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=found.sha, repo_type=kind))
    )
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    card = None
    if "README.md" in files:
        file = patiently(
            lambda: api.hf_hub_download(repo_id, "README.md", repo_type=kind, revision=found.sha)
        )
        try:
            card = Path(file).read_bytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"README.md of {repo_id} is no UTF-8 text ({error}): mend it first") from error
    return Remote(found.sha, files, card, bool(found.private), is_new)


def refuse(remote: Remote | None, kind: Kind, target: Target) -> None:
    """Raises UserError for a repository that should not be written."""
    repo_id = target.repo_id
    if remote is None:
        if target.create_pr:
            raise UserError(f"there is no {kind} {repo_id} to open a pull request in: leave out --create-pr")
        return
    if target.private and not remote.private:
        raise UserError(f"{repo_id} is there already, and public: make it private in its settings first")
    mark = "build.json" if kind == "dataset" else "training_config.json"
    is_ours = any(path.split("/")[-1] == mark for path in remote.files)
    if remote.card is not None:
        is_ours |= "attn2mask" in as_list(split(remote.card)[0].get("tags"))
    others = sorted(set(remote.files) - BARE)
    if others and not is_ours and not target.force:
        raise UserError(
            f"{repo_id} holds what attn2mask did not publish, such as {others[0]}: choose another repository,"
            " or give --force to publish beside it"
        )


def make_room(api: "HfApi", kind: Kind, target: Target) -> None:
    """Make the repository and, where it is named, the branch, unless they are there."""
    repo_id, branch, private = target.repo_id, target.revision, target.private or None
    patiently(lambda: api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True))
    if branch is not None and branch != "main":
        patiently(lambda: api.create_branch(repo_id, repo_type=kind, branch=branch, exist_ok=True))


class Unreachable(UserError):
    """No token, or no network."""


def token() -> str:
    """The token that huggingface_hub finds. Raises UserError without one."""
    from huggingface_hub import get_token

    found = get_token()
    if not found:
        raise Unreachable("no token of the Hub: log in with `hf auth login`, or set HF_TOKEN")
    if not (found.isascii() and found.isprintable()) or " " in found:
        # Clients show a header that can't be sent, and the token in it.
        raise UserError("the token of the Hub holds characters that no token has: set it anew")
    return found


def log_in(target: Target) -> tuple["HfApi", Target, dict[str, Any]]:
    """The client, the target with the repository's full name, and who the token belongs to."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import httpx

    api = HfApi(token=token(), library_name="attn2mask")
    me = patiently(api.whoami, at_once=(httpx.ConnectError,))
    own = target.repo_id if "/" in target.repo_id else f"{me['name']}/{target.repo_id}"
    return api, replace(target, repo_id=own), me


def address(endpoint: str, kind: Kind, repo_id: str) -> str:
    """Where a browser finds a repository."""
    return f"{endpoint}/{'datasets/' * (kind == 'dataset')}{repo_id}"


def patiently(ask: Callable[[], Answer], at_once: tuple[type[Exception], ...] = ()) -> Answer:
    """Ask the Hub up to `TRIES` times, where it is busy or the connection breaks; raises what it ends with.

    `at_once`: what is raised without another try.
    """
    for attempt in range(TRIES - 1):
        try:
            return ask()
        except Exception as error:
            if isinstance(error, at_once) or not is_transient(error):
                raise
            time.sleep(pause(attempt, error))
    return ask()


def is_transient(error: BaseException | None) -> bool:
    """Whether asking again may help: an answer in `TRANSIENT`, none at all, or one that is not whole.

    Uploads and downloads wrap what stopped them.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    if isinstance(error, (RuntimeError, LocalEntryNotFoundError)):
        return is_transient(error.__cause__)
    return isinstance(error, (httpx.TransportError, json.JSONDecodeError))


def is_changed(error: BaseException) -> bool:
    """Whether a commit was refused since its parent is not the newest one any more."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and error.response.status_code == CHANGED


def pause(attempt: int, error: BaseException) -> float:
    """Seconds to wait: what the Hub asks for, or twice as long as before."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return float(asked) if asked.isdigit() else min(2.0**attempt, LONGEST_WAIT)


@contextmanager
def one_line(repo_id: str) -> Iterator[None]:
    """Around calls of the client alone: turns what it raises into UserError, with one line."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    endpoint = HfApi().endpoint
    again = "the same command tries again, and sends only what is missing"
    try:
        yield
    except (httpx.TransportError, ConnectionError, LocalEntryNotFoundError) as error:
        reason = first_line(error.__cause__ or error)
        raise Unreachable(f"no connection to {endpoint} ({reason}); {again}") from error
    except HfHubHTTPError as error:
        status, said = error.response.status_code, first_line(error.server_message or error)
        if status == 401:
            message = f"{endpoint} does not take the token: log in with `hf auth login` ({said})"
        elif status == 403:
            message = f"no right to write to {repo_id}: {said}"
        elif status == CHANGED:
            message = f"{repo_id} is being changed by somebody else; {again}"
        elif status in TRANSIENT:
            message = f"{endpoint} answers {status}; {again}"
        else:
            message = f"{repo_id}: {said} ({status})"
        raise UserError(message) from error
    except RuntimeError as error:
        if error.__cause__ is None:
            raise
        # Of an upload, which wraps what stopped it.
        raise UserError(f"{first_line(error)} {first_line(error.__cause__)}; {again}") from error
    except ValueError as error:  # what the Hub says of a card's metadata, or an answer that can't be read
        raise UserError(f"{repo_id}: {' '.join(str(error).split())}") from error


def first_line(error: object) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
