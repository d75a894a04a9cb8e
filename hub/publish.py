"""`attn2mask publish`: builds or a checkpoint become a repository of the Hub, by one commit or not at all.

    attn2mask publish dataset data/voc data/cityscapes org/attn2mask
    attn2mask publish model runs/r50 org/attn2mask-deeplabv3plus-resnet50 --metrics metrics.json

What is published is gathered and checked first, then held against what the repository has: only files that
differ are sent, and those of a former publishing that are no longer there go in the same commit. The commit
names the one that it was planned upon, so the Hub takes it only where nothing happened in between; otherwise
it is planned anew. Until it is taken nobody sees any of it, and what a broken upload left behind on the
server is not sent again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import run_command
from attn2mask.hub.artifacts import Publication, gather_builds, gather_model
from attn2mask.hub.hub_client import (
    TRIES,
    Kind,
    Remote,
    Target,
    Unreachable,
    address,
    is_changed,
    is_transient,
    log_in,
    look,
    make_room,
    one_line,
    patiently,
    pause,
    refuse,
    token,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    from attn2mask.hub.cards.markdown import Card


def publish_dataset(builds: Sequence[Path], target: Target, config: str | None = None) -> str:
    """Publish complete builds as the configs of one dataset; those that it has besides stay.

    Args:
        config: the name of the config, for one build; the name of its class table otherwise.

    Returns the address of the commit, or the pull request. Raises UserError, with one line, for a build that
    is incomplete or damaged, a repository that must not or cannot be written, and a Hub that does not answer.
    """
    return publish(lambda: gather_builds(builds, config), target)


def publish_model(folder: Path, target: Target, metrics: Sequence[Path] = ()) -> str:
    """Publish a checkpoint with both its networks, or a painter's LoRA adapter.

    Args:
        metrics: what `attn2mask evaluate` wrote; the folder's metrics*.json unless given.

    Returns and raises as `publish_dataset`; UserError also for a folder that does not load.
    """
    return publish(lambda: gather_model(folder, metrics), target)


def check(kind: Kind, target: Target) -> None:
    """Raises UserError, before hours of work, where publishing to `target` cannot succeed."""
    with one_line(target.repo_id):
        api, target, me = log_in(target)
        remote = look(api, kind, target)
        if remote is not None:
            refuse(remote, kind, target)
            patiently(lambda: api.auth_check(target.repo_id, repo_type=kind, write=True))
            return
        own = {me["name"], *(org["name"] for org in me.get("orgs", ()))}
        if target.repo_id.split("/")[0] not in own:
            raise UserError(
                f"no right to write to {target.repo_id}: {me['name']} may write to {', '.join(sorted(own))}"
            )


def publish(gather: Callable[[], Publication], target: Target) -> str:
    """Bring the repository to hold what `gather` finds, as `publish_dataset` says."""
    if target.dry_run:
        return rehearse(gather(), target)
    token()  # before the work of gathering
    publication = gather()
    kind, started, sent = publication.kind, time.monotonic(), None
    card = cache(publication.card)
    with one_line(target.repo_id):
        api, target, _ = log_in(target)
    for attempt in range(TRIES):
        with one_line(target.repo_id):
            remote = look(api, kind, target)
            refuse(remote, kind, target)
            if remote is None or remote.is_new:
                make_room(api, kind, target)
                remote = look(api, kind, target)
        made = card(target.repo_id, remote.card)
        added, removed = plan(publication, made, remote)
        if not added and not removed:
            url = f"{address(api.endpoint, kind, target.repo_id)}/commit/{remote.sha}"
            break
        with one_line(target.repo_id):
            if target.create_pr and (url := open_request(api, publication, made, target)):
                break
            sent = added, removed
            try:
                url = commit(api, publication, target, remote.sha, added, removed)
                break
            except Exception as error:
                # Where the answer to a commit was lost, the next look shows whether it has been made.
                if attempt == TRIES - 1 or not (is_changed(error) or is_transient(error)):
                    raise
                time.sleep(pause(attempt, error))

    count = len(publication.files) + len(made.files) + 1
    if sent is None:
        print(f"{target.repo_id} holds these {count} files already, nothing is new: {url}")
    else:
        added, removed = sent
        print(
            f"published {target.repo_id}: {len(added)} files ({size(*added)}) new or changed,"
            f" {count - len(added)} as they were, {len(removed)} removed,"
            f" in {time.monotonic() - started:.0f} s: {url}"
        )
    print(f"next: {publication.use(target.repo_id, target.revision)}")
    return url


def commit(
    api: "HfApi",
    publication: Publication,
    target: Target,
    parent: str,
    added: list["CommitOperationAdd"],
    removed: list["CommitOperationDelete"],
) -> str:
    """Send the files, with the client's own patience, then commit them; returns the address of that."""
    where = {"repo_type": publication.kind, "revision": target.revision, "create_pr": target.create_pr}
    api.preupload_lfs_files(target.repo_id, added, **where, free_memory=False)
    made = api.create_commit(
        target.repo_id,
        [*added, *removed],
        **where,
        parent_commit=parent,
        commit_message=publication.summary,
    )
    return made.pr_url or made.commit_url


