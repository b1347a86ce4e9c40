"""An upload as `multipart/form-data`: small fields in memory, the file's bytes on their way to a writer.

Owns: reading such a body without holding it. Must not know: what the fields mean, where the bytes go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.http import ClientGoneError, Receive, Scope, header

MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS = 64
MAX_DISCARDED_BYTES = 256 * 1024 * 1024
WRITE_BYTES = 1 << 20

Write = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class Form:
    """What a form held besides the file's bytes."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    """None: there was no file."""
    file_bytes: int = 0


@dataclass(slots=True)
class _Part:
    headers: dict[str, str] = field(default_factory=dict)
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


async def read_form(scope: Scope, receive: Receive, file_field: str, write: Write, max_bytes: int) -> Form:
    """Read the whole body; the bytes of `file_field` go to `write` as they come.

    Raises ApiError 400 for a body that is no form, 413 for a file above `max_bytes`, ClientGoneError.
    """
    reader = _Reader(_boundary(scope), file_field)
    received = 0
    refused: ApiError | None = None
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        received += len(chunk)
        if refused is None:
            refused = reader.refusal_of(chunk, max_bytes)
        if refused is None and len(reader.file_data) >= WRITE_BYTES:
            await write(reader.taken())
        # What is refused is still read to its end, unstored: a client that is busy sending sees no answer.
        if not message.get("more_body") or (refused is not None and received > max_bytes + MAX_DISCARDED_BYTES):
            break
        if refused is not None:
            await asyncio.sleep(0)
    if refused is not None:
        raise refused
    reader.end()
    await write(reader.taken())
    return reader.form


def _boundary(scope: Scope) -> bytes:
    kind, options = parse_options_header(header(scope, b"content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(400, "invalid_form", "send the file as multipart/form-data with the fields `file` and `purpose`")
    return boundary


class _Reader:
    """Callbacks of the parser. Fields are collected, the file's bytes gather in `file_data` until they are taken."""

    def __init__(self, boundary: bytes, file_field: str) -> None:
        self.form = Form()
        self.file_data = bytearray()
        self._file_field = file_field
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_end": self._end_body,
                },
            )
        except FormParserError as error:
            raise _broken(error) from None

    def refusal_of(self, chunk: bytes, max_bytes: int) -> ApiError | None:
        """Take the next piece; why the form cannot be taken, if that shows in it."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            return _broken(error)
        except ApiError as error:
            return error
        if self.form.file_bytes > max_bytes:
            message = f"the file is larger than {max_bytes} bytes"
            return ApiError(413, "file_too_large", message, param=self._file_field)
        return None

    def end(self) -> None:
        if not self._ended:
            raise ApiError(400, "invalid_form", "the form ends before its last boundary: send it again, whole")

    def taken(self) -> bytes:
        data, self.file_data = bytes(self.file_data), bytearray()
        return data

    def _begin(self) -> None:
        self._part = _Part()

    def _end_header(self) -> None:
        name, value = (bytes(part).decode("latin-1") for part in self._header)
        self._part.headers[name.lower()] = value
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.headers.get("content-disposition"))
        self._part.name = options.get(b"name", b"").decode(errors="replace")
        self._part.is_file = b"filename" in options and self._part.name == self._file_field
        if self._part.is_file:
            if self.form.filename is not None:
                raise ApiError(400, "invalid_form", "one file at a time", param=self._file_field)
            self.form.filename = options[b"filename"].decode(errors="replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self.file_data += data[start:end]
            self.form.file_bytes += end - start
            return
        self._part.data += data[start:end]
        if len(self._part.data) > MAX_FIELD_BYTES:
            raise ApiError(400, "invalid_form", f"the field {self._part.name!r} is too long", param=self._part.name)

    def _end(self) -> None:
        if not self._part.is_file:
            self.form.fields[self._part.name] = self._part.data.decode(errors="replace")
            if len(self.form.fields) > MAX_FIELDS:
                raise ApiError(400, "invalid_form", f"the form has more than {MAX_FIELDS} fields")

    def _end_body(self) -> None:
        self._ended = True


def _broken(error: Exception) -> ApiError:
    return ApiError(400, "invalid_form", f"the multipart body cannot be read: {error}")
