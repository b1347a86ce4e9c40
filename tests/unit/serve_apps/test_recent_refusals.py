"""In a storm the dispatcher hears of few hopeless requests, and nobody is refused for long on old news."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from cluster.scheduling import Refusal
from cluster.vocabulary import RequestClass
from serve_apps.gateway import recent_refusals
from serve_apps.gateway.recent_refusals import MAX_ENTRIES, STORM, WINDOW_S, RecentRefusals
from tests.unit.serve_apps.harness import CHAT, chat
from tests.unit.serve_apps.porch import porch
from tests.unit.serve_apps.servers import Engine

KIND = ("m", "a", RequestClass.ONLINE)
FULL = Refusal("t", 429, "queue_full", "the queue is full", 2.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_few_refusals_are_no_storm(clock: Clock) -> None:
    recent = RecentRefusals(clock)
    for _ in range(STORM - 1):
        recent.note(KIND, FULL)
    assert recent.find(KIND) is None
    recent.note(KIND, FULL)
    assert recent.find(KIND) is FULL


def test_old_news_is_forgotten(clock: Clock) -> None:
    recent = RecentRefusals(clock)
    for _ in range(STORM):
        recent.note(KIND, FULL)
    clock.now_s += WINDOW_S
    assert recent.find(KIND) is None
    recent.note(KIND, FULL)
    assert recent.find(KIND) is None  # a new window counts from nothing


def test_neighbours_and_other_classes_are_not_concerned(clock: Clock) -> None:
    recent = RecentRefusals(clock)
    for _ in range(STORM):
        recent.note(KIND, FULL)
    for other in (("m", "b", KIND[2]), ("n", "a", KIND[2]), ("m", "a", RequestClass.SEMI_ONLINE)):
        assert recent.find(other) is None


def test_many_tenants_do_not_fill_the_memory(clock: Clock) -> None:
    recent = RecentRefusals(clock)
    for number in range(3 * MAX_ENTRIES):
        clock.now_s += WINDOW_S / MAX_ENTRIES
        recent.note(("m", f"t{number}", KIND[2]), FULL)
    assert len(recent._windows) <= MAX_ENTRIES


async def test_a_storm_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: list[Engine]) -> None:
    monkeypatch.setattr(recent_refusals, "WINDOW_S", 2.0)
    async with porch(tmp_path, engines[0].url, refusal=FULL) as gateway, gateway.http("a") as http:

        async def ask() -> tuple[int, str]:
            async with http.post(CHAT, json=chat()) as answer:
                assert (await answer.json())["error"]["code"] == "queue_full"
                return answer.status, answer.headers["retry-after"]

        answers = [await ask() for _ in range(STORM)] + await asyncio.gather(*(ask() for _ in range(100)))
        assert Counter(answers) == {(429, "2"): STORM + 100}
        assert len(gateway.leases.tickets) == STORM
        gateway.leases.refusal = None
        async with gateway.http("b") as other, other.post(CHAT, json=chat()) as answer:
            assert answer.status == 200
        await asyncio.sleep(2.0)
        async with http.post(CHAT, json=chat()) as answer:
            assert answer.status == 200
        records = await gateway.records(STORM + 102)
    assert Counter(r.status for r in records) == {429: STORM + 100, 200: 2}
