"""Bounds of what the Hub's client waits for and reads, whatever answers at the other end.

The client of huggingface_hub waits without end, and reads answers of any size. `bounded` adds hooks to it.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from huggingface_hub.utils import _http, httpx, set_client_factory

from attn2mask.builders.errors import UserError
from attn2mask.hub.answers import LONGEST_PAUSE, TRANSIENT, Unreachable, asked_pause, without_password

logger = logging.getLogger(__name__)

CONNECT = 30  # seconds to connect
STALLED = 120  # seconds until a request makes progress, and from its end to the end of the answer
SILENT = 10  # seconds of such a wait until a line says what is waited for
LARGEST_ANSWER = 10_000_000  # bytes
MOST_READS = 2000  # requests that read; a listing of files has up to 1,000 of them in each answer
AGAIN = "run the same command again; it sends only what is missing"


@contextmanager
def bounded() -> Iterator[None]:
    """Bound all requests of huggingface_hub in the block, in time and memory, and hide passwords in its log.

    Requests raise Unreachable for an answer that does not come in time, and UserError for one that is too
    large, asks for too long a pause, or is one of too many.
    """
    former = _http._GLOBAL_CLIENT_FACTORY  # which huggingface_hub lets nobody ask for
    bounds = _Bounds()

    def make_client() -> httpx.Client:
        client = former()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], bounds.bound_request],
            "response": [*hooks["response"], bounds.bound_answer],
        }
        return client

    handlers = logging.getLogger("huggingface_hub").handlers
    set_client_factory(make_client)
    for handler in handlers:
        handler.addFilter(_hide_password)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_hide_password)
        set_client_factory(former)


class _Bounds:
    """The hooks of a client. Each thread waits for one answer at a time: `waiting` holds its request, when it
    was sent, and whether a line said so.
    """

    def __init__(self) -> None:
        self.reads = count(1)
        self.waiting = threading.local()

    def bound_request(self, request: httpx.Request) -> None:
        if request.method == "GET" and next(self.reads) > MOST_READS:
            raise UserError(
                f"{_origin(request)} has no end: it refers to more than {MOST_READS} other answers"
            )
        request.headers["Accept-Encoding"] = "identity"  # so that the size on the way is the size in memory
        own = request.extensions.get("timeout", {})
        most = {"connect": CONNECT, "read": STALLED, "write": STALLED, "pool": STALLED}
        timeouts = {name: min(own.get(name) or limit, limit) for name, limit in most.items()}
        request.extensions |= {"timeout": timeouts, "trace": partial(self.trace, request)}

    def trace(self, request: httpx.Request, event: str, info: dict[str, Any]) -> None:
        """Note when an answer begins to be waited for, and bound what is read from new connections."""
        if event.endswith(".receive_response_headers.started"):
            self.waiting.request, self.waiting.since, self.waiting.said = request, time.monotonic(), False
        elif event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            stream = info["return_value"]
            stream.read = partial(self.read, stream.read)

    def read(self, read: Callable[..., bytes], max_bytes: int, timeout: float | None = None) -> bytes:
        """Read a part of an answer, in place of the `read` of a connection, whose timeout is only that of a
        part: an answer that comes byte by byte would never end.
        """
        while (passed := time.monotonic() - self.waiting.since) < STALLED:
            left = (STALLED if self.waiting.said else min(SILENT, STALLED)) - passed
            if timeout is not None and timeout < left:
                return read(max_bytes, timeout=timeout)
            try:
                if left > 0:
                    return read(max_bytes, timeout=left)
            except Exception as error:
                if type(error).__name__ != "ReadTimeout":  # of the library below httpx, whatever its name is
                    raise
            if not self.waiting.said:
                self.waiting.said = True
                logger.info("waiting for %s, at most %g seconds", _origin(self.waiting.request), STALLED)
        raise Unreachable(f"{_origin(self.waiting.request)} took more than {STALLED:g} seconds; {AGAIN}")

    def bound_answer(self, answer: httpx.Response) -> None:
        origin = _origin(answer.request)
        if answer.status_code in TRANSIENT and (pause := asked_pause(answer.headers)) > LONGEST_PAUSE:
            raise UserError(
                f"{origin} asks for a pause of {pause:.0f} seconds, which is too long: later, {AGAIN}"
            )
        if answer.request.method == "HEAD":
            return
        if (encoding := answer.headers.get("Content-Encoding", "identity")) != "identity":
            raise UserError(f"{origin} has the encoding {encoding!r:.40}, for which nobody asked")
        length = answer.headers.get("Content-Length", "")
        if re.fullmatch("[0-9]+", length) and float(length) > LARGEST_ANSWER:
            raise _too_large(origin)
        answer.stream = _BoundedStream(answer.stream, origin)


class _BoundedStream(httpx.SyncByteStream):
    """The content of an answer, which raises UserError where it becomes too large."""

    def __init__(self, stream: Any, origin: str) -> None:
        self.stream, self.origin = stream, origin

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self.stream:
            size += len(part)
            if size > LARGEST_ANSWER:
                raise _too_large(self.origin)
            yield part

    def close(self) -> None:
        self.stream.close()


def _origin(request: httpx.Request) -> str:
    """An answer, by its request."""
    url = request.url
    return f"the answer of {url.scheme}://{url.netloc.decode()} to {request.method} {url.path}"


def _too_large(origin: str) -> UserError:
    return UserError(f"{origin} is larger than {LARGEST_ANSWER:,} bytes")


def _hide_password(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_password(record.getMessage()), ()
    return True
