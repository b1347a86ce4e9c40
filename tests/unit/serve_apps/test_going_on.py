"""Broken streams through a real gateway: what the client reads, what is billed, which leases are given back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.scheduling import TokenUsage
from serve_apps.gateway.courses.engine_call import StallWatch
from tests.support.scripted_script import Script
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, chat
from tests.unit.serve_apps.mortal_engine import Fate, MortalEngine, cuts
from tests.unit.serve_apps.porch import Porch, porch
from tests.unit.serve_apps.servers import Engine, eventually, served

COMPLETIONS = "/v1/completions"
TEXT = 'One two,\n\nthree "four"  five six\nseven.'
USAGE = {"stream_options": {"include_usage": True}}


@contextlib.asynccontextmanager
async def gateway_to(folder: Path, *engines: MortalEngine, **sections: Any) -> AsyncIterator[Porch]:
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(served(engine)) for engine in engines]
        yield await stack.enter_async_context(porch(folder, *urls[-1:], *urls[:-1], **sections))


class Read:
    """A stream as a client reads it."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        parts = [part for part in raw.split(b"\n\n") if part]
        self.done = parts[-1:] == [b"data: [DONE]"]
        self.events = [orjson.loads(part.removeprefix(b"data: ")) for part in parts if part != b"data: [DONE]"]
        self.error = self.events[-1].get("error") if self.events else None
        choices = [c for event in self.events for c in event.get("choices", ())]
        self.text = "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)
        self.reasons = [c["finish_reason"] for c in choices if c["finish_reason"]]
        self.roles = sum("role" in c.get("delta", {}) for c in choices)
        self.usages = [event["usage"] for event in self.events if event.get("usage")]


async def read(gateway: Porch, path: str = CHAT, **fields: Any) -> Read:
    body = {"model": "m", "stream": True, "temperature": 0, **fields}
    if path == CHAT:
        body.setdefault("messages", chat()["messages"])
    async with gateway.http() as http, http.post(path, json=body) as answer:
        assert answer.status == 200, await answer.read()
        return Read(await answer.read())


@pytest.mark.parametrize("asked", [{}, {"n": 1, "max_tokens": 7}, USAGE])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_cut_three_times(tmp_path: Path, path: str, asked: dict[str, Any]) -> None:
    a, b = MortalEngine(), MortalEngine()
    fields = {**asked, "x_script": {"text": TEXT}, **({"prompt": "Now:"} if path == COMPLETIONS else {})}
    async with gateway_to(tmp_path, a, b) as gateway:
        whole = await read(gateway, path, **fields)
        billed = (await gateway.records(1))[0]
        gateway.leases.tickets.clear(), gateway.leases.released.clear()
        a.fates, b.fates = cuts(520, 400), cuts(410)
        joined = await read(gateway, path, **fields)
        assert not a.fates and not b.fates
        assert (joined.text, joined.reasons, joined.roles) == (whole.text, whole.reasons, whole.roles)
        assert joined.done and [u["completion_tokens"] for u in joined.usages] == [
            u["completion_tokens"] for u in whole.usages
        ]
        assert len({event["id"] for event in joined.events}) == 1 and len({e["created"] for e in joined.events}) == 1
        assert joined.events[0].get("service_tier") == "default"
        row = (await gateway.records(2))[1]
        assert (row.status, row.prompt_tokens, row.output_tokens) == (200, billed.prompt_tokens, billed.output_tokens)
        assert len(gateway.leases.released) == 4
        outputs = [usage.output_tokens for usage in gateway.leases.released if usage is not None]
        assert sum(outputs) in range(row.output_tokens, row.output_tokens + 6)  # events, and what was produced twice
        assert [ticket.ticket_id.split("@")[0][-1] for ticket in gateway.leases.tickets] == ["1", "2", "3", "4"]
        assert gateway.leases.tickets[3].avoid


