"""A worker for the tests: over a running house, or over a scripted runner that answers at once.

Role: what the tests of accepted work share. Real: Worker, state store, file store; with a house also gateway,
dispatcher and engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
from moto.server import ThreadedMotoServer
from openai import AsyncOpenAI
from openai.types import Batch
from pyarrow import fs

from cluster.files import FileStore
from cluster.scheduling import TokenUsage
from cluster.state import Store, UsageRecord
from cluster.state.deferred import DeferredStore
from serve_apps.deferred.deployment import make_runner
from serve_apps.deferred.runner import Answer, Request
from serve_apps.deferred.shop import Pace, Shop
from serve_apps.deferred.slots import Slots
from serve_apps.deferred.worker import Worker
from serve_apps.gateway.engine_client import EngineClient
from serve_apps.leases import LeaseClient
from tests.unit.serve_apps.harness import House

PACE = Pace(busy_s=0.02, idle_s=0.05, beat_s=0.1, house_s=0.2, job_s=0.05)
ENDED = ("completed", "failed", "expired", "cancelled")
OFFLINE = {"serves": ["online", "semi_online", "offline"]}


def sections(folder: Any, **more: Any) -> dict[str, Any]:
    """Configuration of a house whose deployment takes offline work, with its files in the test's folder."""
    batches = {"stale_after_s": 2.0, **more.pop("batches", {})}
    return {
        "files": {"url": f"{folder}/files", **more.pop("files", {})},
        "batches": batches,
        "deployment": OFFLINE,
    } | more


@contextlib.asynccontextmanager
async def working(house: House, name: str = "w1", jobs: Any = None) -> AsyncIterator[Worker]:
    """A worker beside the house's gateway."""
    leases = {model: LeaseClient(handle, f"dw-{name}") for model, handle in house.handles.items()}
    for client in leases.values():
        client.start()
    async with EngineClient(5, 60) as client:
        runner = make_runner(house.parsed, client, leases, house.sink)
        shop = shop_of(house.parsed, house.store, runner, jobs)
        worker = Worker(shop, name)
        worker.start()
        try:
            yield worker
        finally:
            await worker.close()
            for client in leases.values():
                await client.close()


@contextlib.asynccontextmanager
async def doomed(house: House, name: str) -> AsyncIterator[None]:
    """A worker whose process is killed at the end of the block: nothing is committed, released or given back after."""
    leases = {model: LeaseClient(handle, f"dw-{name}") for model, handle in house.handles.items()}
    for client in leases.values():
        client.start()
    client = EngineClient(5, 60)
    shop = shop_of(house.parsed, house.store, make_runner(house.parsed, client, leases, house.sink))
    worker = Worker(shop, name)
    worker.start()
    yield
    dead = Dead()
    shop.deferred.batches = dead  # type: ignore[assignment]
    shop.files.put = dead.put  # type: ignore[method-assign]
    for runs in (worker._batches, worker._background):
        for job in runs.values():
            if job.run is not None:
                job.run._shop.deferred.batches = dead  # type: ignore[assignment]
    tasks = [*worker._tasks, *(job.task for runs in (worker._batches, worker._background) for job in runs.values())]
    for client in leases.values():
        tasks += client._tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
    for handle in house.handles.values():
        await handle.goodbye.remote(f"dw-{name}")  # what the dispatcher does once a process is silent for long enough


class DeadError(Exception):
    """The process is gone."""


class Dead:
    """Stands for what a process that was killed can still reach: nothing."""

    def __getattr__(self, name: str) -> Any:
        def gone(*_: Any, **__: Any) -> None:
            raise DeadError(name)

        return gone


def shop_of(config: Any, store: Store, runner: Any, jobs: Any = None) -> Shop:
    files = FileStore(config.files.url)
    slots = Slots(config.batches.max_in_flight)
    job_slots = Slots(config.batches.max_jobs)
    return Shop(config, store, DeferredStore(store), files, runner, slots, job_slots, jobs, PACE)


@contextlib.contextmanager
def s3_folder() -> Iterator[str]:
    """The URL of a folder on an S3-compatible server."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        fs.S3FileSystem(
            access_key="key", secret_key="secret", endpoint_override=f"{host}:{port}", scheme="http",
            region="us-east-1", allow_bucket_creation=True,
        ).create_dir("batches")  # fmt: skip
        query = f"endpoint_override={quote(f'http://{host}:{port}', safe='')}&scheme=http&region=us-east-1"
        yield f"s3://key:secret@batches/{uuid.uuid4().hex}?{query}"
    finally:
        server.stop()


def with_parts(shop: Shop, **parts: Any) -> Shop:
    return replace(shop, **parts)


@dataclass
class ScriptedRunner:
    """Answers every request: 200, or the status that its body names; each run costs 3 + 2 tokens."""

    runs: list[str] = field(default_factory=list)
    answer: Callable[[Request], Awaitable[None]] | None = None
    running: int = 0
    most: int = 0

    async def run(self, request: Request, slots: Slots | None = None) -> Answer:
        self.runs.append(request.id)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if self.answer is not None:
                await self.answer(request)
        finally:
            self.running -= 1
        status = orjson.loads(request.body).get("status", 200)
        body = orjson.dumps({"of": request.id, "status": status})
        return Answer(status, body, TokenUsage(3, 1, 2), (record(request, status),))


def record(request: Request, status: int) -> UsageRecord:
    caller = request.caller
    return UsageRecord(
        request.id, caller.tenant, caller.key_id, request.model, "d", request.request_class.value, 3, 1, 2, 0.0, None,
        0.1, status, time.time(),
    )  # fmt: skip


def line(number: int, model: str = "m", url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}]
    body = {"model": model, "messages": messages, "max_tokens": 3, **body}
    return {"custom_id": f"c{number}", "method": "POST", "url": url, "body": body}


def left_in(folder: Path) -> list[str]:
    """Objects of a local file store."""
    return sorted(path.name for path in folder.glob("files/*"))


def jsonl(*lines: Any) -> bytes:
    return b"".join(text if isinstance(text, bytes) else orjson.dumps(text) + b"\n" for text in lines)


async def submit(client: AsyncOpenAI, content: bytes, window: str = "24h", **more: Any) -> Batch:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    more = {"endpoint": "/v1/chat/completions", **more}
    return await client.batches.create(input_file_id=file.id, completion_window=window, **more)  # type: ignore[arg-type]


async def ended(client: AsyncOpenAI, batch_id: str, patience_s: float = 20.0) -> Batch:
    deadline = time.monotonic() + patience_s
    while (batch := await client.batches.retrieve(batch_id)).status not in ENDED:
        assert time.monotonic() < deadline, batch
        await asyncio.sleep(0.05)
    return batch


async def lines_of(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    content = await client.files.content(file_id)
    return [orjson.loads(text) for text in content.content.splitlines()]
