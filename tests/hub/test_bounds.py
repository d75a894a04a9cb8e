"""Also with a server that is not the Hub, publishing ends soon, with one line and little memory."""

import io
import json
import logging
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import httpx
from loopback_hub import ROUTES, TOKEN, USERS, Handler, LoopbackHub

from attn2mask.hub import bounds
from attn2mask.hub.cards.markdown import Card
from attn2mask.hub.cli import main
from attn2mask.hub.responses import LONGEST_PAUSE, asked_pause, without_password

DATA = "org/data"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class RawHub:
    """A server on 127.0.0.1 that sends `respond(send)` for every request. `sent`
    counts the bytes that clients took.
    """

    def __init__(self, respond: Callable[[Callable[[bytes], None]], object]) -> None:
        self.respond, self.sent, self.connections = respond, 0, 0
        self.ended = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection: socket.socket) -> None:
        def send(data: bytes) -> None:
            connection.sendall(data)
            self.sent += len(data)

        try:
            with connection:
                connection.settimeout(30)
                connection.recv(65536)
                self.respond(send)
        except OSError:
            pass  # the client has gone

    def slowly(self, send: Callable[[bytes], None], data: bytes) -> None:
        """Send a byte at a time, until the client goes."""
        for byte in data:
            send(bytes([byte]))
            if self.ended.wait(0.05):
                return

    def close(self) -> None:
        self.ended.set()
        self.socket.close()


@pytest.fixture
def raw_hub() -> Iterator[Callable[..., RawHub]]:
    started = []

    def start(respond: Callable[[RawHub, Callable[[bytes], None]], object]) -> RawHub:
        made = RawHub(lambda send: respond(made, send))
        started.append(made)
        return made

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def voc(tmp_path_factory, make_build) -> Path:
    return make_build(tmp_path_factory.mktemp("builds") / "voc", "voc", 3, scores=False)


@pytest.fixture
def pauses() -> list[float]:
    """How long was slept."""
    return []


@pytest.fixture
def publish_to(voc, tmp_path, monkeypatch, capsys, pauses) -> Callable:
    """`publish_to(url)`: publish a build there, without sleeping, with a card that is quickly made. Returns
    the exit status, the lines of output and the lines of errors.
    """
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", pauses.append)
    card = Card("---\ntags: [attn2mask]\n---\n", {})
    monkeypatch.setattr("attn2mask.hub.cards.dataset.dataset_card", lambda builds, repo_id, old: card)

    def run(url: str, *options: str) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        address = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        capsys.readouterr()
        status = main(["publish", "dataset", str(voc), DATA, *options])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out.splitlines(), err.splitlines()

    return run


def refused(result: tuple[int, list[str], list[str]], message: str) -> None:
    """It failed with one line that says `message`, a pattern."""
    status, _, errors = result
    said = [line for line in errors if line.startswith("attn2mask: error: ")]
    assert (status, len(said)) == (2, 1), result
    assert re.search(message, said[0]), said[0]


# Time