@pytest.mark.parametrize("how", ["cut", "end", "error"])
@pytest.mark.parametrize("after", [0, 1, 150, 260, 400])
async def test_however_it_ends_too_early(tmp_path: Path, how: Any, after: int) -> None:
    a, b = MortalEngine([Fate(how, after)]), MortalEngine([Fate(how, after)])
    async with gateway_to(tmp_path, a, b) as gateway:
        joined = await read(gateway, max_tokens=9)
        assert joined.text == "".join(f" w{n}" for n in range(9)) and joined.reasons == ["length"] and joined.done


async def test_a_stream_that_lacks_only_its_end_is_not_run_again(tmp_path: Path) -> None:
    a, b = MortalEngine(), MortalEngine()
    async with gateway_to(tmp_path, a, b) as gateway:
        whole = await read(gateway, max_tokens=4, **USAGE)
        upto = whole.raw.index(b'"finish_reason":"length"') + 40 - len(b'"service_tier":"default",')
        a.fates = b.fates = cuts(upto)
        joined = await read(gateway, max_tokens=4, **USAGE)
        assert joined.done and joined.reasons == ["length"] and joined.text == whole.text
        assert [u["completion_tokens"] for u in joined.usages] == [4]
        assert len(gateway.leases.tickets) == 2
        assert len(a.bodies) + len(b.bodies) == 2


async def test_a_silent_stream_goes_on_elsewhere(tmp_path: Path) -> None:
    a, b = MortalEngine([Fate("hang", 600)]), MortalEngine()
    async with gateway_to(tmp_path, a, b, gateway={"stall_timeout_s": 0.3}) as gateway:
        joined = await read(gateway, max_tokens=9)
        assert joined.text == "".join(f" w{n}" for n in range(9)) and joined.done
        await eventually(lambda: a.left == 1)


async def test_a_silent_stream_that_cannot_go_on_is_left_in_peace(tmp_path: Path) -> None:
    a, b = MortalEngine([Fate("hang", 700)]), MortalEngine([Fate("hang", 700)])
    async with gateway_to(tmp_path, a, b, gateway={"stall_timeout_s": 0.1, "upstream_idle_timeout_s": 0.8}) as gateway:
        joined = await read(gateway, max_tokens=9, temperature=1, response_format={"type": "json_object"})
        assert joined.error is not None and "grammar" in joined.error["message"]
        assert len(gateway.leases.tickets) == 1


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"n": 2}, "several choices"),
        ({"response_format": {"type": "json_object"}}, "structured"),
        ({"tool_choice": "required", "tools": [{}]}, "tool call"),
    ],
)
async def test_what_cannot_go_on_ends_with_an_error_that_says_so(
    tmp_path: Path, asked: dict[str, Any], why: str
) -> None:
    a, b = MortalEngine(cuts(900)), MortalEngine(cuts(900))
    async with gateway_to(tmp_path, a, b) as gateway:
        joined = await read(gateway, max_tokens=9, temperature=1, **asked)
        assert joined.error is not None and not joined.done
        assert joined.error["code"] == "replica_failed" and why in joined.error["message"]
        assert "send the request again" in joined.error["message"]
        [row] = await gateway.records(1)
        assert row.status == 502 and row.output_tokens > 0
        assert len(gateway.leases.tickets) == len(gateway.leases.released) == 1


async def test_there_is_an_end_to_patience(tmp_path: Path) -> None:
    a, b = MortalEngine(cuts(600, 600, 600)), MortalEngine(cuts(600, 600, 600))
    async with gateway_to(tmp_path, a, b, gateway={"max_continuations": 2}) as gateway:
        joined = await read(gateway, max_tokens=19)
        assert joined.error is not None and "2 others" in joined.error["message"]
        assert len(gateway.leases.tickets) == 3


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    async with gateway_to(tmp_path, MortalEngine(cuts(600)), gateway={"max_continuations": 0}) as gateway:
        joined = await read(gateway, max_tokens=9)
        assert joined.error is not None and joined.text.startswith(" w0")


async def test_no_more_is_run_again_than_the_budget_allows(tmp_path: Path) -> None:
    engine = MortalEngine([Fate("end", status=500)] * 3)
    budget = {"retries": {"share": 0, "floor_per_s": 0.1}}  # one in ten seconds
    async with gateway_to(tmp_path, engine, gateway=budget) as gateway, gateway.http() as http:
        async with http.post(CHAT, json=chat()) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (502, "replica_failed")
            assert int(answer.headers["retry-after"]) >= 5
        assert len(engine.bodies) == 2  # the first, and one again


