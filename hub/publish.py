"""`attn2mask publish`: datasets, a model or a page become a repository of the Hub, by one commit or not at
all.

    attn2mask publish dataset data/voc data/cityscapes org/attn2mask
    attn2mask publish model runs/r50 org/attn2mask-deeplabv3plus-resnet50 --metrics metrics.json
    attn2mask publish space org/attn2mask-voc-rows --dataset org/attn2mask-voc

The files are gathered and checked first, and then compared with those of the repository. Only files that
differ are sent. Files of an earlier publication that no longer exist are removed by the same commit. The
commit names its parent, so that the Hub rejects it if somebody else committed in between; then the files are
compared again. Before the commit nobody sees any of the files. Files that an interrupted upload has sent
already are not sent again. After the commit, the files in the repository are compared with those that were
sent.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2.filters import do_filesizeformat

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import option
from attn2mask.hub.artifacts import Publication, gather_builds, gather_model
from attn2mask.hub.hub_client import (
    TRIES,
    Kind,
    PublishOptions,
    Repository,
    Target,
    address,
    check_writable,
    create_repository,
    errors_in_one_line,
    is_conflict,
    is_transient,
    list_files,
    log_in,
    read_repository,
    token,
    wait_after,
    with_retries,
)
from attn2mask.hub.responses import Unreachable, without_password

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    from attn2mask.hub.cards.markdown import Card

logger = logging.getLogger(__name__)

NAMED = 5  # files that an error about files names

_REPO = "repository on the Hub: NAMESPACE/NAME, or NAME for one of your own"


@dataclass(frozen=True)
class PublishDatasetConfig(PublishOptions):
    """The options of `attn2mask publish dataset`."""

    builds: list[str] = option("datasets that `attn2mask build` made", positional=True, metavar="BUILD")
    repo: str = option(_REPO, positional=True)
    config_name: str | None = option(
        "name of the config, for a single build",
        None,
        default_text="the name of the class table",
        metavar="NAME",
    )


@dataclass(frozen=True)
class PublishModelConfig(PublishOptions):
    """The options of `attn2mask publish model`."""

    dir: str = option("folder that `attn2mask train` or `attn2mask adapt` wrote", positional=True)
    repo: str = option(_REPO, positional=True)
    metrics: list[str] | None = option(
        "reports that `attn2mask evaluate` wrote", None, default_text="metrics*.json in DIR", metavar="FILE"
    )
    license: str | None = option(
        "license of the model, by the Hub's name of it, such as apache-2.0",
        None,
        default_text="what the records tell, or unknown",
        metavar="NAME",
    )
    dataset: list[str] | None = option(
        "datasets of the Hub that a segmenter was trained on, beside those of its records",
        None,
        default_text="those of the records",
        metavar="REPO",
    )


@dataclass(frozen=True)
class PublishSpaceConfig(PublishOptions):
    """The options of `attn2mask publish space`."""

    repo: str = option(_REPO, positional=True)
    dataset: str | None = option("dataset of the Hub whose rows the Space shows", None, metavar="REPO")
    checkpoint: str | None = option(
        "segmenter of the Hub that the Space tries on images", None, metavar="REPO"
    )
    config_name: str | None = option(
        "config of the dataset", None, default_text="the only one", metavar="NAME"
    )
    model: str = option("painter of the prompts: embedded, or a model of the Hub", "embedded")


def run_dataset(config: PublishDatasetConfig) -> None:
    """Run `attn2mask publish dataset`. Raises UserError for what the user can correct."""
    builds = [Path(build) for build in config.builds]
    publish(partial(gather_builds, builds, config.config_name), target_of(config))


def run_model(config: PublishModelConfig) -> None:
    """Run `attn2mask publish model`. Raises UserError for what the user can correct."""
    metrics = [Path(file) for file in config.metrics or ()]
    gather = partial(gather_model, Path(config.dir), metrics, config.license, config.dataset or ())
    publish(gather, target_of(config))


def run_space(config: PublishSpaceConfig) -> None:
    """Run `attn2mask publish space`. Raises UserError for what the user can correct."""
    from attn2mask.hub.space import gather_space

    gather = partial(gather_space, config.dataset, config.checkpoint, config.config_name, config.model)
    publish(gather, target_of(config))


def target_of(config: PublishDatasetConfig | PublishModelConfig | PublishSpaceConfig) -> Target:
    """The target that the options of a command name."""
    return Target(config.repo, **{f.name: getattr(config, f.name) for f in fields(PublishOptions)})


def check_access(kind: Kind, target: Target) -> None:
    """Raise UserError, before hours of work, if publishing to `target` cannot succeed."""
    with errors_in_one_line(target.repo_id):
        api, target, user = log_in(target)
        repository = read_repository(api, kind, target)
        if repository is not None:
            check_writable(repository, kind, target)
            with_retries(lambda: api.auth_check(target.repo_id, repo_type=kind, write=True))
            return
        namespaces = {user["name"], *(org["name"] for org in user.get("orgs", ()))}
        if target.repo_id.split("/")[0] not in namespaces:
            raise UserError(
                f"no right to write to {target.repo_id}: {user['name']} may write to"
                f" {', '.join(sorted(namespaces))}"
            )


def publish(gather: Callable[[], Publication], target: Target) -> str:
    """Make the repository hold the publication that `gather` returns. Other configs of a dataset stay.

    Returns the address of the commit or of the pull request. Raises UserError for a repository that cannot
    be written or does not keep every file, for a Hub that does not respond, and what `gather` raises.
    """
    if target.dry_run:
        return list_changes(gather(), target)
    token()  # before the work of gathering
    publication = gather()
    kind, started, sent = publication.kind, time.monotonic(), None
    make_card = cache(publication.make_card)
    with errors_in_one_line(target.repo_id):
        api, target, _ = log_in(target)
    for attempt in range(TRIES):
        with errors_in_one_line(target.repo_id):
            repository = read_repository(api, kind, target)
            check_writable(repository, kind, target)
            if repository is None or repository.is_new:
                create_repository(api, kind, target)
                repository = read_repository(api, kind, target)
        card = make_card(target.repo_id, repository.card)
        added, removed = compare(publication, card, repository)
        if not added and not removed:
            url = f"{address(api.endpoint, kind, target.repo_id)}/commit/{repository.sha}"
            break
        with errors_in_one_line(target.repo_id):
            if target.create_pr and (url := equal_pull_request(api, publication, card, target)):
                break
            sent = added, removed
            try:
                made = commit(api, publication, target, repository.sha, added, removed)
            except Exception as error:
                # If the response to a commit was lost, reading the repository again shows if it was made.
                if attempt == TRIES - 1 or not (is_conflict(error) or is_transient(error)):
                    raise
                wait_after(error, attempt)
                continue
            there = list_files(api, kind, target.repo_id, made.oid)
            check_kept(target, added, [file for file in added if differs(file, there)])
            url = made.pr_url or made.commit_url
            break

    url = without_password(url)
    count = len(publication.files) + len(card.files) + 1
    if sent is None:
        print(f"{target.repo_id} already holds these {count} files; nothing is new: {url}")
    else:
        added, removed = sent
        print(
            f"published {target.repo_id}: {len(added)} files ({total_size(added)}) new or changed,"
            f" {count - len(added)} unchanged, {len(removed)} removed,"
            f" in {time.monotonic() - started:.0f} s: {url}"
        )
    print(f"next: {publication.loading_code(target.repo_id, target.revision)}")
    return url


def commit(
    api: "HfApi",
    publication: Publication,
    target: Target,
    parent: str,
    added: list["CommitOperationAdd"],
    removed: list["CommitOperationDelete"],
) -> "CommitInfo":
    """Upload the files and commit them on top of `parent`.

    Raises UserError, before the commit, if the repository would ignore a file.
    """
    place: dict[str, Any] = {
        "repo_type": publication.kind,
        "revision": target.revision,
        "create_pr": target.create_pr,
    }
    api.preupload_lfs_files(target.repo_id, added, **place, free_memory=False)
    check_kept(target, added, [file for file in added if file._should_ignore])
    return api.create_commit(
        target.repo_id,
        [*added, *removed],
        **place,
        parent_commit=parent,
        commit_message=publication.summary,
    )


def check_kept(
    target: Target, sent: Sequence["CommitOperationAdd"], lost: Sequence["CommitOperationAdd"]
) -> None:
    """Raise UserError if the repository does not keep the files `lost`, which are some of those `sent`."""
    if not lost:
        return
    names = ", ".join(file.path_in_repo for file in lost[:NAMED])
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    raise UserError(
        f"{target.repo_id} does not keep {len(lost)} of {len(sent)} files as they were sent: {names}{more}. A"
        " .gitignore in the repository probably excludes them: correct it, and run the same command again"
    )


def list_changes(publication: Publication, target: Target) -> str:
    """Print what a publication would do with each file, and the card. Returns the address of the repository.

    Without a token or a network, the files are not compared with those of the repository.
    """
    from huggingface_hub import HfApi

    repository = None
    try:
        with errors_in_one_line(target.repo_id):
            api, target, _ = log_in(target)
            repository = read_repository(api, publication.kind, target)
        check_writable(repository, publication.kind, target)
    except Unreachable as error:
        logger.warning("the files are not compared with those of %s: %s", target.repo_id, error)
    existing = {} if repository is None else repository.files
    card = publication.make_card(target.repo_id, None if repository is None else repository.card)
    added, removed = compare(publication, card, repository)
    sizes = {file.path_in_repo: file.upload_info.size for file in added}
    rows = [("changed" if path in existing else "new", path, size) for path, size in sizes.items()]
    kept = {*publication.files, *card.files, "README.md"} - set(sizes)
    rows += [("same", path, existing[path].size) for path in kept]
    rows += [("removed", file.path_in_repo, existing[file.path_in_repo].size) for file in removed]
    for state, path, size in sorted(rows, key=lambda row: row[1]):
        print(f"{state:8}{do_filesizeformat(size):>10}  {path}")
    print(f"\nREADME.md:\n\n{card.text}")
    print(
        f"nothing was published: {len(added)} files ({total_size(added)}) to send, {len(removed)} to remove"
    )
    return without_password(address(HfApi().endpoint, publication.kind, target.repo_id))


def compare(
    publication: Publication, card: "Card", repository: Repository | None
) -> tuple[list["CommitOperationAdd"], list["CommitOperationDelete"]]:
    """The files that are new or differ from those of the repository, and those that are no longer needed.

    A file that the card names is never removed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    existing = {} if repository is None else repository.files
    contents = {**publication.files, **card.files, "README.md": card.text.encode()}
    wanted = [CommitOperationAdd(path, content) for path, content in contents.items()]
    added = [file for file in wanted if differs(file, existing)]
    removed = [
        CommitOperationDelete(path)
        for path in sorted(existing)
        if path not in contents and publication.owns(path, existing) and path not in card.text
    ]
    return added, removed


