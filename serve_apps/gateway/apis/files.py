"""`/v1/files`: OpenAI's Files API. A file is whole in the file store, then in the state store, then the 2xx goes out.

Owns: the HTTP side of files. Must not know: where the bytes are, who uses a file.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from cluster.config.services import FilesConfig
from cluster.files import FileStore
from cluster.files.store import CHUNK_BYTES, FileWriter
from cluster.state.deferred import DeferredStore
from cluster.state.deferred_files import StoredFile, TenantFullError, object_of
from cluster.state.ids import is_id, new_id
from serve_apps.gateway.apis.multipart import Form, read_form
from serve_apps.gateway.apis.pages import after_of, lifetime_of, limit_of, page, query_of
from serve_apps.gateway.apis.stores import answered_when_away
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.http import (
    JSON_HEADERS,
    Receive,
    Scope,
    Send,
    cancelled_when_gone,
    header,
    send_response,
)

FILE_KIND = "file-"
OUTPUT_PURPOSE = "batch_output"
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MAX_FILENAME_CHARS = 255
MAX_PAGE = 10_000
THREADS = 8
"""For the file store alone: uploads to a slow one must not take the threads that API keys are looked up with."""
_Result = TypeVar("_Result")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class FilesApi:
    """Uploads, lists, downloads and deletes."""

    def __init__(self, config: FilesConfig, deferred: DeferredStore, files: FileStore) -> None:
        self._config = config
        self._book = deferred.files
        self._files = files
        self._threads = ThreadPoolExecutor(THREADS, "files")

    def close(self) -> None:
        """No new work; threads end with what they are at."""
        self._threads.shutdown(wait=False)

    async def _in_thread(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        """Ends when the thread has: who is cancelled must not close, or give up, what a thread still works on."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.gather(work, return_exceptions=True)
            raise

    async def __call__(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        with answered_when_away():
            await self._answer(caller, scope, receive, send)

    async def _answer(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"].removeprefix("/v1/files").strip("/").split("/"), scope["method"]:
            case [""], "POST":
                await _send(send, file_object(await self._upload(caller, scope, receive)))
            case [""], "GET":
                await send_response(send, 200, JSON_HEADERS, await self._page(caller, scope))
            case [file_id], "GET":
                await _send(send, file_object(await self._get(caller, file_id)))
            case [file_id], "DELETE":
                await self._delete(caller, file_id)
                await _send(send, {"id": file_id, "object": "file", "deleted": True})
            case [file_id, "content"], "GET":
                file = await self._get(caller, file_id)
                async with cancelled_when_gone(receive):
                    await self._content(file, header(scope, b"range"), send)
            case [""] | [_] | [_, "content"], method:
                raise ApiError(405, "method_not_allowed", f"{method} is not allowed on {scope['path']}")
            case _:
                raise ApiError(404, "unknown_url", f"unknown path {scope['path']}")

    async def _upload(self, caller: Caller, scope: Scope, receive: Receive) -> StoredFile:
        now_s = time.time()
        file_id = new_id(FILE_KIND, now_s)
        name = object_of(file_id)
        writer: FileWriter = await self._in_thread(self._files.create, name)
        try:
            form = await read_form(
                scope, receive, "file", lambda data: self._in_thread(writer.write, data), self._config.max_bytes
            )
            file = self._described(caller, form, file_id, name, now_s)
            await self._in_thread(writer.commit)
        except BaseException:
            await self._in_thread(writer.abandon)
            raise
        try:
            await asyncio.to_thread(self._book.add, file, self._config.max_tenant_bytes)
        except TenantFullError:
            await self._in_thread(self._files.delete, name)
            message = f"your files would take more than {self._config.max_tenant_bytes} bytes: delete some"
            raise ApiError(413, "storage_limit_exceeded", message, param="file") from None
        return file

    def _described(self, caller: Caller, form: Form, file_id: str, name: str, now_s: float) -> StoredFile:
        """The row of an upload. Raises ApiError 400."""
        purpose = form.fields.get("purpose")
        if form.filename is None:
            raise ApiError(400, "missing_required_parameter", "the form needs a `file`", param="file")
        if purpose is None:
            raise ApiError(400, "missing_required_parameter", "the form needs a `purpose`", param="purpose")
        if purpose not in PURPOSES:
            raise _unknown_purpose(purpose, PURPOSES)
        if form.file_bytes == 0:
            raise ApiError(400, "empty_file", "the file is empty", param="file")
        prefix = "expires_after["
        policy = {n[len(prefix) : -1]: v for n, v in form.fields.items() if n.startswith(prefix) and n.endswith("]")}
        life_s: float | None = lifetime_of(policy, "expires_after")
        if life_s is None and purpose == "batch" and self._config.batch_input_days is not None:
            life_s = self._config.batch_input_days * 86400
        filename = "".join(c for c in form.filename if c.isprintable())[:MAX_FILENAME_CHARS] or "upload"
        expires_at_s = None if life_s is None else now_s + life_s
        return StoredFile(file_id, caller.tenant, purpose, filename, name, form.file_bytes, now_s, expires_at_s)

    async def _get(self, caller: Caller, file_id: str) -> StoredFile:
        _require_id(file_id)
        file = await asyncio.to_thread(self._book.get, caller.tenant, file_id, time.time())
        if file is None:
            raise no_such_file(file_id)
        return file

    async def _page(self, caller: Caller, scope: Scope) -> bytes:
        query = query_of(scope)
        limit = limit_of(query, MAX_PAGE, MAX_PAGE)
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(400, "invalid_value", f"order must be asc or desc, not {order[:20]!r}", param="order")
        purpose = query.get("purpose")
        if purpose is not None and purpose not in (*PURPOSES, OUTPUT_PURPOSE):
            raise _unknown_purpose(purpose, (*PURPOSES, OUTPUT_PURPOSE))
        found = await asyncio.to_thread(
            self._book.page,
            caller.tenant,
            time.time(),
            after=after_of(query, FILE_KIND),
            limit=limit + 1,
            newest_first=order == "desc",
            purpose=purpose,
        )
        return page([file_object(file) for file in found], limit)

    async def _delete(self, caller: Caller, file_id: str) -> None:
        _require_id(file_id)
        if not await asyncio.to_thread(self._book.delete, caller.tenant, file_id, time.time()):
            raise no_such_file(file_id)

    async def _content(self, file: StoredFile, asked: bytes | None, send: Send) -> None:
        span = _span(asked, file.size_bytes)
        first, end = span or (0, file.size_bytes)
        source = await self._in_thread(self._files.open, file.object_name)
        try:
            await self._in_thread(source.seek, first)
            headers = [
                (b"content-type", b"application/octet-stream"),
                (b"content-length", str(end - first).encode()),
                (b"accept-ranges", b"bytes"),
                (b"content-disposition", f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}".encode()),
            ]
            if span is not None:
                headers.append((b"content-range", f"bytes {first}-{end - 1}/{file.size_bytes}".encode()))
            await send({"type": "http.response.start", "status": 206 if span else 200, "headers": headers})
            await self._stream(source, file, first, end, send)
        finally:
            await self._in_thread(source.close)

    async def _stream(self, source: Any, file: StoredFile, first: int, end: int, send: Send) -> None:
        while first < end:
            try:
                data = await self._in_thread(source.read, min(CHUNK_BYTES, end - first))
            except OSError as error:
                # Too late for another answer: the connection breaks, and the client sees that bytes are missing.
                raise RuntimeError(f"reading {file.object_name} failed half way") from error
            if not data:
                raise RuntimeError(f"{file.object_name} is shorter than its row says")
            first += len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def file_object(file: StoredFile) -> dict[str, Any]:
    """A file as OpenAI's clients know it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at_s),
        "expires_at": None if file.expires_at_s is None else int(file.expires_at_s),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def no_such_file(file_id: str, param: str = "id") -> ApiError:
    return ApiError(404, "file_not_found", f"No such File object: {file_id[:64]}", param=param)


def _require_id(file_id: str) -> None:
    """What cannot be an id is not looked up: a database may not even take its text."""
    if not is_id(FILE_KIND, file_id):
        raise no_such_file(file_id)


def _unknown_purpose(purpose: str, known: tuple[str, ...]) -> ApiError:
    message = f"unknown purpose {purpose[:64]!r}; use one of {', '.join(known)}"
    return ApiError(400, "invalid_value", message, param="purpose")


def _span(asked: bytes | None, size_bytes: int) -> tuple[int, int] | None:
    """First byte and end of a `Range`; None: the whole file. Several ranges at once get the whole, as HTTP allows."""
    found = _RANGE.fullmatch((asked or b"").decode("latin-1").strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first == "":  # the last bytes, so many
        begin, end = max(0, size_bytes - int(last)), size_bytes
    else:
        begin, end = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
    if begin >= end:
        raise ApiError(416, "invalid_range", f"the file has {size_bytes} bytes")
    return begin, end


async def _send(send: Send, body: dict[str, Any]) -> None:
    await send_response(send, 200, JSON_HEADERS, orjson.dumps(body))