async def test_a_context_that_is_full_is_an_end(tmp_path: Path) -> None:
    engine = MortalEngine()
    async with gateway_to(tmp_path, engine) as gateway:
        whole = await read(gateway, x_script={"tokens": 8})
        engine.engine.max_model_len = 2 + 8
        last = whole.raw.rindex(b"data: ", 0, whole.raw.index(b'"finish_reason":"stop"'))
        engine.fates = cuts(last - len(b'"service_tier":"default",'))
        joined = await read(gateway, x_script={"tokens": 8}, **USAGE)
        assert joined.done and joined.text == whole.text and joined.reasons == ["length"]
        assert [(u["prompt_tokens"], u["completion_tokens"]) for u in joined.usages] == [(2, 8)]
        assert len(engine.bodies) == 3


async def test_the_next_engine_may_refuse(tmp_path: Path) -> None:
    a, b = MortalEngine([*cuts(600), Fate("end", status=422)]), MortalEngine([*cuts(600), Fate("end", status=422)])
    async with gateway_to(tmp_path, a, b) as gateway:
        a.fates, b.fates = cuts(600), [Fate("end", status=422)]
        joined = await read(gateway, max_tokens=9)
        if joined.error is None:  # the other one came first
            joined = await read(gateway, max_tokens=9)
        assert joined.error is not None and "refused to go on" in joined.error["message"]


async def test_leaving_while_it_goes_on(tmp_path: Path) -> None:
    a, b = MortalEngine(cuts(600)), MortalEngine([Fate("hang", 400)])
    async with gateway_to(tmp_path, a, b) as gateway:
        body = {"model": "m", "stream": True, "temperature": 0, **chat(), "max_tokens": 30}
        async with gateway.http() as http, http.post(CHAT, json=body) as answer:
            async for chunk in answer.content.iter_any():
                if b" w2" in chunk:
                    break
            await eventually(lambda: len(b.bodies) == 1)
        [row] = await gateway.records(1)
        assert row.status == 499 and 2 <= row.output_tokens <= 9
        await eventually(lambda: b.left == 1 and len(gateway.leases.released) == 2)


async def test_the_queue_is_asked_for_what_is_left(tmp_path: Path) -> None:
    a, b = MortalEngine(cuts(900)), MortalEngine()
    async with gateway_to(tmp_path, a, b) as gateway:
        await read(gateway, max_tokens=20)
        first, second = gateway.leases.tickets
        assert first.max_output_tokens == 20 and second.max_output_tokens < 20 == first.max_output_tokens
        assert second.charged_tokens == second.max_output_tokens and second.avoid == (gateway.leases.urls[1],)
        assert second.arrived_at_s == first.arrived_at_s
        assert gateway.leases.released[1] is not None
        assert gateway.leases.released[1].uncached_tokens == 0


async def test_a_dead_process_is_replaced_in_the_middle_of_a_stream(
    make_house: MakeHouse, engines: list[Engine]
) -> None:
    """With the real queue: the other replica is busy, so the stream waits for it and goes on."""
    house = await make_house(replicas=1, max_running=1)
    mortal = MortalEngine([Fate("hang", 700)])
    async with served(mortal) as url:
        await house.replica("0-mortal", url)
        blocker = asyncio.create_task(house.ask(x_script={"ttft_ms": 500}))
        await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
        task = asyncio.create_task(_text(house))
        await eventually(lambda: len(mortal.bodies) == 1 or len(house.dispatcher()._queue.leases()) == 2)
        if not mortal.bodies:  # the first one went there
            task.cancel(), blocker.cancel()
            await asyncio.gather(task, blocker, return_exceptions=True)
            return
        await house.gone("0-mortal")
        assert await task == "".join(f" w{n}" for n in range(12))
        assert (await blocker)[0] == 200
    await house.quiet()
    assert sorted(row.output_tokens for row in await house.ledger(2)) == [12, 20]


