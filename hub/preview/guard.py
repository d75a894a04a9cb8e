"""The guard of the page: which requests it serves.

A browser lets any website send requests to this machine, and a website whose name leads to 127.0.0.1 (DNS
rebinding) read the responses, too. Such requests show in their headers Host, Origin or Referer. A Space gets
requests from every host, under names that the Hub chooses, so it refuses only large requests.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
READING = ("GET", "HEAD")
LARGEST_UPLOAD = 50 * 2**20  # bytes of a file
LARGEST_BODY = LARGEST_UPLOAD + 2**16  # bytes of a request: a file and the form around it


def guarded(app: App, in_space: bool = False) -> App:
    """`app` without the requests that `refusal` refuses; in a Space, without those that `too_large` refuses.
    All arguments are those of ASGI.
    """

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        refused = None
        if scope["type"] != "lifespan":
            headers = headers_of(scope)
            refused = (
                too_large(headers)
                if in_space
                else refusal(scope.get("method", "GET"), scope["server"][1], headers)
            )
        if refused is None:
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": int(refused), "headers": plain})
            await send({"type": "http.response.body", "body": refused.phrase.encode()})

    return guard


def headers_of(scope: Scope) -> dict[str, list[str]]:
    """The values of each header of a request, by its name in lower case."""
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def refusal(method: str, port: int, headers: Mapping[str, Sequence[str]]) -> HTTPStatus | None:
    """The status of the response to a request that is refused; None if it is allowed.

    It must name this machine, and must not come from another page. Only the page itself may send something,
    and not more than `LARGEST_BODY` bytes.
    """
    hosts = {f"{name}:{port}" for name in OWN_NAMES} | (set(OWN_NAMES) if port == 80 else set())
    own_origins = {f"http://{host}" for host in hosts}
    if [host in hosts for host in headers.get("host", ())] != [True]:
        return HTTPStatus.FORBIDDEN
    origins = list(headers.get("origin", ()))
    if method not in READING and not origins:
        origins = [
            "{0.scheme}://{0.netloc}".format(urlsplit(referer)) for referer in headers.get("referer", ())
        ]
        if not origins:
            return HTTPStatus.FORBIDDEN
    if not own_origins.issuperset(origins):
        return HTTPStatus.FORBIDDEN
    if "transfer-encoding" in headers:
        return HTTPStatus.LENGTH_REQUIRED
    return too_large(headers)


def too_large(headers: Mapping[str, Sequence[str]]) -> HTTPStatus | None:
    """The status of the response to a request of more than `LARGEST_BODY` bytes; None for a smaller one."""
    for length in headers.get("content-length", ()):
        if not length.isdecimal() or int(length[:20]) > LARGEST_BODY:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return None