def differs(file: "CommitOperationAdd", existing: dict[str, "RepoFile"]) -> bool:
    """Whether a file differs in size or checksum from the repository's file of the same name, or has none."""
    from huggingface_hub.utils.sha import git_hash

    other = existing.get(file.path_in_repo)
    if other is None or file.upload_info.size != other.size:
        return True
    if other.lfs is not None:
        return file.upload_info.sha256.hex() != other.lfs.sha256
    with file.as_file() as content:
        return git_hash(content.read()) != other.blob_id


def equal_pull_request(api: "HfApi", publication: Publication, card: "Card", target: Target) -> str | None:
    """The address of an open pull request that already holds exactly this publication; None without one."""
    kind = publication.kind
    wanted: dict[str, Any] = {
        "repo_type": kind,
        "discussion_type": "pull_request",
        "discussion_status": "open",
    }
    for request in with_retries(lambda: list(api.get_repo_discussions(target.repo_id, **wanted))):
        if request.title == publication.summary:
            branch = replace(target, create_pr=False, revision=f"refs/pr/{request.num}")
            repository = read_repository(api, kind, branch)
            if repository is not None and compare(publication, card, repository) == ([], []):
                return request.url
    return None


def total_size(files: "list[CommitOperationAdd]") -> str:
    """The size of all files together, as text."""
    return do_filesizeformat(sum(file.upload_info.size for file in files))