async def _text(house: Any) -> str:
    body = chat(stream=True, max_tokens=12, temperature=0)
    async with house.session() as http, http.post(CHAT, json=body) as answer:
        return Read(await answer.read()).text


async def test_the_official_client_sees_nothing(tmp_path: Path) -> None:
    a, b = MortalEngine(cuts(640)), MortalEngine(cuts(640))
    async with gateway_to(tmp_path, a, b) as gateway:
        stream = await gateway.openai().chat.completions.create(
            model="m", messages=chat()["messages"], stream=True, temperature=0, max_tokens=9, **USAGE
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "".join(
            f" w{n}" for n in range(9)
        )
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 9
        assert gateway.leases.released[-1] == TokenUsage(
            chunks[-1].usage.prompt_tokens, chunks[-1].usage.prompt_tokens, gateway.leases.released[-1].output_tokens
        )


async def test_a_replica_that_fails_again_and_again_is_avoided(tmp_path: Path) -> None:
    bad, good = MortalEngine([Fate("end", status=500)] * 9), MortalEngine()
    breaker = {"breaker": {"failures": 3, "open_s": 30}}
    async with gateway_to(tmp_path, bad, good, gateway=breaker) as gateway:
        for _ in range(4):
            assert (await read(gateway, max_tokens=2)).done
        url = gateway.leases.urls[1]
        avoided = [ticket.avoid for ticket in gateway.leases.tickets]
        assert avoided == [(), (url,), (), (url,), (), (url,), (url,), (url,)]


class Produced:
    def __init__(self) -> None:
        self.output_tokens = 0


@pytest.mark.parametrize(
    ("begun", "goes_on", "excused", "stalled"),
    [(True, False, False, True), (False, False, False, False), (True, True, False, False), (True, False, True, False)],
)
async def test_a_stall(begun: bool, goes_on: bool, excused: bool, stalled: bool) -> None:
    produced, happened = Produced(), asyncio.Event()
    produced.output_tokens = int(begun)
    watch = StallWatch(0.2, happened.set, lambda: excused)
    watch.start(produced)
    for _ in range(10):
        await asyncio.sleep(0.05)
        produced.output_tokens += goes_on
    watch.stop()
    assert happened.is_set() is stalled


async def test_an_engine_that_samples_goes_on_from_all_of_the_text(tmp_path: Path) -> None:
    """It does not repeat the white space that it was not given, so it is given all and asked again."""
    a, b, c = MortalEngine(cuts(850)), MortalEngine(), MortalEngine()
    a.engine.script = Script(text="One.\n\nTwo three four")
    b.engine.script = c.engine.script = Script(text="One. Five six seven eight")
    async with gateway_to(tmp_path, a, b, c) as gateway:
        joined = await read(gateway, temperature=1)
        assert joined.text == "One.\n\n Five six seven eight" and joined.done
        given = [engine.bodies[-1]["messages"][-1]["content"] for engine in (a, b, c)]
        assert given == ["hello there", "One.", "One.\n\n"]


@pytest.mark.parametrize("asked", [{"n": 2}, {"response_format": {"type": "json_object"}}, {"frequency_penalty": 1.0}])
async def test_greedy_answers_that_are_more_than_a_text_are_said_again(tmp_path: Path, asked: dict[str, Any]) -> None:
    a, b = MortalEngine(), MortalEngine()
    async with gateway_to(tmp_path, a, b) as gateway:
        whole = await read(gateway, max_tokens=9, **USAGE, **asked)
        await read(gateway, max_tokens=9)
        a.fates, b.fates = cuts(1500), cuts(900)
        joined = await read(gateway, max_tokens=9, **USAGE, **asked)
        assert not a.fates and not b.fates and joined.done
        assert (joined.text, joined.reasons, joined.roles) == (whole.text, whole.reasons, whole.roles)
        assert [u["completion_tokens"] for u in joined.usages] == [u["completion_tokens"] for u in whole.usages]
        rows = await gateway.records(3)
        assert rows[2].output_tokens == rows[0].output_tokens and rows[2].status == 200
