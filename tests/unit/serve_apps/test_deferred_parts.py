"""The worker's small parts: places in turns, requests sent again, lines of files of any shape."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.files import FileStore
from cluster.scheduling import TokenUsage
from cluster.state.ids import derived_id, is_id, new_id
from cluster.vocabulary import RequestClass
from serve_apps.deferred import lines, runner
from serve_apps.deferred.lines import Place, Rules, read_some, scan
from serve_apps.deferred.results import answered
from serve_apps.deferred.runner import Answer, Request, Runner
from serve_apps.deferred.slots import Slots
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.headless import Outcome
from tests.unit.serve_apps.deferred_work import jsonl, line, record

RULES = Rules("/v1/chat/completions", {"m"}, 1000, 4096)


async def test_places_go_to_the_tenant_that_has_the_fewest() -> None:
    slots, order = Slots(4), []

    async def work(tenant: str) -> None:
        await slots.take("m", tenant)
        order.append(tenant)
        await asyncio.sleep(0.01)
        slots.give("m", tenant)

    tasks = [asyncio.create_task(work("big")) for _ in range(40)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(work("small")) for _ in range(6)]
    await asyncio.gather(*tasks)
    assert Counter(order[4:16])["small"] == 6, order
    assert slots.held("m") == 0


async def test_a_place_is_not_lost_with_who_waits_for_it() -> None:
    slots = Slots(1)
    await slots.take("m", "a")
    waiting = [asyncio.create_task(slots.take("m", tenant)) for tenant in "abc"]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.sleep(0)
    slots.give("m", "a")
    waiting[0].cancel()  # it has the place already, and does not know yet
    waiting[2].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert slots.held("m") == 0
    async with asyncio.timeout(1):
        await slots.take("m", "d")


class Scripted:
    """Ends each run as told; the last outcome stays."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.ids: list[str] = []
        self.finished: Any = None

    async def run(self, path: str, body: bytes, caller: Caller, leases: Any, **named: Any) -> Outcome:
        self.ids.append(named["request_id"])
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if not outcome.worth_another_run:
            self.finished(record(REQUEST, outcome.status))
        return outcome


REQUEST = Request("r", RULES.endpoint, "m", b"{}", Caller("a", "k"), RequestClass.OFFLINE, 0.0)


def outcome(status: int, retry_after_s: float | None = None) -> Outcome:
    return Outcome(status, b"{}", "r", TokenUsage(3, 1, 2) if status == 200 else None, retry_after_s)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(runner.asyncio, "sleep", sleep)
    return slept


def make(headless: Scripted, attempts: int = 3) -> Runner:
    def connect(finished: Any) -> Scripted:
        headless.finished = finished
        return headless

    leases: Any = {"m": object()}
    return Runner(connect, leases, attempts)


async def test_a_refusal_is_obeyed_until_there_is_an_answer(slept: list[float]) -> None:
    refusals = [outcome(429, 7.0), outcome(503, 1.0), outcome(429, 9000.0), *[outcome(503)] * 20]
    headless = Scripted(*refusals, outcome(200))
    answer = await make(headless).run(REQUEST)
    assert answer.status == 200 and answer.usage.output_tokens == 2 and len(answer.records) == 1
    assert headless.ids == ["r"] * 24, "the same id each time: it is billed once"
    assert 7.0 <= slept[0] <= 8.75 and slept[2] <= 75.0 and max(slept) <= 75.0


async def test_no_place_is_held_while_a_refusal_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    slots, running, waiting = Slots(1), [], []

    class Watched(Scripted):
        async def run(self, *arguments: Any, **named: Any) -> Outcome:
            running.append(slots.held("m"))
            return await super().run(*arguments, **named)

    async def sleep(seconds: float) -> None:
        waiting.append(slots.held("m"))

    monkeypatch.setattr(runner.asyncio, "sleep", sleep)
    headless = Watched(outcome(429, 7.0), outcome(502), outcome(200))
    assert (await make(headless).run(REQUEST, slots)).status == 200
    assert (running, waiting) == ([1, 1, 1], [0, 0]) and slots.held("m") == 0


async def test_a_request_that_kills_replicas_is_not_sent_for_ever(slept: list[float]) -> None:
    headless = Scripted(outcome(502))
    answer = await make(headless, attempts=3).run(REQUEST)
    assert (answer.status, len(headless.ids), answer.records) == (502, 3, ())


