"""What the HTTP server that Ray Serve runs in a gateway's replica has to know about gateways.

- Who notices that a client has left: the gateway alone (http.py). Serve reads every request's messages in a task of its
  own and runs the application in another, to end it when its client leaves; a request that says so in a header is
  spared that. Where Ray does not know the header, everything works as before, only slower.
- Answers are written in as few pieces as they come (corked.py).

Ray has no public way to say either for all requests of one deployment, so `middlewares` is made for its hook
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, set for gateway replicas alone (serve_apps/app.py). Tried on Ray 2.60.
Must not know: requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.middleware import Middleware

from serve_apps.gateway import corked
from serve_apps.gateway.http import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]
HEADER = (b"x-request-disconnect-disabled", b"?1")
IMPORT_PATH = f"{__name__}.middlewares"


class OwnDisconnects:
    """ASGI middleware: says the word for every HTTP request."""

    def __init__(self, app: App) -> None:
        self._app = app

    # `async`, though it only passes on: uvicorn takes what is no coroutine function for ASGI 2, and answers 500. Then
    # HAProxy holds the replica for dead, and every request goes through Serve's own proxy.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # Behind what the client may have sent under the name: the last one counts.
            scope["headers"] = [*scope["headers"], HEADER]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Serve calls this in a replica, before it starts its server there."""
    corked.for_all_servers()
    return [Middleware(OwnDisconnects)]