@pytest.mark.parametrize(
    "respond",
    [
        lambda hub, send: hub.ended.wait(30),
        lambda hub, send: hub.slowly(send, OK + b"Content-Length: 1000\r\n\r\n"),
        lambda hub, send: send(OK + b"Content-Length: 1000\r\n\r\n") or hub.slowly(send, b"{" * 1000),
        lambda hub, send: (
            send(OK + b"Transfer-Encoding: chunked\r\n\r\n") or hub.slowly(send, b"1\r\n \r\n" * 1000)
        ),
        lambda hub, send: hub.slowly(send, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
    ids=["no response", "slow head", "slow body", "slow chunks", "always more to come"],
)
def test_a_response_comes_in_time_or_not_at_all(publish_to, raw_hub, monkeypatch, respond):
    """A line says what is waited for."""
    monkeypatch.setattr(bounds, "STALLED", 0.9)
    monkeypatch.setattr(bounds, "SILENT", 0.2)
    hub = raw_hub(respond)
    started = time.monotonic()
    result = publish_to(hub.url)
    assert 0.9 < time.monotonic() - started < 10
    what = f"the response of {hub.url} to GET /api/whoami-v2"
    refused(result, f"{what} took more than 0.9 seconds; run the same command again")
    waiting = result[2].count(f"waiting for {what}, at most 0.9 seconds")
    assert waiting == 1 or (waiting == 0 and hub.sent)  # what comes byte by byte is not silent
    assert hub.connections <= 2  # the client asks for something else first, once in a process


def test_an_answer_that_takes_less_time_is_read(publish_to, raw_hub, monkeypatch):
    monkeypatch.setattr(bounds, "STALLED", 20)
    monkeypatch.setattr(bounds, "SILENT", 0.1)
    body = b'{"error": "be patient"}'
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body)
    hub = raw_hub(lambda hub, send: hub.slowly(send, head) or hub.ended.wait(0.5) or hub.slowly(send, body))
    result = publish_to(hub.url)
    refused(result, r"be patient \(404\)")
    assert [line for line in result[2] if line.startswith("waiting for ")]


def test_connecting_is_bounded(publish_to, monkeypatch):
    """To a server whose queue of connections is full."""
    monkeypatch.setattr(bounds, "CONNECT", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = [socket.socket() for _ in range(8)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        started = time.monotonic()
        result = publish_to(f"http://127.0.0.1:{server.getsockname()[1]}")
        for each in waiting:
            each.close()
    refused(result, r"no connection to http://127\.0\.0\.1:\d+ \(timed out\)")
    assert 0.3 < time.monotonic() - started < 5


def test_the_bounds_in_seconds_and_bytes():
    assert (bounds.CONNECT, bounds.STALLED, LONGEST_PAUSE) == (30, 120, 300)
    assert bounds.LARGEST_RESPONSE == 10_000_000


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "header",
    [
        "Retry-After: 301",
        "Retry-After: 86400",
        f"Retry-After: {10**20}",
        f"Retry-After: {'9' * 5000}",
        "Retry-After: \xb2",  # a digit, but no number
        'RateLimit: "api";r=0;t=86400',
    ],
)
def test_too_long_a_pause_is_refused(publish_to, raw_hub, pauses, status, header):
    head = f"HTTP/1.1 {status} No\r\nConnection: close\r\n{header}\r\nContent-Length: 2\r\n\r\n{{}}".encode(
        "latin-1"
    )
    hub = raw_hub(lambda hub, send: send(head))
    refused(publish_to(hub.url), "asks for a pause of .* seconds, which is too long")
    assert pauses == []
    assert hub.connections <= 2


def test_a_short_pause_is_made_and_a_line_says_so(publish_to, raw_hub, pauses):
    """Pauses that are not asked for become longer, up to 16 seconds."""
    # The server closes each connection: a client that used it again would see an error, and no status.
    head = b"HTTP/1.1 429 No\r\nConnection: close\r\n%sContent-Length: 2\r\n\r\n{}"
    hub = raw_hub(lambda hub, send: send(head % b"Retry-After: 300\r\n"))
    result = publish_to(hub.url)
    refused(result, "responds with status 429")
    assert pauses == [300] * 5
    assert sum("trying again in 300 seconds" in line for line in result[2]) == 5
    pauses.clear()
    refused(publish_to(raw_hub(lambda hub, send: send(head % b"")).url), "responds with status 429")
    assert pauses == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=10;t=55'}, 0),
    ],
)
def test_the_pause_that_an_answer_asks_for(headers, seconds):
    assert asked_pause(httpx.Headers(headers)) == seconds


# Memory


def endless(hub: RawHub, send: Callable[[bytes], None]) -> None:
    send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(400):
        send(b"f4240\r\n" + b" " * 1_000_000 + b"\r\n")


def large(hub: RawHub, send: Callable[[bytes], None]) -> None:
    send(OK + b"Content-Length: 400000000\r\n\r\n")
    for _ in range(400):
        send(b" " * 1_000_000)


def until_closed(hub: RawHub, send: Callable[[bytes], None]) -> None:
    send(OK + b"Connection: close\r\n\r\n")
    for _ in range(400):
        send(b" " * 1_000_000)


