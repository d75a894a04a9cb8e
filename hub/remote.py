"""The Hub as seen from here: what a repository holds, asked patiently; one line where it cannot be had."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from attn2mask.builders.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

Kind = Literal["dataset", "model"]
Answer = TypeVar("Answer")

TRIES, LONGEST_WAIT = 6, 16  # of what the Hub answers with 429 or 5xx, or not at all; seconds between them
TRANSIENT = (408, 429, 500, 502, 503, 504)
CHANGED = 412  # the Hub's answer where the parent of a commit is not the newest one any more


# What a repository may hold without being anybody's data.
BARE = {".gitattributes", ".gitignore", "README.md", "LICENSE"}


@dataclass(frozen=True)
class Remote:
    """A revision of a repository; `is_new` where its branch is still to be made, from main."""

    sha: str
    files: dict[str, "RepoFile"]
    card: str | None
    private: bool
    is_new: bool


def look(api: "HfApi", kind: Kind, repo_id: str, revision: str | None, force: bool = False) -> Remote | None:
    """What a repository holds at a branch, or at main where the branch is still to be made; None where there
    is no repository.

    Raises UserError where the name is that of a repository of another kind, unless `force`.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    def info(kind: str, revision: str | None = None) -> Any:
        return patiently(lambda: api.repo_info(repo_id, repo_type=kind, revision=revision))

    try:
        try:
            found, is_new = info(kind, revision), False
        except RevisionNotFoundError:
            found, is_new = info(kind), True
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        for other in {"model", "dataset", "space"} - {kind} if not force else ():
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
        card = Path(file).read_bytes().decode(errors="replace")
    return Remote(found.sha, files, card, bool(found.private), is_new)


def refuse(
    remote: Remote | None,
    kind: Kind,
    repo_id: str,
    private: bool = False,
    create_pr: bool = False,
    force: bool = False,
) -> None:
    """Raises UserError for a repository that should not be written."""
    from huggingface_hub import RepoCard

    if remote is None:
        if create_pr:
            raise UserError(f"there is no {kind} {repo_id} to open a pull request in: leave out --create-pr")
        return
    if private and not remote.private:
        raise UserError(f"{repo_id} is there already, and public: make it private in its settings first")
    mark = "build.json" if kind == "dataset" else "training_config.json"
    is_ours = any(path.split("/")[-1] == mark for path in remote.files)
    if remote.card is not None:
        is_ours |= "attn2mask" in (RepoCard(remote.card, ignore_metadata_errors=True).data.get("tags") or ())
    others = sorted(set(remote.files) - BARE)
    if others and not is_ours and not force:
        raise UserError(
            f"{repo_id} holds what attn2mask did not publish, such as {others[0]}: choose another repository,"
            " or give --force to publish beside it"
        )


def make_room(api: "HfApi", kind: Kind, repo_id: str, private: bool, branch: str | None) -> None:
    """Make the repository and, where it is named, the branch, unless they are there."""
    patiently(lambda: api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True))
    if branch is not None and branch != "main":
        patiently(lambda: api.create_branch(repo_id, repo_type=kind, branch=branch, exist_ok=True))


class Unreachable(UserError):
    """No token, or no network."""


def check_name(repo_id: str, needs_token: bool = True) -> None:
    """Raises UserError for a name that the Hub does not allow, and where there is no token."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"the Hub does not allow the name {repo_id!r}: {first_line(error)}") from error
    if needs_token:
        token()


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


def log_in(repo_id: str) -> tuple["HfApi", str, dict[str, Any]]:
    """The client, the repository's full name, and who the token belongs to."""
    import httpx2
    from huggingface_hub import HfApi

    api = HfApi(token=token(), library_name="attn2mask")
    me = patiently(api.whoami, at_once=(httpx2.ConnectError,))
    return api, repo_id if "/" in repo_id else f"{me['name']}/{repo_id}", me


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
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    if isinstance(error, (RuntimeError, LocalEntryNotFoundError)):
        return is_transient(error.__cause__)
    return isinstance(error, (httpx2.TransportError, json.JSONDecodeError))


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
    """Turns what the clients raise into UserError, with one line."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    endpoint = HfApi().endpoint
    again = "the same command tries again, and sends only what is missing"
    try:
        yield
    except UserError:
        raise
    except (httpx2.TransportError, ConnectionError, LocalEntryNotFoundError) as error:
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
    except RuntimeError as error:  # of an upload, which wraps its cause
        raise UserError(
            f"{first_line(error)} {first_line(error.__cause__) if error.__cause__ else ''}; {again}"
        ) from error
    except ValueError as error:
        raise UserError(f"{repo_id}: {' '.join(str(error).split())}") from error


def first_line(error: object) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
