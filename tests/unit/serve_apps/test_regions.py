"""Two clusters with a delayed line between them: requests run where their first byte comes soon enough, and nearest."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.vocabulary import RequestClass
from serve_apps.gateway import ready_replicas
from serve_apps.gateway.regions.choice import AwaySessions, Distance, choose
from serve_apps.gateway.regions.load import PREFILL_MEMORY_S, QUEUE_MEMORY_S, RegionLoad
from tests.unit.serve_apps.harness import CHAT, House, chat, configuration
from tests.unit.serve_apps.scripted_upstream import ScriptedUpstream, failing
from tests.unit.serve_apps.servers import Engine, eventually, served
from tests.unit.serve_apps.wire import Wire, wire

ONLINE = ("m", RequestClass.ONLINE)
SLO_S = 0.3


@dataclass(slots=True)
class World:
    """West and east, and the lines to each as the other sees it."""

    west: House
    east: House
    to_east: Wire

    def east_seen(self) -> bool:
        """West has heard that east is well."""
        regions = self.west.gateway._regions
        assert regions is not None
        return bool(regions.status()["peers"][0]["healthy"])

    def oldest_wait_s(self, tenant: str) -> float:
        """Of the tenant's requests that wait in west."""
        return time.time() - self.west.leases["m"].oldest_arrivals().get((RequestClass.ONLINE, tenant), time.time())

    async def ask(self, text: str = "hello there", **fields: Any) -> tuple[int, str | None, bytes]:
        """A request to west: status, the region that served it if that was another one, body."""
        headers, tenant = fields.pop("headers", {}), fields.pop("tenant", "default")
        async with (
            self.west.session(tenant) as http,
            http.post(CHAT, json=chat(text, **fields), headers=headers) as answer,
        ):
            return answer.status, answer.headers.get("x-tribes-region"), await answer.read()

    @contextlib.asynccontextmanager
    async def west_is_late(self, for_s: float = 2.0) -> AsyncIterator[None]:
        """West's one slot is taken, and somebody has waited for longer than the SLO already."""
        tasks = [asyncio.create_task(self.west.ask(x_script={"ttft_ms": for_s * 1000}))]
        await eventually(lambda: len(self.west.dispatcher()._queue.leases()) == 1)
        tasks.append(asyncio.create_task(self.west.ask()))
        await eventually(lambda: self.oldest_wait_s("default") > 1.2 * SLO_S)
        try:
            yield
        finally:
            await asyncio.gather(*tasks)


def region(name: str, peer: str, url: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "ttft_slo_s": {"online": SLO_S},
        "peers": {peer: {"base_url": f"{url}/v1", "probe_key": {"env": f"KEY_OF_{peer.upper()}"}, **fields}},
        "probe_interval_s": 0.1,
    }


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    engines: list[Engine],
    monkeypatch: pytest.MonkeyPatch,
    *,
    west_replicas: int = 1,
    shared_keys: bool = True,
    max_running: int = 1,
    tenants: dict[str, Any] | None = None,
    **peer: Any,
) -> AsyncIterator[World]:
    monkeypatch.setattr(ready_replicas, "READY_FRESH_S", 0.05)
    monkeypatch.setattr(ready_replicas, "READY_TRUSTED_S", 0.0)
    async with wire() as to_east, wire() as to_west, contextlib.AsyncExitStack() as stack:
        houses = []
        for name, other, line, fields in (("west", "east", to_east, peer), ("east", "west", to_west, {})):
            (folder / name).mkdir()
            section = region(name, other, line.url, **fields)
            sections = {"tenants": tenants} if tenants else {}
            config = configuration(folder / name, region=section, deployment={"max_running": max_running}, **sections)
            houses.append(House(config))
            monkeypatch.setenv(f"KEY_OF_{name.upper()}", houses[-1].keys["default"])
        west, east = houses
        if shared_keys:
            for tenant, key in west.keys.items():
                east.store.ensure_key(key, tenant)
        for house in houses:
            await stack.enter_async_context(house.running())
        to_east.target, to_west.target = east.url, west.url
        if west_replicas:
            await west.replica("w", engines[0].url)
        await east.replica("e", engines[1].url)
        built = World(west, east, to_east)
        await eventually(built.east_seen)
        await asyncio.sleep(0.15)  # one probe more, by which east's replica is known
        yield built


