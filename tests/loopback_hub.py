"""A Hub on 127.0.0.1: all that unmodified `huggingface_hub`, `datasets` and `transformers` ask for.

    with LoopbackHub() as hub:
        environment = hub.environment(home)   # for a fresh process; HF_HOME is `home`

It keeps repositories in memory as trees of commits, knows users by their tokens, and writes down every
request. `hub.fault = Fault(n, "cut")` lets it fail at the n-th request from then on.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopbackMARKED0123456789abcdefghij"  # of user "me", who may write to "me" and "org"
READER = "hf_loopbackREADER0123456789abcdefghij"  # of user "guest", who may read
USERS = {
    TOKEN: {"name": "me", "orgs": [{"name": "org"}]},
    READER: {"name": "guest", "orgs": []},
}
LFS = ("*.parquet", "*.safetensors", "*.png", "*.bin")
PLURAL = {"models": "model", "datasets": "dataset", "spaces": "space"}
LARGEST_REGULAR = 10_000_000
# The card that the Hub writes into a new Space.
SPACE_CARD = """---
title: {title}
emoji: \U0001f40e
colorFrom: pink
colorTo: gray
sdk: {sdk}
app_file: app.py
pinned: false
---

Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference
"""


@dataclass(frozen=True)
class File:
    """A file of a commit; large ones are stored once, by their SHA-256."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git stores in the place of a large file."""
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self) -> str:
        """What `git hash-object` says."""
        stored = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    tree: dict[str, File]


@dataclass
class Repo:
    """`refs`: branches by their name, pull requests as refs/pr/N; `requests`: the titles of these by N."""

    kind: str
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    requests: dict[int, str] = field(default_factory=dict)

    def add(self, ref: str, tree: dict[str, File], title: str, parent: str | None) -> Commit:
        names = {path: file.oid for path, file in tree.items()}
        text = json.dumps([names, title, parent, len(self.commits)])
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, tree)
        self.commits[commit.sha], self.refs[ref] = commit, commit.sha
        return commit

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision.removeprefix("refs/heads/"), revision))


