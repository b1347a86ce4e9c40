"""`GET /v1/usage`: what the caller's tenant used and what it cost. Owns: parameters and errors.

Must not know: queries, how costs are split. A key sees its own tenant only.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import parse_qsl

import orjson

from cluster.config import TribesConfig
from cluster.scheduling.service import ServiceWeights
from cluster.state import GROUPINGS, Grouping, Store
from cluster.state.moments import MomentError, parse_period
from cluster.state.usage_report import usage_report
from serve_apps.gateway.apis.stores import answered_when_away
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.errors import ApiError

MAX_AT_ONCE = 2
"""Queries of one gateway: more would take the threads, and the database, that API keys are looked up with."""
_PARAMETERS = ("since", "until", "group_by")


class UsageApi:
    """Answers one gateway's questions about usage."""

    def __init__(self, store: Store, config: TribesConfig) -> None:
        self._store = store
        self._weights = ServiceWeights(config.scheduling.input_weight, config.scheduling.output_weight)
        self._room = asyncio.Semaphore(MAX_AT_ONCE)

    async def answer(self, caller: Caller, query: bytes) -> bytes:
        async with self._room:
            return await asyncio.to_thread(usage_page, self._store, caller, query, self._weights, time.time())


def usage_page(store: Store, caller: Caller, query: bytes, weights: ServiceWeights, now_s: float) -> bytes:
    """The JSON body; blocks. Raises ApiError."""
    given = _parameters(query)
    by = _grouping(given.get("group_by"))
    try:
        period = parse_period(given.get("since"), given.get("until"), now_s)
    except MomentError as error:
        raise ApiError(400, "invalid_value", str(error), param=error.name) from None
    with answered_when_away():
        lines = store.usage_lines(period, weights, caller.tenant, by)
    return orjson.dumps({"tenant": caller.tenant, **usage_report(lines, period, by)})


def _parameters(query: bytes) -> dict[str, str]:
    # latin-1 reads any byte; what is not in a known form is refused with the rest.
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    for name, _ in pairs:
        if name not in _PARAMETERS:
            message = f"unknown parameter {name!r}: there are {', '.join(_PARAMETERS)}"
            raise ApiError(400, "unknown_parameter", message, param=name)
    if len({name for name, _ in pairs}) < len(pairs):
        raise ApiError(400, "invalid_value", "a parameter is given twice")
    return dict(pairs)


def _grouping(text: str | None) -> Grouping | None:
    if not text:
        return None
    for grouping in GROUPINGS:
        if text == grouping:
            return grouping
    raise ApiError(400, "invalid_value", f"group_by is one of {', '.join(GROUPINGS)}", param="group_by")
