"""The guard of the page: who may ask for what.

A browser lets any website send requests to this machine, and a website whose name leads to 127.0.0.1 (DNS
rebinding) read the answers, too. Such requests show in their headers Host, Origin or Referer.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.datastructures import Headers

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
READING = ("GET", "HEAD")
LARGEST_UPLOAD = 50 * 2**20  # bytes of a file
LARGEST_BODY = LARGEST_UPLOAD + 2**16  # bytes of a request: a file and the form around it


def guarded(app: App) -> App:
    """`app` without the requests that `refusal` refuses. All arguments are those of ASGI."""
    from starlette.datastructures import Headers
    from starlette.responses import PlainTextResponse

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        refused = None
        if scope["type"] != "lifespan":
            refused = refusal(scope.get("method", "GET"), scope["server"][1], Headers(scope=scope))
        if refused is None:
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            response = PlainTextResponse(refused.phrase, refused, headers={"Connection": "close"})
            await response(scope, receive, send)

    return guard


def refusal(method: str, port: int, headers: "Headers") -> HTTPStatus | None:
    """The status of the answer to a request that is refused; None if it is allowed.

    It must name this machine, and must not come from another page. Only the page itself may send something,
    and not more than `LARGEST_BODY` bytes.
    """
    hosts = {f"{name}:{port}" for name in OWN_NAMES} | (set(OWN_NAMES) if port == 80 else set())
    own_origins = {f"http://{host}" for host in hosts}
    if [host in hosts for host in headers.getlist("host")] != [True]:
        return HTTPStatus.FORBIDDEN
    origins = headers.getlist("origin")
    if method not in READING and not origins:
        origins = [
            "{0.scheme}://{0.netloc}".format(urlsplit(referer)) for referer in headers.getlist("referer")
        ]
        if not origins:
            return HTTPStatus.FORBIDDEN
    if not own_origins.issuperset(origins):
        return HTTPStatus.FORBIDDEN
    if "transfer-encoding" in headers:
        return HTTPStatus.LENGTH_REQUIRED
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > LARGEST_BODY:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return None
