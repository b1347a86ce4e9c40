"""What Serve's server in a gateway replica is told: breaks when Ray or uvicorn move what that relies on."""

from __future__ import annotations

from typing import Any

import pytest
import uvicorn
from ray.serve._private.http_util import (
    _apply_middlewares,
    parse_disconnect_disabled_header,
    validate_http_proxy_callback_return,
)
from ray.serve._private.utils import call_function_from_import_path
from starlette.middleware import Middleware

from serve_apps.app import NEAR_SERVE
from serve_apps.gateway import corked
from serve_apps.gateway.http import Receive, Scope, Send


@pytest.fixture
def middlewares(monkeypatch: pytest.MonkeyPatch) -> list[Middleware]:
    """As Serve finds them."""
    corked_too: list[bool] = []
    monkeypatch.setattr(corked, "for_all_servers", lambda: corked_too.append(True))
    found = call_function_from_import_path(NEAR_SERVE["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])
    assert corked_too == [True]
    return validate_http_proxy_callback_return(found)


async def test_serve_reads_the_word_on_every_http_request(middlewares: list[Middleware]) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    (middleware,) = middlewares
    wrapped = middleware.cls(app, *middleware.args, **middleware.kwargs)
    sent = [(b"x-request-disconnect-disabled", b"?0"), (b"a", b"b")]
    for kind in ("http", "websocket"):
        await wrapped({"type": kind, "headers": sent}, None, None)
    http, websocket = (scope["headers"] for scope in seen)
    assert parse_disconnect_disabled_header(dict(http)) and (b"a", b"b") in http
    assert websocket == sent


def test_uvicorn_takes_the_whole_for_asgi_3(middlewares: list[Middleware]) -> None:
    """Otherwise it answers 500, HAProxy holds the replica for dead, and every request goes through Serve's own proxy,
    which is slow and works, so that nothing else would show it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    whole = _apply_middlewares(app, middlewares)
    config = uvicorn.Config(lambda: whole, factory=True, log_config=None)
    config.load()
    assert config.interface == "asgi3"