async def test_a_region_that_keeps_its_slo_keeps_its_requests(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, engines, monkeypatch) as w:
        for _ in range(3):
            status, where, _ = await w.ask(stream=True)
            assert (status, where) == (200, None)
        assert len(await w.west.ledger(3)) == 3 and w.east.store.usage() == []


async def test_what_would_be_late_here_runs_there_and_is_billed_there(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, engines, monkeypatch) as w:
        async with w.west_is_late():
            status, where, text = await w.ask("one", stream=True, max_tokens=5)
            assert (status, where) == (200, "east") and text.endswith(b"data: [DONE]\n\n") and text.count(b"data:") > 5
            status, where, body = await w.ask("two", max_tokens=2)
            assert (status, where) == (200, "east") and orjson.loads(body)["usage"]["completion_tokens"] == 2
        assert {r.tenant for r in await w.east.ledger(2)} == {"default"} and len(await w.west.ledger(2)) == 2
        assert len(w.west.store.usage()) == 2
        async with w.west.session() as http, http.get("/tribes/status") as answer:
            [peer] = (await answer.json())["region"]["peers"]
        assert (peer["region"], peer["healthy"], peer["forwarded"]) == ("east", True, 2)


async def test_a_session_stays_where_it_went(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, engines, monkeypatch) as w:
        async with w.west_is_late(for_s=1.2):
            assert (await w.ask("a", prompt_cache_key="mine", max_tokens=1))[1] == "east"
        others = (f"other-{number}" for number in range(100))

        async def at_home() -> bool:
            return (await w.ask("b", prompt_cache_key=next(others), max_tokens=1))[1] is None

        await eventually(at_home)  # the wait is over here
        assert (await w.ask("b", prompt_cache_key="mine", max_tokens=1))[1] == "east"
        w.to_east.cut()
        assert (await w.ask("c", prompt_cache_key="mine", max_tokens=1))[:2] == (200, None)


