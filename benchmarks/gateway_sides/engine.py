"""The engine behind every door: the scripted engine of the tests, with a pace that a prompt can ask for.

`python -m benchmarks.gateway_sides.engine --port N [--api-key K] [--served-model-name M]`. A prompt with PACED in it is
answered at 200 tokens a second, one with SLOW in it at 40, any other at once. The pace is in the prompt because every
gateway passes prompts on, while some drop fields that they do not know. One process, uvloop and httptools; TCP_NODELAY
is uvloop's default. Owns: the choice of pace. Must not know: who asks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import uvicorn

from tests.support.scripted_engine import Engine, Receive, Scope, Send, api_key, parser
from tests.support.scripted_script import Script

MODULE = "benchmarks.gateway_sides.engine"
PACED, SLOW = "[200 tokens/s]", "[40 tokens/s]"
PACES_MS = {PACED: 5.0, SLOW: 25.0}
TOKENS = 20
KEEP_ALIVE_S = 120
"""Longer than any pause between two measurements: a door must not meet a connection that the engine is closing."""


@dataclass(slots=True)
class PacedEngine:
    """Several engines of one model that differ in their pace."""

    instant: Engine
    others: dict[bytes, Engine]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self.instant(scope, receive, send)
            return
        first = await receive()
        pending = [first]

        async def replay() -> dict[str, Any]:
            return pending.pop() if pending else await receive()

        body: bytes = first.get("body", b"")
        engine = next((other for mark, other in self.others.items() if mark in body), self.instant)
        await engine(scope, replay, send)


def build(model: str, key: str | None, script: Script) -> PacedEngine:
    """The application."""
    others = {
        mark.encode(): Engine(model, key, Script(**{**asdict(script), "itl_ms": itl_ms}))
        for mark, itl_ms in PACES_MS.items()
    }
    return PacedEngine(Engine(model, key, script), others)


def main() -> None:
    flags, _ = parser().parse_known_args()
    script = Script(**{name: getattr(flags, name) for name in asdict(Script())})
    uvicorn.run(
        build(flags.served_model_name or flags.model_path, api_key(flags), script),
        host=flags.host,
        port=flags.port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
