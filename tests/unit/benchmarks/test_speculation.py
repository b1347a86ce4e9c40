"""What benchmarks.speculation computes: time per token, acceptance, prompts of two kinds, the side with the lever."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks import speculation
from benchmarks.load import Target
from benchmarks.report import Report
from benchmarks.speculation import with_ngram
from benchmarks.speculation_sides.counters import Counters, parse_counters
from benchmarks.speculation_sides.prompts import prompts
from benchmarks.speculation_sides.streams import Stream, figures, read_event, streams
from cluster.config import load_config

CONFIG = Path(__file__).parents[3] / "configs" / "local.yaml"


def test_an_events_gap_is_shared_by_its_tokens() -> None:
    stream = Stream()
    stream.take(0.1, 0.1, "a", 1)
    stream.take(0.2, 0.1, "bcde", 4)
    stream.take(0.25, 0.05, "f", 1)
    assert (stream.text, stream.tokens, stream.ttft_s) == ("abcdef", 6, 0.1)
    found = figures([stream], elapsed_s=0.5)
    assert found["tokens_per_s"] == pytest.approx(12)
    assert found["itl_mean_ms"] == pytest.approx((100 + 50) / 5)  # all time after the first token, over five tokens
    assert found["itl_p50_ms"] == pytest.approx(25) and found["itl_p95_ms"] == pytest.approx(50)
    assert found["pause_p95_ms"] == pytest.approx(100)


def test_events_tell_text_and_tokens() -> None:
    event = {"choices": [{"delta": {"content": "hi"}, "token_ids": [4, 5]}]}
    assert read_event(b"data: " + json.dumps(event).encode()) == ("hi", 2)
    assert read_event(b'data: {"choices": []}') == ("", 0)
    with pytest.raises(RuntimeError, match="broke off"):
        read_event(b'data: {"error": {"message": "gone"}}')


def test_answers_without_token_ids_are_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="streams token ids"):
        figures([Stream(text="x")], 1.0)


def test_counters_are_summed_over_engines_and_their_differences_rated() -> None:
    lines = [
        'vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 10',
        'vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 40',
        'vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 9',
        'vllm:spec_decode_num_accepted_tokens_total{engine="1",model_name="m"} 1',
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 9',
        'vllm:generation_tokens_total{engine="0"} 30',
    ]
    now = parse_counters("\n".join(lines))
    assert now == Counters(10, 40, 10)
    found = now.since(Counters(5, 20, 5)).figures(tokens=25)
    assert (found["acceptance"], found["accepted_per_draft"], found["accepted_share_of_output"]) == (0.25, 1.0, 0.2)
    assert parse_counters("") == Counters() and Counters().figures(0)["acceptance"] == 0.0


def test_prompts_share_no_beginning_and_repetitive_ones_hold_their_answer() -> None:
    made = [text for kind in ("repetitive", "free") for run in ("0-1", "0-8") for text in prompts(kind, run, 8)]
    assert len({text.splitlines()[0] for text in made}) >= 16 and len(set(made)) == len(made)
    assert all("Order 0-1-" in text for text in prompts("repetitive", "0-1", 3))


def test_the_sides_differ_by_the_lever_alone() -> None:
    deployment = load_config(CONFIG).deployments["smollm2-burst"]
    ours = with_ngram(deployment, 6).engine_args
    assert ours.pop("speculative-config")["num_speculative_tokens"] == 6
    assert ours == {name.replace("_", "-"): value for name, value in deployment.engine_args.items()}


async def events(request: web.Request) -> web.StreamResponse:
    """A role event, one token, three tokens at once, the end: as vLLM sends them with speculation."""
    body = await request.json()
    assert body["temperature"] == 0 and body["return_token_ids"] and request.headers["authorization"] == "Bearer k"
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for delta, ids in (({"role": "assistant"}, None), ({"content": "a"}, [1]), ({"content": "bcd"}, [2, 3, 4])):
        event = {"choices": [{"delta": delta, "token_ids": ids}]}
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await asyncio.sleep(0.01)
    await response.write(b"data: [DONE]\n\n")
    return response


async def test_streams_are_read_as_an_engine_sends_them() -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", events)
    async with TestServer(app) as server:
        target = Target(str(server.make_url("")).rstrip("/"), "k")
        found = await streams(target, "m", ["one", "two", "three"], concurrency=2, tokens=8)
    assert [(stream.text, stream.tokens) for stream in found] == [("abcd", 4)] * 3
    assert all(len(stream.gaps) == 1 and stream.gaps[0][1] == 3 for stream in found)
    assert all(stream.gaps[0][0] >= 0.009 and stream.total_s >= stream.ttft_s for stream in found)


async def test_a_pair_and_its_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base takes 20 ms a token, the other 5 or 40; half of its texts differ."""
    asked: list[str] = []
    counters = {"ngram": [Counters(), Counters(10, 40, 30)] * 4, "base": [Counters()] * 8}

    async def answer(target: Target, model: str, prompts: list[str], concurrency: int, tokens: int) -> list[Stream]:
        asked.append(target.base_url)
        slow = 0.02 if target.base_url == "base" else 0.005 if "lines" in prompts[0] else 0.04
        found = []
        for number in range(len(prompts)):
            stream = Stream(ttft_s=0.1, text="same" if number % 2 == 0 else target.base_url, tokens=11)
            stream.gaps = [(slow, 1)] * 10
            found.append(stream)
        return found

    async def count(target: Target) -> Counters:
        return counters[target.base_url].pop(0)

    monkeypatch.setattr(speculation, "streams", answer)
    monkeypatch.setattr(speculation, "read_counters", count)
    report = Report("speculation", "x", {})
    targets = {"base": Target("base", "k"), "ngram": Target("ngram", "k")}
    texts = {"repetitive": ["these lines", "x"], "free": ["write", "x"]}
    for kind in speculation.KINDS:
        for concurrency in speculation.REQUESTS:
            await speculation._pair(report, targets, "m", 0, kind, concurrency, texts[kind], 8)
    speculation._ratios(report)
    assert asked == ["base", "ngram"] * 4
    medians = {name: ratio["median"] for name, ratio in report.ratios.items()}
    assert medians["ngram_itl_repetitive"] == pytest.approx(0.25)
    assert medians["ngram_itl_free"] == medians["ngram_itl_free_c8"] == pytest.approx(2.0)
    assert medians["acceptance_repetitive"] == 0.75 and medians["identical_texts_free"] == 0.5
    assert report.bars["ngram_itl_repetitive"]["holds"]