@dataclass(frozen=True)
class Request:
    """As it came in; `status` is that of the answer, 0 where there was none."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int


@dataclass
class Fault:
    """At the `at`-th request from now, and `times` - 1 more: an answer of 429 or 500; the connection cut
    before the request is heard, or after it has been obeyed, so that its answer is lost.
    """

    at: int
    kind: Literal["429", "500", "cut", "lost"]
    times: int = 1
    seen: int = 0

    def strikes(self) -> bool:
        self.seen += 1
        return self.at <= self.seen < self.at + self.times


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, error: str, code: str | None = None, url: str | None = None):
        super().__init__(error)
        self.status, self.error, self.code, self.url = status, error, code, url


class LoopbackHub:
    """The server; a context manager that runs it in a thread."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.fault: Fault | None = None
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.lock = threading.RLock()

    def __enter__(self) -> Self:
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Of a process whose Hub this is; the caches are below `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        kept |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return kept | {"HF_HUB_DISABLE_TELEMETRY": "1"} | ({"HF_TOKEN": token} if token else {})

    def repo(self, kind: str, name: str, private: bool = False) -> Repo:
        """The repository, made with the first commit that the real ones start with unless it is there."""
        if (kind, name) not in self.repos:
            made = self.repos[kind, name] = Repo(kind, name, private)
            attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS)
            made.add("main", {".gitattributes": File(attributes.encode(), False)}, "initial commit", None)
        return self.repos[kind, name]

    def put(self, kind: str, name: str, files: Mapping[str, bytes], ref: str = "main") -> Commit:
        """A commit by somebody's hand."""
        repo = self.repo(kind, name)
        tree = {path: File(content, is_large(path, content)) for path, content in files.items()}
        self.lfs |= {file.sha256: file.content for file in tree.values() if file.is_lfs}
        parent = repo.at(ref)
        return repo.add(ref, {**parent.tree, **tree}, "by hand", parent.sha)

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        """What stands in a repository."""
        return {path: file.content for path, file in self.repos[kind, name].at(revision).tree.items()}

    def requests(self, pattern: str) -> list[Request]:
        """Those whose method and path match, in order."""
        return [r for r in self.log if re.search(pattern, f"{r.method} {r.path}")]


def is_large(path: str, content: bytes) -> bool:
    return len(content) > LARGEST_REGULAR or any(fnmatchcase(path, pattern) for pattern in LFS)


def check_card(content: str) -> None:
    """As the Hub does it: refuses metadata that is no YAML mapping, or names no language by its code."""
    block = re.match(r"---\n(.*?)\n---(\n|$)", content, re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        raise Refusal(400, f"Invalid YAML: {error}") from error
    if not isinstance(data, dict):
        raise Refusal(400, "Metadata must be a mapping")
    languages = data.get("language") or []
    for language in [languages] if isinstance(languages, str) else languages:
        if not re.fullmatch("[a-z]{2,3}", language):
            raise Refusal(400, '"language" must be an ISO 639 code')


REPO = r"(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
GIT = r"(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/{REPO}/auth-check(?P<write>/write)?", "auth_check"),
    ("GET", rf"/api/{REPO}/refs", "refs"),
    ("GET", rf"/api/{REPO}/discussions", "discussions"),
    ("POST", rf"/api/{REPO}/branch/(?P<branch>[^/]+)", "branch"),
    ("GET", rf"/api/{REPO}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("POST", rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", rf"/api/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/{GIT}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "store"),
    ("POST", r"/lfs/verify", "verify"),
    ("GET|HEAD", rf"/{GIT}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Handler(BaseHTTPRequestHandler):
    """One request: found in ROUTES, obeyed by the method of that name, and written down."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.body, self.status = self.read_body(), 0
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.hub.before(self.command, url.path)
        with self.hub.lock:
            fault = self.hub.fault if self.hub.fault and self.hub.fault.strikes() else None
            if fault and fault.kind in ("429", "500"):
                self.answer({"error": "as told"}, int(fault.kind))
            elif not fault or fault.kind == "lost":
                self.obey(url.path, lost=bool(fault))
            entry = Request(self.command, url.path, dict(self.headers), self.body, self.status)
            self.hub.log.append(entry)
        if fault and not self.status:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_POST = do_PUT = do_GET

    def obey(self, path: str, lost: bool) -> None:
        try:
            for methods, pattern, name in ROUTES:
                if self.command in methods.split("|") and (match := re.fullmatch(pattern, path)):
                    given = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    answer = getattr(self, name)(**given)
                    break
            else:
                raise Refusal(404, "Not found")
            status, headers = 200, {}
        except Refusal as refusal:
            status, answer = refusal.status, {"error": refusal.error}
            answer |= {"url": refusal.url} if refusal.url else {}
            headers = {"X-Error-Message": refusal.error} | (
                {"X-Error-Code": refusal.code} if refusal.code else {}
            )
        if lost:
            return
        if isinstance(answer, tuple):
            status, headers, answer = answer
        self.answer(answer, status, headers)

    def answer(self, content: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        is_json = not isinstance(content, bytes)
        body = json.dumps(content).encode() if is_json else content
        self.status = status
        self.send_response(status)
        kind = "application/json" if is_json else "application/octet-stream"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # Who asks, and for what.

    def user(self) -> dict[str, Any] | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        if (found := USERS.get(header.removeprefix("Bearer "))) is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return found

    def may_write(self, name: str) -> bool:
        user = self.user()
        return user is not None and name.split("/")[0] in {user["name"], *(o["name"] for o in user["orgs"])}

    def found(self, kind: str | None, name: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get((PLURAL.get(kind or "models"), name))
        if repo is None or (repo.private and not self.may_write(name)):
            raise Refusal(404 if self.user() else 401, "Repository not found", "RepoNotFound")
        if write and not self.may_write(name):
            raise Refusal(
                403 if self.user() else 401, "You don't have the rights to write to this repository"
            )
        return repo

    def at(self, repo: Repo, revision: str | None) -> Commit:
        if (commit := repo.at(revision or "main")) is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    # What can be asked.

    def whoami(self) -> Any:
        if (user := self.user()) is None:
            raise Refusal(401, "Invalid username or password.")
        return {"type": "user", **user, "auth": {"type": "access_token"}}

    def create(self) -> Any:
        given = self.json()
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        name = f"{given.get('organization') or user['name']}/{given['name']}"
        if not self.may_write(name):
            raise Refusal(403, f"You don't have the rights to create a {given['type']} under this namespace")
        prefix = {"dataset": "datasets/", "space": "spaces/"}.get(given["type"], "")
        url = f"{self.hub.url}/{prefix}{name}"
        if (given["type"], name) in self.hub.repos:
            raise Refusal(409, f"You already created this {given['type']} repo", url=url)
        if given["type"] == "space" and given.get("sdk") not in ("gradio", "docker", "static"):
            raise Refusal(400, "A Space needs an sdk")
        self.hub.repo(given["type"], name, given.get("visibility") == "private")
        if given["type"] == "space":
            card = SPACE_CARD.format(title=given["name"], sdk=given["sdk"])
            self.hub.put("space", name, {"README.md": card.encode()})
        return {"url": url, "name": name}

    def validate(self) -> Any:
        try:
            check_card(self.json()["content"])
        except Refusal as refusal:
            return refusal.status, {}, {"errors": [{"message": refusal.error}], "warnings": []}
        return {"errors": [], "warnings": []}

    def auth_check(self, kind: str, name: str, write: str | None) -> Any:
        self.found(kind, name, bool(write))
        return {}

    def refs(self, kind: str, name: str) -> Any:
        refs = self.found(kind, name).refs.items()
        listed = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha} for ref, sha in refs]
        return {
            "branches": [r for r in listed if not r["name"].startswith("refs/")],
            "converts": [],
            "tags": [],
        }

    def discussions(self, kind: str, name: str) -> Any:
        repo = self.found(kind, name)
        listed = [
            {
                "title": title, "num": number, "author": {"name": "me"}, "status": "open",
                "createdAt": "2025-01-01T00:00:00.000Z", "isPullRequest": True,
                "repo": {"name": name, "type": repo.kind},
            }
            for number, title in sorted(repo.requests.items(), reverse=True)
        ]  # fmt: skip
        return {"discussions": listed, "count": len(listed), "start": 0}

    def branch(self, kind: str, name: str, branch: str) -> Any:
        repo = self.found(kind, name, write=True)
        if branch.startswith("refs/"):
            raise Refusal(400, "Invalid reference for a branch")
        if branch in repo.refs:
            raise Refusal(409, "Reference already exists")
        repo.refs[branch] = self.at(repo, self.json().get("startingPoint")).sha
        return {}

    def info(self, kind: str, name: str, revision: str | None) -> Any:
        repo = self.found(kind, name)
        commit = self.at(repo, revision)
        return {
            "id": name, "_id": name, "sha": commit.sha, "private": repo.private, "tags": [], "downloads": 0,
            "likes": 0, "siblings": [{"rfilename": path} for path in commit.tree],
        }  # fmt: skip

    def tree(self, kind: str, name: str, revision: str, path: str | None) -> Any:
        commit = self.at(self.found(kind, name), revision)
        prefix = f"{path}/" if path else ""
        files = {p: file for p, file in commit.tree.items() if p.startswith(prefix)}
        if path and not files:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        entries = [entry(p, files[p]) for p in files]
        parents = {"/".join(p.split("/")[:n]) for p in files for n in range(1, p.count("/") + 1)}
        folders = [p for p in parents if p.startswith(prefix)]
        entries += [
            {"type": "directory", "oid": hashlib.sha1(p.encode()).hexdigest(), "size": 0, "path": p}
            for p in folders
        ]
        if self.query.get("recursive", "false").lower() not in ("true", "1"):
            entries = [e for e in entries if "/" not in e["path"].removeprefix(prefix)]
        return sorted(entries, key=lambda e: e["path"])

    def paths_info(self, kind: str, name: str, revision: str) -> Any:
        commit = self.at(self.found(kind, name), revision)
        asked = parse_qs(self.body.decode()).get("paths", [])
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = self.json()["paths"]
        folders = [p for p in asked if any(path.startswith(f"{p}/") for path in commit.tree)]
        found = [entry(p, commit.tree[p]) for p in asked if p in commit.tree]
        return found + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in folders]

    def preupload(self, kind: str, name: str, revision: str) -> Any:
        repo = self.found(kind, name, write="create_pr" not in self.query)
        tree = self.at(repo, revision).tree
        patterns = tree[".gitignore"].content.decode().split() if ".gitignore" in tree else []
        answers = []
        for file in self.json()["files"]:
            path, there = file["path"], tree.get(file["path"])
            large = file["size"] > LARGEST_REGULAR or is_large(path, b"")
            oid = there and (there.sha256 if there.is_lfs else there.oid)
            mode = "lfs" if large else "regular"
            ignored = any(fnmatchcase(path.split("/")[-1], pattern) for pattern in patterns)
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
        return {"files": answers}

    def batch(self, kind: str | None, name: str) -> Any:
        self.found(kind, name, write=True)
        objects = []
        for asked in self.json()["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.url}/lfs/verify", "header": {}},
            }
            objects.append(asked if asked["oid"] in self.hub.lfs else asked | {"actions": actions})
        return {"transfer": "basic", "objects": objects}

    def store(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content is not what its checksum says")
        self.hub.lfs[oid] = self.body
        return {}

    def verify(self) -> Any:
        given = self.json()
        if len(self.hub.lfs.get(given["oid"], b"")) != given["size"]:
            raise Refusal(404, "Object not found")
        return {}

    def commit(self, kind: str, name: str, revision: str) -> Any:
        asks = "create_pr" in self.query
        repo = self.found(kind, name, write=not asks)
        head, *operations = [json.loads(line) for line in self.body.splitlines()]
        parent = self.at(repo, revision)
        if revision in repo.commits or head["key"] != "header":
            raise Refusal(400, "A commit goes to a branch, and starts with a header")
        if head["value"].get("parentCommit", parent.sha) != parent.sha:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(parent.tree)
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
                if is_large(path, content):
                    raise Refusal(400, f"{path} is a binary file and must be sent as LFS")
                if path == "README.md":
                    check_card(content.decode())
                tree[path] = File(content, False)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise Refusal(400, f"{path} points to a file that was not uploaded")
                tree[path] = File(self.hub.lfs[value["oid"]], True)
            elif operation["key"] == "deletedFile":
                if tree.pop(path, None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise Refusal(400, f"Unknown operation {operation['key']}")
        title = head["value"]["summary"]
        ref, request, folder = revision, None, "" if kind == "models" else f"{kind}/"
        if asks:
            number = len(repo.requests) + 1
            repo.requests[number], ref = title, f"refs/pr/{number}"
            request = f"{self.hub.url}/{folder}{name}/discussions/{number}"
        made = repo.add(ref, tree, title, parent.sha)
        url = f"{self.hub.url}/{folder}{name}/commit/{made.sha}"
        return {"success": True, "commitOid": made.sha, "commitUrl": url, "pullRequestUrl": request}

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> Any:
        commit = self.at(self.found(kind, name), revision)
        if (file := commit.tree.get(path)) is None:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        tag = file.sha256 if file.is_lfs else file.oid
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if file.is_lfs:
            headers |= {"X-Linked-ETag": f'"{tag}"', "X-Linked-Size": str(len(file.content))}
        if not (span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            return 200, headers, file.content
        size = len(file.content)
        start, stop = int(span[1]), min(int(span[2] or size - 1), size - 1) + 1
        if start >= size:
            return 416, {"Content-Range": f"bytes */{size}"}, b""
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, headers, file.content[start:stop]


def entry(path: str, file: File) -> dict[str, Any]:
    """A file as `tree` and `paths-info` show it."""
    shown = {"type": "file", "oid": file.oid, "size": len(file.content), "path": path}
    if not file.is_lfs:
        return shown
    lfs = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
    return shown | {"lfs": lfs}
