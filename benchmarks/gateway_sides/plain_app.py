"""The plain way to put an engine behind Ray Serve: a FastAPI deployment that passes a stream on.

`benchmarks.gateway_sides.plain_app:build` for a Serve config file, with `url` and `key` of the engine. aiohttp to the
engine over kept connections, its bytes as they come: what a careful user writes. No key of a client is checked, nothing
is queued or counted. Serve's limit of five requests a replica is lifted. Owns: the deployment.
"""

# No `from __future__ import annotations` here: FastAPI and Serve read annotations.
from collections.abc import AsyncIterator

import aiohttp
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from ray import serve
from ray.serve import Application

app = FastAPI()


class EngineArgs(BaseModel):
    """Arguments of the application."""

    url: str
    key: str


# Before the class: Serve pickles the application while the class is being made.
async def _bytes(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.content.iter_any():
            yield chunk
    finally:
        answer.release()


@serve.deployment(num_replicas=1, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0.2})
@serve.ingress(app)
class PlainProxy:
    """Passes chat completions on."""

    def __init__(self, engine: EngineArgs) -> None:
        self._engine = engine
        self._session: aiohttp.ClientSession | None = None

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> StreamingResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        headers = {"Authorization": f"Bearer {self._engine.key}", "Content-Type": "application/json"}
        url = f"{self._engine.url}/v1/chat/completions"
        answer = await self._session.post(url, data=await request.body(), headers=headers)
        return StreamingResponse(_bytes(answer), answer.status, media_type=answer.content_type)


def build(args: EngineArgs) -> Application:
    """The application for one engine."""
    return PlainProxy.bind(args)  # type: ignore[attr-defined]
