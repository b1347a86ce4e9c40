"""From queue to Serve: polls that block nobody, claims passed on, idle replicas that give way, replicas that drain."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

from cluster.config import DeploymentConfig, TribesConfig
from cluster.scheduling import Claim, Demand, TokenUsage
from serve_apps import autoscale, scaling_desk
from serve_apps.autoscale import BacklogPolicy, ClaimBoard
from serve_apps.comeback import Comeback
from serve_apps.messages import ReplicaReport
from serve_apps.replica import EngineReplica
from serve_apps.replica_book import ReplicaBook
from serve_apps.scaling_desk import ScalingDesk
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.lease_floor import Floor
from tests.unit.serve_apps.servers import eventually

IDLE = Demand(0, 0, 0.0, 0.0, 0.0)
WAITING = Demand(9, 4, 0.0, 0.0, 0.0)


class Asked:
    """A dispatcher that answers what it is told, when it is told."""

    def __init__(self, answer: tuple[int, Claim] | Exception) -> None:
        self.answer = answer
        self.calls: list[tuple[str, int, tuple[Claim, ...]]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.desired_replicas = self

    def remote(self, deployment: str, current: int, others: tuple[Claim, ...]) -> Any:
        async def call() -> tuple[int, Claim]:
            self.calls.append((deployment, current, others))
            await self.free.wait()
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return asyncio.ensure_future(call())


@pytest.fixture
def dispatchers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Asked]:
    found: dict[str, Asked] = {}
    monkeypatch.setattr(autoscale, "get_dispatcher", found.__getitem__)
    monkeypatch.setattr(autoscale, "POLL_S", 0.0)
    return found


def context(target: int) -> Any:
    return SimpleNamespace(target_num_replicas=target)


async def settled(policy: BacklogPolicy, target: int) -> int:
    """What the policy says once its present poll has ended."""
    policy(context(target))
    assert policy._poll is not None
    await policy._poll
    return (policy._desired if policy._desired is not None else target) or 0


async def test_the_controller_never_waits_and_the_last_answer_holds(dispatchers: dict[str, Asked]) -> None:
    asked = dispatchers["m"] = Asked((3, Claim("d", "p", 1.0)))
    policy = BacklogPolicy("m", "d", ClaimBoard())
    asked.free.clear()
    began_s = time.monotonic()
    assert policy(context(1)) == (1, {}), "nothing is known yet"
    assert time.monotonic() - began_s < 0.1
    await asyncio.sleep(0.01)
    assert policy(context(1)) == (1, {}) and len(asked.calls) <= 1, "one poll at a time"
    asked.free.set()
    await eventually(lambda: policy(context(1)) == (3, {}))


async def test_without_a_dispatcher_the_number_stays(dispatchers: dict[str, Asked]) -> None:
    asked = dispatchers["m"] = Asked((3, Claim("d", "p", 1.0)))
    policy = BacklogPolicy("m", "d", ClaimBoard())
    assert await settled(policy, 1) == 3
    asked.answer = RayError("away")
    assert await settled(policy, 2) == 2


async def test_each_dispatcher_hears_the_claims_of_the_others(dispatchers: dict[str, Asked]) -> None:
    board = ClaimBoard()
    needs, idles = Claim("needs", "p", 1.0, missing=1), Claim("idles", "p", 1.0, spare=1)
    dispatchers["a"], dispatchers["b"] = Asked((2, needs)), Asked((1, idles))
    first, second = BacklogPolicy("a", "needs", board), BacklogPolicy("b", "idles", board)
    await settled(first, 1)
    await settled(second, 1)
    await settled(first, 1)
    assert dispatchers["b"].calls[-1][2] == (needs,)
    assert dispatchers["a"].calls[-1][2] == (idles,), "its own claim does not come back to it"
    assert board.others("needs", time.monotonic() + autoscale.CLAIM_HOLDS_S + 1) == (), "nobody says so any more"


class Room:
    """Desks of two models on one pool, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.now_s = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now_s, time=lambda: self.now_s)
        monkeypatch.setattr(scaling_desk, "time", clock)
        plain = configuration(folder, deployment={"replicas": {"min": 0, "max": 4, "idle_timeout_s": 600}})
        self.config: DeploymentConfig = TribesConfig.model_validate(plain).deployments["d"]
        self.books = {name: ReplicaBook() for name in ("needs", "idles")}
        self.desks = {name: ScalingDesk(book) for name, book in self.books.items()}
        self.claims: dict[str, Claim] = {}

    def replica(self, name: str, number: int, state: Any = "ready", start_s: float = 6.0) -> None:
        report = ReplicaReport(
            f"{name}/{number}",
            name,
            state,
            self.now_s,
            cold_start_s=start_s if state == "ready" else None,
            rung="forked",
        )
        _, became_ready = self.books[name].note(report, self.now_s)
        if became_ready:
            self.desks[name].became_ready(report)

    def ask(self, name: str, demand: Demand, current: int) -> tuple[int, str]:
        others = [claim for claim in self.claims.values() if claim.deployment != name]
        decision, self.claims[name] = self.desks[name].decide(name, self.config, demand, current, others)
        return decision.replicas, decision.reason


