"""The guard of the page: requests from elsewhere, large ones, and what is left when the page ends."""

import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from attn2mask.hub.preview import guard
from attn2mask.hub.preview.guard import LARGEST_BODY, headers_of, refusal
from attn2mask.hub.preview.page import make_app, serve

OWN = "http://127.0.0.1:7860"


def asked(method: str, *headers: tuple[str, str], port: int = 7860) -> int | None:
    return refusal(method, port, headers_of({"headers": [(n.encode(), v.encode()) for n, v in headers]}))


@pytest.mark.parametrize(
    ("host", "port", "status"),
    [
        ("127.0.0.1:7860", 7860, None),
        ("localhost:7860", 7860, None),
        ("[::1]:7860", 7860, None),
        ("127.0.0.1", 80, None),
        ("127.0.0.1", 7860, 403),
        ("localhost:7861", 7860, 403),
        ("evil.example:7860", 7860, 403),
        ("evil.example", 7860, 403),
        ("127.0.0.1.evil.example:7860", 7860, 403),
        ("evil.example@127.0.0.1:7860", 7860, 403),
        ("", 7860, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_only_this_machines_names_are_answered(host, port, status, method):
    own = ("origin", "http://127.0.0.1" + (f":{port}" if port != 80 else ""))
    assert asked(method, ("host", host), own, port=port) == status


def test_the_host_is_named_once():
    assert asked("GET") == 403
    assert asked("GET", ("host", "evil.example"), ("host", "127.0.0.1:7860")) == 403


@pytest.mark.parametrize(
    ("headers", "reading", "sending"),
    [
        ([], None, 403),
        ([("origin", OWN)], None, None),
        ([("origin", "http://localhost:7860")], None, None),
        ([("origin", "null")], 403, 403),
        ([("origin", "http://evil.example")], 403, 403),
        ([("origin", "https://127.0.0.1:7860")], 403, 403),
        ([("origin", "http://127.0.0.1:7861")], 403, 403),
        ([("origin", OWN), ("origin", "http://evil.example")], 403, 403),
        ([("origin", "http://evil.example"), ("referer", f"{OWN}/")], 403, 403),
        ([("referer", f"{OWN}/?a=1")], None, None),
        ([("referer", "http://evil.example/127.0.0.1:7860")], None, 403),  # a link to the page
        ([("referer", f"{OWN}.evil.example/")], None, 403),
    ],
)
def test_only_the_page_itself_may_send(headers, reading, sending):
    host = ("host", "127.0.0.1:7860")
    assert asked("GET", host, *headers) == reading
    for method in ("POST", "PUT", "DELETE"):
        assert asked(method, host, *headers) == sending


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("content-length", "0", None),
        ("content-length", str(LARGEST_BODY), None),
        ("content-length", str(LARGEST_BODY + 1), 413),
        ("content-length", "9" * 10_000, 413),
        ("content-length", "-1", 413),
        ("transfer-encoding", "chunked", 411),
    ],
)
def test_requests_are_of_at_most_50_mb(name, value, status):
    assert 50_000_000 <= LARGEST_BODY < 53_000_000
    assert asked("POST", ("host", "127.0.0.1:7860"), ("origin", OWN), (name, value)) == status


# The server


@pytest.fixture(scope="module")
def port(run, tmp_path_factory) -> Iterator[int]:
    """Of a page of a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setattr(guard, "LARGEST_BODY", 100_000)
        app = make_app(run)
        yield int(serve(app, None).rstrip("/").rpartition(":")[2])
        app.close(verbose=False)


def response(port: int, method: str, path: str, headers: dict[str, str], body: bytes | None = None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def form(content: bytes) -> tuple[bytes, dict[str, str]]:
    """An upload as a browser sends it."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return head + content + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/theme.css", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
def test_a_foreign_host_is_answered_403_on_every_path(port, path, method):
    for name in ("evil.example", f"evil.example:{port}"):
        origin = {"Origin": f"http://{name}", "Access-Control-Request-Method": "POST"}
        assert response(port, method, path, {"Host": name} | origin) == (403, b"Forbidden")
        assert response(port, method, path, {"Host": name})[0] == 403


def test_uploads_come_from_the_page_and_are_not_too_large(port):
    body, kind = form(b"p" * 1000)
    own = {"Origin": f"http://127.0.0.1:{port}"}
    assert response(port, "POST", "/gradio_api/upload", kind | own, body)[0] == 200
    assert response(port, "POST", "/gradio_api/upload", kind, body)[0] == 403
    assert (
        response(port, "POST", "/gradio_api/upload", kind | {"Origin": "http://evil.example"}, body)[0] == 403
    )
    large = {"Content-Length": "100001"}
    assert response(port, "POST", "/gradio_api/upload", kind | own | large, b"")[0] == 413
    for name in ("localhost", "[::1]"):
        assert response(port, "GET", "/", {"Host": f"{name}:{port}"})[0] == 200


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_uploads_are_deleted_however_the_page_ends(run, tmp_path, number, status):
    """Also if the signal comes twice."""
    places = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "attn2mask", "preview", str(run)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | places, **pipes) as process:
        try:
            port = int(re.search(r"127\.0\.0\.1:(\d+)/", process.stdout.readline())[1])
            body, kind = form(b"MARK" * 1000)
            own = {"Origin": f"http://127.0.0.1:{port}"}
            assert response(port, "POST", "/gradio_api/upload", kind | own, body)[0] == 200
            held = [path for path in tmp_path.rglob("*") if path.is_file() and b"MARK" in path.read_bytes()]
            assert len(held) == 1
            for _ in range(2):
                process.send_signal(number)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == status, error
    assert "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"MARK" in path.read_bytes()]
    assert not list(tmp_path.glob("attn2mask-preview-*"))
