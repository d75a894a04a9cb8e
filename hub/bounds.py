"""Bounds of how long the client of the Hub waits, and how much it reads, also if the server is not the Hub.

Without them, the client of huggingface_hub has no limit for the time and for the size of a response.
`bounded` adds hooks to it.
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
from attn2mask.hub.responses import LONGEST_PAUSE, TRANSIENT, Unreachable, asked_pause, without_password

logger = logging.getLogger(__name__)

CONNECT = 30  # seconds to connect
STALLED = 120  # seconds until a request makes progress, and from its end to the end of the response
SILENT = 10  # seconds of such a wait until a line says what is waited for
LARGEST_RESPONSE = 10_000_000  # bytes
MOST_READS = 2000  # requests that read; a listing of files has up to 1,000 of them in each response
AGAIN = "run the same command again; it sends only what is missing"


@contextmanager
def bounded() -> Iterator[None]:
    """Bound all requests of huggingface_hub in the block, in time and memory, and hide passwords in its log.

    Requests raise Unreachable for a response that does not come in time, and UserError for one that is too
    large, asks for too long a pause, or is one of too many.
    """
    former = _http._GLOBAL_CLIENT_FACTORY  # which huggingface_hub lets nobody ask for
    bounds = _Bounds()

    def make_client() -> httpx.Client:
        client = former()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], bounds.bound_request],
            "response": [*hooks["response"], bounds.bound_response],
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
    """The hooks of a client. Each thread waits for one response at a time: `waiting` holds its request, when
    it was sent, and whether a line said so.
    """

    def __init__(self) -> None:
        self.reads = count(1)
        self.waiting = threading.local()

    def bound_request(self, request: httpx.Request) -> None:
        if request.method == "GET" and next(self.reads) > MOST_READS:
            raise UserError(
                f"{_origin(request)} has no end: it refers to more than {MOST_READS} other responses"
            )
        request.headers["Accept-Encoding"] = "identity"  # so that the size on the way is the size in memory
        own = request.extensions.get("timeout", {})
        most = {"connect": CONNECT, "read": STALLED, "write": STALLED, "pool": STALLED}
        timeouts = {name: min(own.get(name) or limit, limit) for name, limit in most.items()}
        request.extensions |= {"timeout": timeouts, "trace": partial(self.trace, request)}

    def trace(self, request: httpx.Request, event: str, info: dict[str, Any]) -> None:
        """Note when a response begins to be waited for, and bound what is read from new connections."""
        if event.endswith(".receive_response_headers.started"):
            self.waiting.request, self.waiting.since, self.waiting.said = request, time.monotonic(), False
        elif event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            stream = info["return_value"]
            stream.read = partial(self.read, stream.read)

    def read(self, read: Callable[..., bytes], max_bytes: int, timeout: float | None = None) -> bytes:
        """Read a part of a response, in place of the `read` of a connection, whose timeout is only that of a
        part: a response that comes byte by byte would never end.
        """
        while (passed := time.monotonic() - self.waiting.since) < STALLED:
            left = (STALLED if self.waiting.said else min(SILENT, STALLED)) - passed
            if timeout is not None and timeout < left:
                return read(max_bytes, timeout=timeout)
            try:
                if left > 0:
                    return read(max_bytes, timeout=left)
            except Exception as error:
                if type(error).__name__ != "ReadTimeout":  # an error of the library that httpx uses
                    raise
            if not self.waiting.said:
                self.waiting.said = True
                logger.info("waiting for %s, at most %g seconds", _origin(self.waiting.request), STALLED)
        raise Unreachable(f"{_origin(self.waiting.request)} took more than {STALLED:g} seconds; {AGAIN}")

    def bound_response(self, response: httpx.Response) -> None:
        origin = _origin(response.request)
        if response.status_code in TRANSIENT and (pause := asked_pause(response.headers)) > LONGEST_PAUSE:
            raise UserError(
                f"{origin} asks for a pause of {pause:.0f} seconds, which is too long: later, {AGAIN}"
            )
        if response.request.method == "HEAD":
            return
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise UserError(f"{origin} has the encoding {encoding!r:.40}, for which nobody asked")
        length = response.headers.get("Content-Length", "")
        if re.fullmatch("[0-9]+", length) and float(length) > LARGEST_RESPONSE:
            raise _too_large(origin)
        response.stream = _BoundedStream(response.stream, origin)


class _BoundedStream(httpx.SyncByteStream):
    """The content of a response, which raises UserError where it becomes too large."""

    def __init__(self, stream: Any, origin: str) -> None:
        self.stream, self.origin = stream, origin

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self.stream:
            size += len(part)
            if size > LARGEST_RESPONSE:
                raise _too_large(self.origin)
            yield part

    def close(self) -> None:
        self.stream.close()


def _origin(request: httpx.Request) -> str:
    """The name of a response in messages, by its request."""
    url = request.url
    return f"the response of {url.scheme}://{url.netloc.decode()} to {request.method} {url.path}"


def _too_large(origin: str) -> UserError:
    return UserError(f"{origin} is larger than {LARGEST_RESPONSE:,} bytes")


def _hide_password(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_password(record.getMessage()), ()
    return True
