"""Uploads and downloads that do not come to their end: no thread, file or connection is left to itself."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from serve_apps.gateway.apis import files as files_api
from serve_apps.gateway.apis.multipart import MAX_FIELD_BYTES, read_form
from serve_apps.gateway.errors import ApiError
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.deferred_work import sections
from tests.unit.serve_apps.harness import House

CHUNK = 1024


@pytest.fixture
async def house(make_house: MakeHouse, tmp_path: Path) -> House:
    return await make_house(replicas=0, **sections(tmp_path))


class Client:
    """Asks for a file, and leaves, or breaks, after so many messages."""

    def __init__(self, house: House, file_id: str, *, leaves_after: int, breaks: bool = False) -> None:
        key = f"Bearer {house.keys['default']}".encode()
        path = f"/v1/files/{file_id}/content"
        self.scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"authorization", key)]}
        self.types: list[str] = []
        self._leaves_after = leaves_after
        self._breaks = breaks
        self._left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.types.append(message["type"])
        if len(self.types) == self._leaves_after:
            self._left.set()
            if self._breaks:
                raise OSError("broken pipe")
        await asyncio.sleep(0.001)


async def stored(house: House) -> str:
    file = await house.openai().files.create(file=("x", b"x" * (2048 * CHUNK)), purpose="user_data")
    return file.id


async def test_nothing_is_read_for_a_client_that_has_left(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = await stored(house)
    monkeypatch.setattr(files_api, "CHUNK_BYTES", CHUNK)
    client = Client(house, file_id, leaves_after=3)
    await house.gateway(client.scope, client.receive, client.send)
    assert len(client.types) < 1000


async def test_a_download_that_breaks_gets_no_second_answer(house: House) -> None:
    client = Client(house, await stored(house), leaves_after=2, breaks=True)
    with pytest.raises(ApiError):
        await house.gateway(client.scope, client.receive, client.send)
    assert client.types == ["http.response.start", "http.response.body"]


async def test_what_a_thread_works_on_is_left_to_it(house: House) -> None:
    """Nobody closes, or gives up, a file under a thread that reads or writes it."""
    going_on, done = threading.Event(), threading.Event()

    def work() -> None:
        going_on.wait(5)
        done.set()

    task = asyncio.create_task(house.gateway._files._in_thread(work))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    going_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_a_form_that_is_refused_is_read_to_its_end() -> None:
    """A client that is busy sending would not see the answer."""
    begin = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * (MAX_FIELD_BYTES + 1)
    chunks = [begin, *[b"x" * 1000] * 20, b"\r\n--B--\r\n"]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def write(data: bytes) -> None: ...

    scope = {"headers": [(b"content-type", b"multipart/form-data; boundary=B")]}
    with pytest.raises(ApiError, match="too long"):
        await read_form(scope, receive, "file", write, 1000)
    assert not chunks