async def test_a_model_that_went_away_is_an_answer() -> None:
    other = Request("r", RULES.endpoint, "gone", b"{}", Caller("a", "k"), RequestClass.OFFLINE, 0.0)
    answer = await make(Scripted(outcome(200))).run(other)
    assert answer.status == 404 and orjson.loads(answer.body)["error"]["code"] == "model_not_found"


@settings(deadline=None)
@given(
    texts=st.lists(st.one_of(st.integers(0, 5000).map(lambda n: "x" * n), st.just(None)), max_size=30),
    newline=st.booleans(),
    done=st.sets(st.integers(1, 30)),
    chunk=st.integers(1, 9000),
)
def test_every_line_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], newline: bool, done: set[int], chunk: int
) -> None:
    """Blank lines, a missing last newline, lines longer than what is read at once: numbers and contents hold."""
    files = FileStore(str(tmp_path_factory.mktemp("files")))
    content = jsonl(*(b"\n" if text is None else line(n, text=text) for n, text in enumerate(texts)))
    files.put("in", content if newline else content.removesuffix(b"\n"))
    expected = [(n + 1, f"c{n}") for n, text in enumerate(texts) if text is not None and n + 1 not in done]
    got, place = [], Place()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk)
        following: Place | None = place
        while following is not None:
            items, following = read_some(files, "in", following, done)
            got += [(item.line, item.custom_id) for item in items]
    assert got == expected


def test_odd_files_are_told_by_line(tmp_path: Path) -> None:
    files = FileStore(str(tmp_path))
    long = line(2, text="x" * 5000)
    files.put("in", b"\xef\xbb\xbf" + jsonl(line(1), long, b"\xff\xfe\n", line(4) | {"body": []}, line(5)))
    found = scan(files, "in", RULES)
    codes = [(problem["code"], problem["line"]) for problem in found.problems]
    assert codes == [("line_too_long", 2), ("invalid_json_line", 3), ("missing_required_parameter", 4)]
    assert (found.total, found.models) == (5, {"m"})
    files.put("in", b"{}\n" * 5000)
    assert len(scan(files, "in", RULES).problems) == lines.MAX_PROBLEMS


DEEP = b"[" * 1000 + b"]" * 1000
"""As deep as a line can be read."""


@pytest.mark.parametrize(
    ("part", "deep", "code"),
    [
        (b'"POST"', DEEP, "invalid_method"),
        (b'"/v1/chat/completions"', DEEP, "invalid_url"),
        (b'"m"', DEEP, "model_not_found"),
        (b'"max_tokens":3', b'"x":' + DEEP, "invalid_json_line"),
    ],
)
def test_a_deeply_nested_line_is_a_bad_line(tmp_path: Path, part: bytes, deep: bytes, code: str) -> None:
    files = FileStore(str(tmp_path))
    files.put("in", jsonl(line(1)) + jsonl(line(2)).replace(part, deep))
    found = scan(files, "in", RULES)
    assert [(problem["code"], problem["line"]) for problem in found.problems] == [(code, 2)]


def test_a_deeply_nested_answer_is_an_answer() -> None:
    result = answered("b", 1, "c1", Answer(400, DEEP, TokenUsage()))
    assert orjson.loads(result.text)["response"]["body"] == DEEP.decode() and result.failed


@settings(deadline=None)
@given(st.lists(st.floats(1e9, 2e9), min_size=2, max_size=20))
def test_ids_sort_by_time(times: list[float]) -> None:
    times = [round(at_s, 3) for at_s in times]
    ids = [new_id("file-", at_s) for at_s in times]
    assert all(is_id("file-", id) for id in ids) and len(set(ids)) == len(ids)
    by_time = sorted(range(len(times)), key=lambda n: int(times[n] * 1000))
    assert [int(times[n] * 1000) for n in sorted(by_time, key=lambda n: ids[n])] == sorted(
        int(at_s * 1000) for at_s in times
    )
    assert derived_id("file-", times[0], "a", "b") == derived_id("file-", times[0], "a", "b")
    assert derived_id("file-", times[0], "a", "bc") != derived_id("file-", times[0], "ab", "c")
    assert not is_id("file-", "file-../x") and not is_id("batch_", ids[0])