def rehearse(publication: Publication, target: Target) -> str:
    """Print every file with what would become of it, and the card; returns the repository's address.

    Without token or network the files are not compared with what is there.
    """
    from huggingface_hub import HfApi

    remote = None
    try:
        with one_line(target.repo_id):
            api, target, _ = log_in(target)
            remote = look(api, publication.kind, target)
        refuse(remote, publication.kind, target)
    except Unreachable as error:
        print(f"not compared with what is there: {error}")
    there = {} if remote is None else remote.files
    card = publication.card(target.repo_id, None if remote is None else remote.card)
    added, removed = plan(publication, card, remote)
    sizes = {file.path_in_repo: file.upload_info.size for file in added}
    rows = [("changed" if path in there else "new", path, count) for path, count in sizes.items()]
    kept = {*publication.files, *card.files, "README.md"} - set(sizes)
    rows += [("same", path, there[path].size) for path in kept]
    rows += [("removed", file.path_in_repo, there[file.path_in_repo].size) for file in removed]
    for state, path, count in sorted(rows, key=lambda row: row[1]):
        print(f"{state:8}{readable(count):>10}  {path}")
    print(f"\nREADME.md:\n\n{card.text}")
    print(f"nothing was published: {len(added)} files ({size(*added)}) to send, {len(removed)} to remove")
    return address(HfApi().endpoint, publication.kind, target.repo_id)


def plan(
    publication: Publication, card: "Card", remote: Remote | None
) -> tuple[list["CommitOperationAdd"], list["CommitOperationDelete"]]:
    """The files that are new or differ from those of the repository, and those that are no longer needed.

    Nothing that the card speaks of is removed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = {} if remote is None else remote.files
    contents = {**publication.files, **card.files, "README.md": card.text.encode()}
    wanted = [CommitOperationAdd(path, content) for path, content in contents.items()]
    added = [file for file in wanted if file.path_in_repo not in there or differs(file, there)]
    removed = [
        CommitOperationDelete(path)
        for path in sorted(there)
        if path not in contents and publication.owns(path, there) and path not in card.text
    ]
    return added, removed


def differs(file: "CommitOperationAdd", there: dict[str, "RepoFile"]) -> bool:
    """Whether a file is not the one that the repository has under its name, by size and checksum."""
    from huggingface_hub.utils.sha import git_hash

    other = there[file.path_in_repo]
    if file.upload_info.size != other.size:
        return True
    if other.lfs is not None:
        return file.upload_info.sha256.hex() != other.lfs.sha256
    with file.as_file() as content:
        return git_hash(content.read()) != other.blob_id


def open_request(api: "HfApi", publication: Publication, card: "Card", target: Target) -> str | None:
    """The address of an open pull request that holds just this publication already, if there is one."""
    kind = publication.kind
    wanted = {"repo_type": kind, "discussion_type": "pull_request", "discussion_status": "open"}
    for request in patiently(lambda: list(api.get_repo_discussions(target.repo_id, **wanted))):
        if request.title == publication.summary:
            there = replace(target, create_pr=False, revision=f"refs/pr/{request.num}")
            remote = look(api, kind, there)
            if remote is not None and plan(publication, card, remote) == ([], []):
                return request.url
    return None


def size(*files: "CommitOperationAdd") -> str:
    """That of all files, for people."""
    return readable(sum(file.upload_info.size for file in files))


def readable(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class Parser(argparse.ArgumentParser):
    """Mistakes are UserErrors; options may stand anywhere."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see `{self.prog} --help`)")


USAGE = """usage: attn2mask publish dataset DIR [DIR ...] REPO ...
       attn2mask publish model DIR REPO ...

Publishes builds as the configs of one dataset, or a checkpoint as a model, in one commit.
`attn2mask publish dataset --help` and `attn2mask publish model --help` list the options."""


def parser(kind: Kind) -> Parser:
    """The options of `attn2mask publish KIND`."""
    parser = Parser(f"attn2mask publish {kind}", allow_abbrev=False)
    if kind == "dataset":
        parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="made by `attn2mask build`")
    else:
        parser.add_argument("folder", type=Path, metavar="DIR", help="what training wrote")
    parser.add_argument("repo_id", metavar="REPO", help="NAMESPACE/NAME on the Hub")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch, made where it is not there (main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--dry-run", action="store_true", help="list every file and show the card, no more")
    parser.add_argument("--force", action="store_true", help="even beside what others put there")
    if kind == "dataset":
        parser.add_argument("--config", metavar="NAME", help="name of the config (that of the class table)")
    else:
        parser.add_argument(
            "--metrics", type=Path, nargs="+", default=(), metavar="FILE",
            help="what `attn2mask evaluate` wrote (metrics*.json in DIR)",
        )  # fmt: skip
    return parser


def run(argv: Sequence[str]) -> None:
    """`attn2mask publish`. Raises UserError for what the user can mend."""
    kind, *rest = argv
    if kind not in ("dataset", "model"):
        raise UserError(f"`attn2mask publish` takes `dataset` or `model` first, not {kind!r}")
    given = vars(parser(kind).parse_intermixed_args(rest))
    target = Target(**{field.name: given.pop(field.name) for field in fields(Target)})
    if kind == "dataset":
        publish_dataset(given["folders"], target, given["config"])
    else:
        publish_model(given["folder"], target, given["metrics"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run `attn2mask publish ARGV`; returns the exit status."""
    argv = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    return run_command(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