def test_an_idle_replica_gives_way_to_a_queue_that_finds_no_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    room = Room(monkeypatch, tmp_path)
    room.replica("idles", 0)
    room.replica("needs", 0)
    for second in range(5):
        room.now_s += 1.0
        assert room.ask("needs", WAITING, 4 if second else 1)[0] == 4
        assert room.ask("idles", IDLE, 1)[0] == 1, "not yet: neither patient nor idle for long"
    room.now_s += 2.0
    room.ask("needs", WAITING, 4)
    replicas, reason = room.ask("idles", IDLE, 1)
    assert replicas == 0 and "1 given up" in reason and "pool default" in reason
    assert room.desks["idles"].status()["idles"]["reason"] == reason


def test_nobody_gives_way_to_replicas_that_are_starting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    room = Room(monkeypatch, tmp_path)
    room.replica("idles", 0)
    room.replica("needs", 0)
    for number in range(1, 4):
        room.replica("needs", number, "starting")
    for _ in range(20):
        room.now_s += 1.0
        room.ask("needs", WAITING, 4)
        assert room.ask("idles", IDLE, 1)[0] == 1


def test_the_desk_learns_how_long_replicas_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    room = Room(monkeypatch, tmp_path)
    room.replica("needs", 0, start_s=6.0)
    room.replica("needs", 1, "starting")
    room.now_s += 2.0
    room.replica("needs", 2, "draining")
    fleet = room.desks["needs"]._fleet("needs")
    assert (fleet.ready, fleet.coming_in_s, fleet.start_s) == (1, (4.0,), 6.0)
    room.ask("needs", WAITING, 2)
    assert room.desks["needs"].status()["needs"]["start_s"] == {"forked": 6.0}


# --- draining ---------------------------------------------------------------------------------------------------------


async def test_a_draining_replica_takes_no_lease_and_its_sessions_move(tmp_path: Path) -> None:
    async with Floor(tmp_path, 1, tenants={"a": {}}).open() as floor:
        await floor.replica("r0")
        await floor.replica("r1")
        (client,) = floor.clients
        grant = await floor.acquire(client, session="s")
        leaving = grant.lease.replica_id
        await floor.replica(leaving, state="draining")
        await eventually(lambda: all(one.replica_id != leaving for one in client._pool.held_by(client.gateway_id)))
        report = floor._replicas[leaving]

        async def running() -> int:
            return (await floor.handle.report.remote(report)).running

        grants = [await floor.acquire(client, session="s" if number == 0 else None) for number in range(4)]
        assert {one.lease.replica_id for one in grants} == {"r0", "r1"} - {leaving}
        assert await running() == 1, "it stays until what runs has ended"
        client.release(grant.lease.lease_id, TokenUsage(10, 0, 10))

        async def is_empty() -> bool:
            return await running() == 0

        await eventually(is_empty)


async def test_a_restarted_dispatcher_sends_no_draining_replica_home_before_it_knows_what_runs(tmp_path: Path) -> None:
    async with Floor(tmp_path, 1, tenants={"a": {}}).open() as floor:
        await floor.replica("r0", state="draining")
        report = floor._replicas["r0"]
        assert (await floor.handle.report.remote(report)).running == 0
        floor.dispatcher._office.comeback = Comeback(True, time.monotonic())
        assert (await floor.handle.report.remote(report)).running == 1
        await asyncio.sleep(1.1)
        assert (await floor.handle.report.remote(report)).running == 0, "whoever has not come back by now is gone"


@pytest.mark.parametrize(("ends_after", "drain_timeout_s"), [(3, 60.0), (10**6, 0.5)])
async def test_a_replica_finishes_what_runs_within_its_bound(ends_after: int, drain_timeout_s: float) -> None:
    said: list[str] = []

    async def report() -> None:
        said.append(replica._state)
        replica._running = 0 if len(said) >= ends_after else 2

    settings = SimpleNamespace(drain_timeout_s=drain_timeout_s)
    replica: Any = SimpleNamespace(
        _state="ready", _running=2, _report=report, _deployment=SimpleNamespace(replicas=settings)
    )
    began_s = time.monotonic()
    await EngineReplica._drain(replica)
    assert set(said) == {"draining"}
    assert time.monotonic() - began_s < 2.0
    assert replica._running == (0 if ends_after == 3 else 2)
