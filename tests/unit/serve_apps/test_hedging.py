"""Two replicas race for the first event: one is heard, the other is left, and both leases come back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serve_apps.gateway.courses.hedging import Claim, first_to_begin
from tests.unit.serve_apps.harness import CHAT, chat
from tests.unit.serve_apps.mortal_engine import Fate, MortalEngine, cuts
from tests.unit.serve_apps.servers import eventually
from tests.unit.serve_apps.test_going_on import gateway_to, read

HEDGE = {"hedge": {"after_s": 0.15, "max_share": 1.0}}
WORDS = "".join(f" w{n}" for n in range(9))
SLOW = Fate("cut", delay_s=5.0)


class Runner:
    """Begins after a while, or fails, and says what became of it."""

    def __init__(self, begins_after_s: float, fails: Exception | None = None, lasts_s: float = 0.0) -> None:
        self.became = "nothing"
        self._begins_after_s = begins_after_s
        self._fails = fails
        self._lasts_s = lasts_s

    async def __call__(self, claim: Claim) -> None:
        try:
            await asyncio.sleep(self._begins_after_s)
            if self._fails is not None:
                self.became = "failed"
                raise self._fails
            if not claim():
                self.became = "late"
                return
            await asyncio.sleep(self._lasts_s)
            self.became = "done"
        except asyncio.CancelledError:
            self.became = "cancelled"
            raise


@pytest.mark.parametrize(
    ("first", "second", "became"),
    [
        (Runner(0.0), Runner(0.0), ("done", "nothing")),
        (Runner(0.2, lasts_s=0.1), Runner(5), ("done", "cancelled")),
        (Runner(5), Runner(0.01, lasts_s=0.1), ("cancelled", "done")),
        (Runner(0.0, lasts_s=0.3), Runner(0.0), ("done", "nothing")),
        (Runner(0.08, ValueError()), Runner(0.1), ("failed", "done")),
        (Runner(0.3), Runner(0.0, ValueError()), ("done", "failed")),
    ],
)
async def test_a_race(first: Runner, second: Runner, became: tuple[str, str]) -> None:
    await first_to_begin(first, second, 0.05, lambda: True)
    assert (first.became, second.became) == became


async def test_when_both_fail_the_first_ones_failure_is_told() -> None:
    with pytest.raises(KeyError):
        await first_to_begin(Runner(0.1, KeyError()), Runner(0.1, ValueError()), 0.02, lambda: True)


async def test_a_failure_before_the_hedge_is_told_at_once() -> None:
    second = Runner(0)
    with pytest.raises(KeyError):
        await first_to_begin(Runner(0.0, KeyError()), second, 5, lambda: True)
    assert second.became == "nothing"


async def test_no_hedge_when_it_may_not() -> None:
    second = Runner(0)
    await first_to_begin(Runner(0.1), second, 0.02, lambda: False)
    assert second.became == "nothing"


@pytest.mark.parametrize("when_s", [0.02, 0.1])
async def test_cancelled_with_all_its_runners(when_s: float) -> None:
    first, second = Runner(9), Runner(9)
    task = asyncio.create_task(first_to_begin(first, second, 0.05, lambda: True))
    await asyncio.sleep(when_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert first.became == "cancelled" and second.became in ("cancelled", "nothing")


async def test_a_slow_replica_is_overtaken(tmp_path: Path) -> None:
    slow, quick = MortalEngine([SLOW]), MortalEngine()
    async with gateway_to(tmp_path, slow, quick, gateway=HEDGE) as gateway:
        answer = await read(gateway, max_tokens=9)
        assert (answer.text, answer.done, answer.roles) == (WORDS, True, 1)
        await eventually(lambda: slow.left == 1)
        [row] = await gateway.records(1)
        assert (row.status, row.output_tokens) == (200, 9)
        first, second = gateway.leases.tickets
        assert second.avoid == (gateway.leases.urls[1],) and first.ticket_id != second.ticket_id
        released = sorted(gateway.leases.released, key=lambda usage: usage is not None)
        assert released[0] is None and released[1] is not None and released[1].output_tokens == 9


async def test_a_quick_replica_is_not_doubted(tmp_path: Path) -> None:
    async with gateway_to(tmp_path, MortalEngine(), MortalEngine(), gateway=HEDGE) as gateway:
        assert (await read(gateway, max_tokens=9)).text == WORDS
        assert len(gateway.leases.tickets) == 1


async def test_whole_answers_are_not_hedged(tmp_path: Path) -> None:
    slow, quick = MortalEngine([Fate("cut", delay_s=0.5)]), MortalEngine([Fate("cut", delay_s=0.5)])
    async with gateway_to(tmp_path, slow, quick, gateway=HEDGE) as gateway, gateway.http() as http:
        async with http.post(CHAT, json=chat(max_tokens=2)) as answer:
            assert answer.status == 200
        assert len(gateway.leases.tickets) == 1


async def test_a_share_of_the_requests_at_most(tmp_path: Path) -> None:
    engines = [MortalEngine([Fate("cut", delay_s=0.6)] * 20) for _ in range(2)]
    hedge = {"hedge": {"after_s": 0.1, "max_share": 0.25}}
    async with gateway_to(tmp_path, *engines, gateway=hedge) as gateway:
        answers = await asyncio.gather(*(read(gateway, max_tokens=9) for _ in range(8)))
        assert {answer.text for answer in answers} == {WORDS}
        assert len(gateway.leases.tickets) == 8 + 3  # a quarter of eight, and the floor


async def test_the_winner_may_die_later(tmp_path: Path) -> None:
    slow, quick = MortalEngine([SLOW]), MortalEngine(cuts(600))
    async with gateway_to(tmp_path, slow, quick, gateway=HEDGE) as gateway:
        assert (await read(gateway, max_tokens=9)).text == WORDS
        assert len(gateway.leases.released) == 3


async def test_a_client_that_leaves_a_race(tmp_path: Path) -> None:
    a, b = MortalEngine([SLOW]), MortalEngine([SLOW])
    async with gateway_to(tmp_path, a, b, gateway=HEDGE) as gateway:
        task: asyncio.Task[Any] = asyncio.create_task(read(gateway))
        await eventually(lambda: len(a.bodies) + len(b.bodies) == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: a.left == b.left == 1)
        [row] = await gateway.records(1)
        assert row.status == 499 and len(gateway.leases.released) == 2
        assert sum(usage is not None for usage in gateway.leases.released) == 1
