"""Everything at once: leases are conserved and every request has one outcome."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, House, chat
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.servers import Engine, served

REQUESTS = 300


def script(dice: random.Random) -> dict[str, Any]:
    kind = dice.random()
    if kind < 0.1:
        return {"fail_status": dice.choice([500, 503])}
    if kind < 0.15:
        return {"hang_after_tokens": dice.randint(0, 3)}
    return {"ttft_ms": dice.choice([0, 10, 40]), "itl_ms": dice.choice([0, 5]), "tokens": dice.randint(1, 12)}


async def one(house: House, dice: random.Random) -> str:
    """Send a request that may leave at any time; what its client saw."""
    await asyncio.sleep(dice.random())
    body = chat(
        "word " * dice.randint(1, 40),
        stream=dice.random() < 0.6,
        service_tier=dice.choice(["default", "flex"]),
        x_script=script(dice),
    )
    hangs = "hang_after_tokens" in body["x_script"]
    patience_s = dice.choice([0.05, 0.3, 1.0]) if hangs or dice.random() < 0.25 else 60
    try:
        async with (
            asyncio.timeout(patience_s),
            house.session(dice.choice("abc")) as http,
            http.post(CHAT, json=body) as answer,
        ):
            text = await answer.read()
    except TimeoutError:
        return "left"
    if answer.status != 200:
        assert b'"error"' in text
        return str(answer.status)
    return "broken" if b'{"error"' in text else "served"


@pytest.mark.parametrize("seed", [1, 2])
async def test_leases_are_conserved_in_a_storm(make_house: MakeHouse, engines: list[Engine], seed: int) -> None:
    tenants = {"a": {"weight": 2}, "b": {}, "c": {"limits": {"max_concurrent": 3}}}
    house = await make_house(replicas=2, max_running=6, tenants=tenants)
    dice = random.Random(seed)

    async def trouble() -> None:
        """Messages get lost, the dispatcher dies, a bad replica comes and goes."""
        handle = house.handles["m"]
        async with served(OddEngine(status=500)) as url:
            await house.replica("bad", url)
            for method in ("exchange", "next_answers", "hello"):
                await asyncio.sleep(0.2)
                handle.lose_answers(method)
            await house.restart_dispatcher(0.1)
            await asyncio.sleep(0.3)
            await house.gone("bad")

    outcomes, _ = await asyncio.gather(
        asyncio.gather(*(one(house, random.Random(dice.random())) for _ in range(REQUESTS))), trouble()
    )
    await house.quiet()
    counts = Counter(outcomes)
    assert counts.total() == REQUESTS and counts["served"] > REQUESTS / 3 and counts["left"] > 10, counts
    assert counts.keys() <= {"served", "left", "502"}, counts
    records = house.sink.records
    statuses = Counter(r.status for r in records)
    # Who left may have done so before the gateway had read the request, or when its answer was already complete.
    assert len({r.request_id for r in records}) == len(records) <= REQUESTS
    assert REQUESTS - counts["left"] <= len(records) and statuses.keys() <= {200, 499, 502}
    assert counts["served"] <= statuses[200] <= counts["served"] + counts["left"]
    assert counts["502"] <= statuses[502] <= counts["502"] + counts["left"]
    ran = [r for r in records if r.deployment]
    assert {r.request_id for r in await house.ledger(len(ran))} == {r.request_id for r in ran}
    for engine in engines:
        assert (await engine.stats())["running"] == 0
    assert (await house.ask("a"))[0] == 200
