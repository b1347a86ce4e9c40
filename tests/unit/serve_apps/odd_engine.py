"""An engine server in the test's own loop that says what the test wants: other engines' errors, nonsense, silence.

Role: what the scripted engine does not do. Must not know: the gateway.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class OddEngine:
    """Answers every POST with `status`, `content_type` and `parts`; `hold` keeps it from ending."""

    status: int = 200
    parts: list[bytes] = field(default_factory=list)
    content_type: bytes = b"application/json"
    hold: bool = False
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        self.paths.append(scope["path"])
        if self.hold and not self.parts:
            await _client_left(receive)
            return
        await send(
            {"type": "http.response.start", "status": self.status, "headers": [(b"content-type", self.content_type)]}
        )
        for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if self.hold:
            await _client_left(receive)
            return
        await send({"type": "http.response.body", "body": b""})


async def _client_left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