async def test_what_one_tenant_waits_for_sends_no_other_away(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = {"a": {"limits": {"max_concurrent": 1}}, "b": {}}
    async with world(tmp_path, engines, monkeypatch, max_running=4, tenants=tenants) as w:
        slow = {"x_script": {"ttft_ms": 1000}}
        tasks = [asyncio.create_task(w.west.ask("a", **slow)) for _ in range(2)]
        await eventually(lambda: w.oldest_wait_s("a") > 1.2 * SLO_S)
        assert (await w.ask(tenant="b", max_tokens=1))[:2] == (200, None)
        assert (await w.ask(tenant="a", max_tokens=1))[:2] == (200, "east")
        await asyncio.gather(*tasks)


async def test_a_far_region_is_no_help_against_a_short_wait(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, engines, monkeypatch) as w:
        w.to_east.delay_s = 0.75
        regions = w.west.gateway._regions
        assert regions is not None
        await eventually(lambda: regions._peers["east"].rtt_s > 0.7)
        async with w.west_is_late(for_s=1.0):
            assert (await w.ask(max_tokens=1))[:2] == (200, None)
        assert w.east.store.usage() == []


async def test_a_region_without_a_ready_replica_sends_at_once(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, engines, monkeypatch, west_replicas=0) as w:
        assert (await w.ask(max_tokens=1))[:2] == (200, "east")


async def test_a_request_is_sent_on_once_at_most(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, engines, monkeypatch) as w, w.west_is_late(for_s=1.0):
        status, where, _ = await w.ask(max_tokens=1, headers={"x-tribes-forwarded-from": "east"})
        assert (status, where) == (200, None)


async def test_a_region_that_is_cut_off_gets_nothing(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, engines, monkeypatch) as w:
        w.to_east.cut()
        async with w.west_is_late(for_s=1.0):
            assert (await w.ask(max_tokens=1))[:2] == (200, None)


async def test_a_peer_that_refuses_leaves_the_request_here(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    far = ScriptedUpstream([failing(503)])
    async with world(tmp_path, engines, monkeypatch) as w, served(far) as url, w.west_is_late(for_s=1.0):
        w.to_east.cut()  # existing connections lead to the old place
        w.to_east.broken, w.to_east.target = False, url
        assert (await w.ask(max_tokens=1))[:2] == (200, None)
        assert far.asked[-1].headers["x-tribes-forwarded-from"] == "west"


async def test_a_key_that_is_unknown_there_is_not_tried_again_and_again(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, engines, monkeypatch, shared_keys=False) as w:
        async with w.west_is_late(for_s=1.0):
            assert (await w.ask(max_tokens=1))[:2] == (200, None)
        regions = w.west.gateway._regions
        assert regions is not None and list(regions._peers["east"]._barred) == ["default"]


async def test_a_tenant_may_have_another_key_there(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"default": {"env": "KEY_OF_EAST"}}
    async with world(tmp_path, engines, monkeypatch, shared_keys=False, keys=keys) as w, w.west_is_late(for_s=1.0):
        assert (await w.ask(max_tokens=1))[:2] == (200, "east")


async def test_a_line_that_breaks_ends_the_stream_with_an_error(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, engines, monkeypatch) as w, w.west_is_late(for_s=1.5):
        body = chat("one", stream=True, x_script={"hang_after_tokens": 2})
        async with w.west.session() as http, http.post(CHAT, json=body) as answer:
            assert answer.headers["x-tribes-region"] == "east" and b"w0" in await answer.content.readany()
            w.to_east.cut()
            text = await answer.content.read()
        assert orjson.loads(text.strip().split(b"\n\n")[-1][6:])["error"]["code"] == "region_failed"


# --- the rules by themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("here_s", "at", "expected"),
    [
        (0.5, None, None),  # the SLO is kept here
        (2.0, None, "near"),  # the nearest that keeps it, though "far" would be sooner
        (0.5, "far", "far"),  # a session stays
        (0.5, "late", None),  # ... unless it is late there, and sooner here
        (9.0, "late", "late"),
        (0.5, "gone", None),
        (math.inf, None, "near"),
    ],
)
def test_where_a_request_runs(here_s: float, at: str | None, expected: str | None) -> None:
    peers = {"far": Distance(0.1, 0.3), "near": Distance(0.7, 0.1), "late": Distance(5.0, 0.05)}
    assert choose(here_s, peers, 1.0, at) == expected


def test_where_nobody_keeps_the_slo_the_soonest_serves() -> None:
    peers = {"a": Distance(3.0, 0.1), "b": Distance(2.0, 0.2)}
    assert choose(4.0, peers, 1.0) == "b" and choose(2.1, peers, 1.0) is None and choose(4.0, {}, 1.0) is None


def test_sessions_elsewhere_are_few_and_forgotten() -> None:
    away = AwaySessions(10.0, most=2)
    for number in range(3):
        away.went(f"s{number}", "east", float(number))
    assert [away.region_of(f"s{n}", 3.0) for n in range(3)] == [None, "east", "east"]
    away.went("s2", None, 3.0)
    assert away.region_of("s2", 3.0) is None and away.region_of("s1", 11.1) is None


def test_what_is_expected_follows_what_was_and_what_waits() -> None:
    load = RegionLoad()
    assert load.expected_s(ONLINE, "a", 0.7, 0.0) == 0.7
    for _ in range(5):
        load.began(ONLINE, "a", 2.0, 2.5, 0.0)
    assert load.expected_s(ONLINE, "a", 0.0, 0.0) == pytest.approx(2.5)
    assert load.expected_s(ONLINE, "a", 3.0, 0.0) == pytest.approx(3.5)
    assert load.expected_s(ONLINE, "b", 0.0, 0.0) == pytest.approx(0.5)  # another's wait is not this one's
    assert load.expected_s(ONLINE, None, 0.0, 0.0) == pytest.approx(2.5)
    faded = 2 / math.e + 0.5 * math.exp(-QUEUE_MEMORY_S / PREFILL_MEMORY_S)
    assert load.expected_s(ONLINE, "a", 0.0, QUEUE_MEMORY_S) == pytest.approx(faded)
    load.began(ONLINE, "a", 0.0, None, 5 * QUEUE_MEMORY_S)
    assert load.expected_s(ONLINE, "a", 0.0, 5 * QUEUE_MEMORY_S) < 0.25