def large_error(hub: RawHub, send: Callable[[bytes], None]) -> None:
    send(b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n")
    for _ in range(400):
        send(b" " * 1_000_000)


@pytest.mark.parametrize("respond", [endless, large, until_closed, large_error])
def test_a_large_response_is_not_read_to_its_end(publish_to, raw_hub, respond):
    hub = raw_hub(respond)
    publish_to("http://127.0.0.1:9")  # loads the modules
    tracemalloc.start()
    try:
        result = publish_to(hub.url)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    refused(result, r"the response of .* to GET /api/whoami-v2 is larger than 10,000,000 bytes")
    assert peak < 60_000_000
    assert hub.connections <= 2
    assert hub.sent < 30_000_000


def test_an_answer_that_would_grow_in_memory_is_refused(publish_to, raw_hub):
    hub = raw_hub(lambda hub, send: send(OK + b"Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"))
    refused(publish_to(hub.url), "has the encoding 'gzip', for which nobody asked")


# Sense


NEEDED = ("whoami", "info", "tree", "preupload", "batch", "commit")


@pytest.mark.parametrize("route", sorted({name for _, _, name in ROUTES} - {"resolve", "store"}))
@pytest.mark.parametrize(
    "respond", [{}, [], None, 5, "text", [{}], [None], {"error": 5}, b"[" * 100_000, b"<html>"], ids=repr
)
def test_responses_without_sense_are_an_error_in_one_line(publish_to, monkeypatch, route, respond):
    """Where a response is needed. Elsewhere, a publication is complete."""
    monkeypatch.setattr(Handler, route, lambda self, **_: respond)
    with LoopbackHub() as hub:
        result = publish_to(hub.url, *(("--revision", "v2") if route == "branch" else ()))
        if route == "tree" and respond == []:
            refused(result, "does not keep")
        elif route in NEEDED or result[0] != 0:
            refused(result, "")
        else:
            assert "voc/train-00000.parquet" in hub.files(
                "dataset", DATA, "v2" if route == "branch" else "main"
            )


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_have_an_end(publish_to, raw_hub, status):
    head = b"HTTP/1.1 %d Go\r\nLocation: /api/whoami-v2\r\nConnection: close\r\n\r\n" % status
    hub = raw_hub(lambda hub, send: send(head))
    refused(publish_to(hub.url), "does not respond as the Hub does .*redirects")
    assert hub.connections < 30


def test_pages_have_an_end(publish_to, monkeypatch):
    monkeypatch.setattr(bounds, "MOST_READS", 30)
    with LoopbackHub() as hub:
        link = {"Link": f'<{hub.url}/api/datasets/{DATA}/tree/main>; rel="next"'}
        monkeypatch.setattr(Handler, "tree", lambda self, **_: (200, link, []))
        hub.repo("dataset", DATA)
        refused(publish_to(hub.url), "refers to more than 30 other responses")
        assert len(hub.log) < 40


# Passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:pa@ss@hub.example/x", "at https://hub.example/x"),
        ("https://token@hub.example:80", "https://hub.example:80"),
        ("me:secret@hub.example", "hub.example"),
        ("GET https://hub.example/a/b@c", "GET https://hub.example/a/b@c"),
        ("by mail@hub.example", "by mail@hub.example"),
    ],
)
def test_addresses_are_shown_without_passwords(text, shown):
    assert without_password(text) == shown


@pytest.mark.parametrize(
    "case", ["published", "refused", "no connection", "status 500", "no token", "wrong", "dry run"]
)
def test_the_password_of_the_endpoint_is_not_printed(publish_to, monkeypatch, case):
    """Neither here nor in the log of huggingface_hub."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    monkeypatch.setattr(huggingface_hub.constants, "HF_DEBUG", True)
    if case not in ("refused", "no token"):
        monkeypatch.setattr(Handler, "user", lambda self: USERS[TOKEN])
    try:
        with LoopbackHub() as hub:
            if case == "status 500":
                hub.before = lambda method, path: setattr(hub, "fault", None)
                monkeypatch.setattr(Handler, "tree", lambda self, **_: (500, {}, {}))
            url = {"no connection": "http://127.0.0.1:9", "wrong": "http://127.0.0.1:port"}.get(case, hub.url)
            url = url.replace("http://", "http://me:hidden@")
            results = [publish_to(url, *(("--dry-run",) if case == "dry run" else ())) for _ in range(2)]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.WARNING)
    statuses = {status for status, _, _ in results}
    assert statuses == {0 if case in ("published", "dry run") else 2}, results
    assert "hidden" not in json.dumps(results) + log.getvalue()
    assert case == "wrong" or "127.0.0.1" in json.dumps(results) + log.getvalue()
