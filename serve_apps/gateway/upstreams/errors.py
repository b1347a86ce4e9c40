"""What an upstream's error answers mean, and how much of them a client may hear.

Owns: that table (client.py shows it), Retry-After, and keeping keys and addresses out of messages. Must not
know: who is asked next.
"""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import aiohttp

from serve_apps.gateway.errors import ApiError, engine_error
from serve_apps.gateway.upstreams.answer import UpstreamFailedError

ACCOUNT_PAUSE_S = 60.0
BUSY_PAUSE_S = 5.0
MAX_ERROR_BYTES = 64 * 1024
_OUR_REQUEST = (400, 413, 422)
_OUR_ACCOUNT = (401, 402, 403)
_MISSING = (404, 405, 501)
_BUSY = (429, 503)


async def failure_of(
    answer: aiohttp.ClientResponse, path: str, unspoken: tuple[str | None, str]
) -> ApiError | UpstreamFailedError:
    """The exception that stands for an answer that is not 200. `unspoken`: the key and the address."""
    status = answer.status
    if status in _OUR_REQUEST:
        return _cleaned(engine_error(status, await _beginning(answer), path), unspoken)
    if status in _OUR_ACCOUNT:
        return UpstreamFailedError(f"it answered {status}: is its key right and its account in order?", ACCOUNT_PAUSE_S)
    if status in _MISSING:
        return UpstreamFailedError(f"it answered {status}: has it this model, and {path}?", counts=False)
    if status in _BUSY:
        return UpstreamFailedError(f"it is busy ({status})", retry_after_s(answer))
    return UpstreamFailedError(f"it answered {status}")


async def _beginning(answer: aiohttp.ClientResponse) -> bytes:
    """The body, which may come in pieces, up to a bound."""
    body = b""
    while len(body) < MAX_ERROR_BYTES and (piece := await answer.content.read(MAX_ERROR_BYTES - len(body))):
        body += piece
    return body


def retry_after_s(answer: aiohttp.ClientResponse) -> float:
    """As the answer asks for, in any of the three forms; a little while where it asks for nothing."""
    text = answer.headers.get("retry-after", "")
    for value, unit_s in ((answer.headers.get("retry-after-ms", ""), 0.001), (text, 1.0)):
        try:
            wait_s = float(value) * unit_s
        except ValueError:
            continue
        if 0 <= wait_s < math.inf:
            return wait_s
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return BUSY_PAUSE_S


def _cleaned(error: ApiError, unspoken: tuple[str | None, str]) -> ApiError:
    key, base_url = unspoken
    parts = urlsplit(base_url)
    message = error.message
    for secret in (key, base_url, parts.netloc, parts.hostname):
        if secret:
            message = message.replace(secret, "***")
    return ApiError(error.status, error.code, message, param=error.param)
