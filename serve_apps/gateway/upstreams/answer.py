"""An upstream's answer in the form in which engines answer, so that whoever delivers answers need not know the source.

Engines write JSON without spaces and events with `\\n`; upstreams write as they like, and some say that they failed in
an answer with status 200. Only the first event and those with a usage are parsed; all others pass as they are. What
must be whole before it can be passed on (an event, an answer that is no stream) has a bound: it is somebody else's.

Owns: that form, and the usage. Must not know: connections, prices, clients.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import orjson

from cluster.scheduling import TokenUsage
from serve_apps.gateway.request import BYTES_PER_TOKEN
from serve_apps.gateway.sse import read_usage

MAX_EVENT_BYTES = 16 * 1024 * 1024
MAX_ANSWER_BYTES = 256 * 1024 * 1024
_END = b"\n\n"
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_ERROR = re.compile(rb'^data:\s*\{\s*"error"\s*:\s*[{"]', re.MULTILINE)


class UpstreamFailedError(Exception):
    """The upstream did not serve the request; another may. The text is for our log: no key, no address, no prompt."""

    def __init__(self, text: str, pause_s: float | None = None, *, counts: bool = True) -> None:
        """`pause_s`: leave it alone so long. `counts`: it may be that the upstream does not work at all."""
        super().__init__(text)
        self.pause_s = pause_s
        self.counts = counts


class UpstreamEvents:
    """Server-sent events as an upstream writes them in, as engines do out, whole events at a time."""

    def __init__(self) -> None:
        self._carry = b""
        self._begun = False
        self.failed = False
        """It says so itself: what came before that is the last of the answer."""
        self.usage: TokenUsage | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Raises UpstreamFailedError for a stream that begins with an error, or whose events have no end."""
        data = (self._carry + chunk).replace(b"\r\n", b"\n")
        end = data.rfind(_END) + len(_END)
        if end < len(_END):
            if len(data) > MAX_EVENT_BYTES:
                raise UpstreamFailedError(f"an event of its stream is longer than {MAX_EVENT_BYTES} bytes")
            self._carry = data
            return b""
        block, self._carry = data[:end], data[end:]
        if (error := _ERROR.search(block)) is not None:
            self.failed = True
            block = b"".join(block[: error.start()].rpartition(_END)[:2])
        if not self._begun or block.startswith(b":") or b"\n:" in block or _USAGE.search(block):
            block = b"".join(self._event(event) for event in block.split(_END)[:-1])
        if self.failed and not self._begun:
            raise UpstreamFailedError("its stream begins with an error")
        return block

    def rest(self) -> bytes:
        """What came after the last complete event."""
        return self._carry

    def _event(self, event: bytes) -> bytes:
        lines = [line for line in event.split(b"\n") if line and not line.startswith(b":")]  # comments keep alive
        if not lines:
            return b""
        if not self._begun or _USAGE.search(event):
            lines = [self._data(line) if line.startswith(b"data:") else line for line in lines]
        self._begun = True
        return b"\n".join(lines) + _END

    def _data(self, line: bytes) -> bytes:
        parsed = _object(line.removeprefix(b"data:"))
        if parsed is None:
            return line
        if not self._begun and parsed.get("error"):
            raise UpstreamFailedError("its stream begins with an error")
        self.usage = _usage_of(parsed) or self.usage
        return b"data: " + _written(parsed)


class UpstreamAnswer:
    """An `Answer` (courses/engine_call.py). `on_first` is called whenever some of it is here."""

    def __init__(
        self, upstream: str, answer: aiohttp.ClientResponse, prompt_tokens: int, on_first: Callable[[], None]
    ) -> None:
        self.status = answer.status
        self.content_type = answer.content_type
        self.headers = {"content-type": answer.headers.get("content-type", ""), "x-tribes-upstream": upstream}
        self.usage: TokenUsage | None = None
        """As the upstream says; of a whole answer that does not tell it, an estimate."""
        self._answer = answer
        self._prompt_tokens = prompt_tokens
        self._on_first = on_first

    over = False
    """It is known only by asking for more."""

    @property
    def content(self) -> UpstreamAnswer:
        return self

    async def iter_any(self) -> AsyncIterator[bytes]:
        events = UpstreamEvents()
        async for chunk in self._answer.content.iter_any():
            block = events.feed(chunk)
            self.usage = events.usage
            if block:
                self._on_first()
                yield block
            if events.failed:
                raise UpstreamFailedError("its stream ends with an error")
        if rest := events.rest():
            yield rest

    async def read(self) -> bytes:
        body = await self._whole()
        self._on_first()
        parsed = _object(body)
        if parsed is None:
            if not body.lstrip().startswith(b"{"):
                raise UpstreamFailedError("its answer is no JSON object")
            self.usage = self._estimate(body)  # such as one with NaN in it, which some write and clients read
            return body
        if parsed.get("error"):
            raise UpstreamFailedError("its answer is an error with status 200")
        self.usage = _usage_of(parsed) or self._estimate(body)
        return _written(parsed)

    async def _whole(self) -> bytes:
        body = bytearray()
        async for chunk in self._answer.content.iter_any():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise UpstreamFailedError(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
        return bytes(body)

    def _estimate(self, body: bytes) -> TokenUsage:
        return TokenUsage(self._prompt_tokens, 0, len(body) // BYTES_PER_TOKEN)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _written(parsed: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(parsed)
    except orjson.JSONEncodeError:
        raise UpstreamFailedError("its answer is nested too deep to be written again") from None


def _usage_of(parsed: dict[str, Any]) -> TokenUsage | None:
    response = parsed.get("response")
    return read_usage(parsed.get("usage")) or (
        read_usage(response.get("usage")) if isinstance(response, dict) else None
    )
