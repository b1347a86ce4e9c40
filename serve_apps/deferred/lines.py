"""The lines of a batch's input file. Owns: what a good line is, and reading lines without holding the file.

Must not know: who runs them. Lines are known by their number in the file, the first being 1.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from cluster.files import FileStore
from cluster.files.store import CHUNK_BYTES

MAX_PROBLEMS = 100
MAX_ID_CHARS = 512
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a batch."""

    line: int
    custom_id: str
    model: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Rules:
    """What lines of a batch may ask for."""

    endpoint: str
    models: Collection[str]
    max_requests: int
    max_line_bytes: int


@dataclass(slots=True)
class Scan:
    """What an input file holds."""

    total: int = 0
    models: set[str] = field(default_factory=set)
    problems: list[dict[str, Any]] = field(default_factory=list)

    def add(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        self.problems.append({"code": code, "line": line, "message": message, "param": param})


class LineError(Exception):
    """A line that cannot be run."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def scan(files: FileStore, name: str, rules: Rules) -> Scan:
    """Read the whole file once; at most MAX_PROBLEMS problems are told."""
    found = Scan()
    seen: set[str] = set()
    with files.open(name) as source:
        for line, raw, _ in _raw_lines(source, 1, rules.max_line_bytes):
            found.total += 1
            if found.total > rules.max_requests:
                message = f"the file has more than {rules.max_requests} requests, the most that a batch may have"
                found.add("too_many_requests", message, line)
                break
            try:
                item = parse(line, raw, rules)
                if item.custom_id in seen:
                    raise LineError("duplicate_custom_id", f"custom_id {item.custom_id!r} was used before", "custom_id")
            except LineError as error:
                found.add(error.code, str(error), line, error.param)
                if len(found.problems) >= MAX_PROBLEMS:
                    break
            else:
                seen.add(item.custom_id)
                found.models.add(item.model)
    if not found.total:
        found.add("empty_file", "the file has no requests")
    return found


def parse(line: int, raw: bytes | None, rules: Rules) -> Item:
    """The request in a line, checked. Raises LineError."""
    if raw is None:
        raise LineError("line_too_long", f"a line has at most {rules.max_line_bytes} bytes")
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise LineError("invalid_json_line", f"this line is not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise LineError("invalid_json_line", "a line must be a JSON object")
    custom_id, body = record.get("custom_id"), record.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_CHARS:
        message = f"custom_id must be a text of 1 to {MAX_ID_CHARS} characters"
        raise LineError("missing_required_parameter", message, "custom_id")
    if record.get("method") != "POST":
        raise LineError("invalid_method", f"method must be POST, not {_shown(record.get('method'), 20)}", "method")
    if record.get("url") != rules.endpoint:
        message = f"url must be the batch's endpoint {rules.endpoint!r}, not {_shown(record.get('url'), 64)}"
        raise LineError("invalid_url", message, "url")
    if not isinstance(body, dict):
        raise LineError("missing_required_parameter", "body must be an object", "body")
    model = body.get("model")
    if not isinstance(model, str) or model not in rules.models:
        known = ", ".join(sorted(rules.models))
        raise LineError("model_not_found", f"model {_shown(model, 64)} is not served here; known: {known}", "model")
    return Item(line, custom_id, model, _written(body))


def _shown(value: object, chars: int) -> str:
    """A value inside a message. Only texts are shown: others may be nested deeper than Python's stack."""
    if isinstance(value, str):
        return repr(value[:chars])
    return "nothing" if value is None else f"a value of the type {type(value).__name__}"


def _written(body: dict[str, Any]) -> bytes:
    """orjson reads deeper nesting than it writes. Raises LineError."""
    try:
        return orjson.dumps(body)
    except TypeError:
        raise LineError("invalid_json_line", "body is nested too deep", "body") from None


def _checked_before(line: int, raw: bytes) -> Item:
    """The request in a line that was good when its batch was validated, whatever the configuration says since."""
    record = orjson.loads(raw)
    return Item(line, record["custom_id"], record["body"]["model"], orjson.dumps(record["body"]))


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading goes on."""

    offset: int = 0
    line: int = 1


def read_some(files: FileStore, name: str, place: Place, done: Collection[int]) -> tuple[list[Item], Place | None]:
    """About a megabyte of requests that are not done yet, from a place on; None: the file ends there.

    Opened anew each time, so that nothing is left open whenever a caller is stopped. Lines have any length: they were
    judged when the batch was validated, and a limit that was lowered since must lose none.
    """
    items: list[Item] = []
    size = 0
    with files.open(name) as source:
        source.seek(place.offset)
        for line, raw, end in _raw_lines(source, place.line):
            if line not in done and raw is not None:
                items.append(_checked_before(line, raw))
                size += len(items[-1].body)
            if size >= CHUNK_BYTES:
                return items, Place(place.offset + end, line + 1)
    return items, None


def _raw_lines(source: Any, first: int, max_bytes: int | None = None) -> Iterator[tuple[int, bytes | None, int]]:
    """Number, bytes (None: too many) and end of each line that is not blank."""
    stream = io.BufferedReader(source, CHUNK_BYTES)
    number, end = first, 0
    at_once = -1 if max_bytes is None else max_bytes + 1
    while raw := stream.readline(at_once):
        end += len(raw)
        whole: bytes | None = raw
        while len(raw) == at_once and not raw.endswith(b"\n"):
            whole = None
            raw = stream.readline(at_once)
            end += len(raw)
            if not raw:
                break
        if whole is not None and number == 1:
            whole = whole.removeprefix(_BOM)
        if whole is None or whole.strip():
            yield number, whole, end
        number += 1
    stream.detach()
