"""One background request from its claim to its result. Owns: what an outcome makes of the row. Must not know: HTTP.

The result ends the row and is billed in one transaction. Whoever is cut off before it leaves the row to be run again.
"""

from __future__ import annotations

import asyncio
import time

import orjson

from cluster.state import UsageRecord
from cluster.state.deferred import BackgroundRow
from cluster.vocabulary import RequestClass
from serve_apps.deferred.runner import Request
from serve_apps.deferred.shop import Shop
from serve_apps.gateway.auth import Caller

_LATE = {"error": {"message": "the request expired before it could be run", "type": "server_error", "code": "expired"}}


async def run_background(shop: Shop, row: BackgroundRow) -> None:
    """Run a claimed request. Cancelling gives it up; the claim is released by whoever cancels, or grows stale."""
    request = Request(
        id=row.id,
        path=row.path,
        model=str(orjson.loads(row.body).get("model")),  # the gateway parsed it before it was accepted
        body=row.body,
        caller=Caller(row.tenant, row.key_id),
        request_class=RequestClass(row.request_class),
        deadline_at_s=None,  # expiry bounds the wait; it makes nothing urgent
    )
    try:
        async with asyncio.timeout(max(0.0, row.expires_at_s - time.time())):
            answer = await shop.runner.run(request)
    except TimeoutError:
        await _finish(shop, row, "incomplete", None, orjson.dumps(_LATE), ())
        return
    status = "completed" if answer.status < 400 else "failed"
    await _finish(shop, row, status, answer.status, answer.body, answer.records)


async def _finish(
    shop: Shop, row: BackgroundRow, status: str, http_status: int | None, body: bytes, records: tuple[UsageRecord, ...]
) -> None:
    finish = shop.deferred.finish_background
    await asyncio.to_thread(finish, row.id, row.fence, status, http_status, body, records, time.time())
