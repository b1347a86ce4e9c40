"""What Serve's server in a gateway replica is told: breaks when Ray moves what that relies on."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.http_util import parse_disconnect_disabled_header, validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path

from serve_apps.app import NEAR_SERVE
from serve_apps.gateway import corked


async def test_serve_finds_the_middleware_and_reads_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    corked_too: list[bool] = []
    monkeypatch.setattr(corked, "for_all_servers", lambda: corked_too.append(True))
    [middleware] = validate_http_proxy_callback_return(
        call_function_from_import_path(NEAR_SERVE["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])
    )
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    wrapped = middleware.cls(app, *middleware.args, **middleware.kwargs)
    sent = [(b"x-request-disconnect-disabled", b"?0"), (b"a", b"b")]
    await wrapped({"type": "http", "headers": sent}, None, None)
    await wrapped({"type": "lifespan"}, None, None)
    assert parse_disconnect_disabled_header(dict(seen[0]["headers"]))
    assert corked_too == [True]
    assert (b"a", b"b") in seen[0]["headers"] and "headers" not in seen[1]
