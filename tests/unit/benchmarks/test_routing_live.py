"""benchmarks.routing_live without engines of its own: what is asked, sent and counted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import routing_live, tables
from benchmarks.load import Target
from benchmarks.report import Report
from benchmarks.routing_live_sides import chats, doors, figures, load
from benchmarks.routing_live_sides.chats import Ask
from benchmarks.routing_live_sides.load import Outcome, Turn
from cluster.config import TribesConfig, load_config
from tests.support.stack import REPO
from tests.unit.serve_apps.servers import ENGINE_KEY, scripted_engine


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"turns": [f"Question {n}: {'why ' * (n % 40)}?", f"And {n} again?"]} for n in range(20)]
    (folder / chats.CHAT_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_some_users_are_much_busier_and_rounds_differ(data: Path) -> None:
    users = chats.chats(data, 24, 2.0, 200.0, "Round 0")
    assert users == chats.chats(data, 24, 2.0, 200.0, "Round 0")
    counts = [len(asks) for asks in users]
    assert sum(counts) == pytest.approx(400, rel=0.2) and max(counts) > 5 * min(counts)
    other = chats.chats(data, 24, 2.0, 200.0, "Round 1")
    systems = [{ask.system for asks in load for ask in asks if ask.system} for load in (users, other)]
    assert len(systems[0]) == chats.APPLICATIONS and not systems[0] & systems[1]
    assert all(asks[0].system for asks in users if asks)


def test_no_conversation_outgrows_the_engine(data: Path) -> None:
    (busiest, *_) = chats.chats(data, 24, 4.0, 400.0, "Round 0")
    starts = [place for place, ask in enumerate(busiest) if ask.system]
    assert len(starts) > 2
    for start, end in itertools.pairwise(starts):
        texts = [ask.text for ask in busiest[start:end]]
        words = sum(len(text) for text in (busiest[start].system or "", *texts))
        assert len(texts) > 3
        assert words / chats.LEAST_CHARS_PER_TOKEN + len(texts) * chats.ANSWER_TOKENS < 2048


async def test_a_turn_waits_for_the_answer_before_it_and_carries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "READING_S", 0.1)
    first = [Ask(0.0, "one", "Be kind."), Ask(0.01, "two"), Ask(0.02, "three", "Be brief.")]
    second = [Ask(0.2, "four", "Be kind."), Ask(30.0, "five")]
    with scripted_engine("--ttft-ms", "100", "--itl-ms", "5", "--tokens", "6") as engine:
        outcome = await load.chatted(Target(engine.url, ENGINE_KEY), "m", [first, second], 2.0)
    assert outcome.unsent == 1
    said = {turn.messages[-1]["content"]: turn for turn in outcome.turns}
    answer = {"role": "assistant", "content": " w0 w1 w2 w3 w4 w5"}
    assert said["two"].messages[1:3] == [{"role": "user", "content": "one"}, answer]
    assert [m["content"] for m in said["three"].messages] == ["Be brief.", "three"]
    assert said["two"].sent_s > said["one"].sent_s + 0.2 and said["four"].sent_s == pytest.approx(0.2, abs=0.15)
    for turn in outcome.turns:
        assert turn.ttft_s is not None and 0.09 < turn.ttft_s < 1.5 and turn.prompt_tokens > 0


async def test_what_is_refused_failed() -> None:
    with scripted_engine() as engine:
        outcome = await load.chatted(Target(engine.url, ENGINE_KEY), "other", [[Ask(0.0, "one", "Be kind.")]], 1.0)
    (turn,) = outcome.turns
    assert turn.ttft_s is None and turn.failure.startswith("404")


class Letters:
    """A token a letter."""

    def of(self, messages: list[dict[str, str]], answer: str | None = None) -> list[int]:
        said = [message["content"] for message in messages] + ([answer] if answer is not None else [])
        return [ord(letter) for text in said for letter in f"<{text}>"]


def turn(sent_s: float, *texts: str, answer: str = "", cached: int = 0, ttft_s: float | None = 0.1) -> Turn:
    messages = [{"role": "user", "content": text} for text in texts]
    return Turn(sent_s, messages, answer, len(Letters().of(messages)), cached, ttft_s)


def test_the_ceiling_is_one_cache_with_every_prompt_and_answer() -> None:
    turns = [turn(0.0, "abc", answer="de"), turn(5.0, "abc", "de", "f"), turn(6.0, "x"), turn(7.0, "x")]
    # 9 of 12 letters, none of 3 but "<", and of the same prompt again all but the last.
    assert figures.ceiling(turns, 1.0, Letters(), 100) == pytest.approx((9 + 1 + 2) / (12 + 3 + 3))
    assert figures.ceiling(turns, 1.0, Letters(), 6) == pytest.approx((6 + 1 + 2) / (12 + 3 + 3))


def test_a_template_that_is_not_the_engines_is_noticed() -> None:
    one = turn(0.0, "abc")
    one.prompt_tokens += 1
    with pytest.raises(RuntimeError, match="chat template"):
        figures.ceiling([one], 0.0, Letters(), 100)


def test_figures_leave_out_the_beginning_and_count_failures() -> None:
    warm, late = turn(0.0, "abc", answer="de"), turn(5.0, "abc", "de", "f", cached=6, ttft_s=0.2)
    found = figures.figures(Outcome([warm, late, turn(6.0, "y", ttft_s=None)], unsent=3), 10.0, Letters(), 100)
    assert (found["requests"], found["failed"], found["unsent"]) == (2, 1, 3)
    assert found["hit_rate"] == pytest.approx(6 / 12) and found["hit_rate_vs_ceiling"] == pytest.approx(6 / 9)
    assert found["ttft_p95_ms"] == load.PATIENCE_S * 1e3


def test_the_engine_has_two_replicas_with_small_caches() -> None:
    config = routing_live.engine_config(load_config(REPO / "configs" / "local.yaml"))
    (deployment,) = config.deployments.values()
    assert deployment.engine.kind == "sglang" and deployment.replicas.min == deployment.replicas.max == 2
    assert deployment.engine_args["max-total-tokens"] == routing_live.CACHE_TOKENS
    shown = routing_live.described(config, list(routing_live.SIDES), 1.0)
    assert set(routing_live.SIDES) < set(shown) and "cache_aware" in shown["cache_aware"]["command"]


def test_a_configuration_without_sglang_online_is_refused() -> None:
    plain = load_config(REPO / "configs" / "local.yaml").model_dump(mode="json")
    plain["deployments"] = {"smollm2-burst": plain["deployments"]["smollm2-burst"]}
    with pytest.raises(typer.BadParameter, match="SGLang"):
        routing_live.engine_config(TribesConfig.model_validate(plain))


def test_ratios_are_taken_pair_by_pair_and_shown() -> None:
    report = Report("routing_live", "python -m benchmarks.routing_live", {})
    shared: dict[str, Any] = {"failed": 0, "unsent": 0, "hit_rate": 0.7, "hit_rate_vs_ceiling": 0.95}
    for pair, drift in enumerate((1.0, 2.0, 0.5)):
        for side, p95 in (("tribes", 300.0), ("cache_aware", 400.0), ("round_robin", 200.0)):
            report.add(pair, side, ttft_p50_ms=100 * drift, ttft_p95_ms=p95 * drift, **shared)
    routing_live.judge(report)
    assert report.ratios["ttft_p95_vs_cache_aware"]["max"] == pytest.approx(0.75)
    assert {name: bar["holds"] for name, bar in report.bars.items()} == {
        "hit_rate_vs_ceiling": True,
        "ttft_p95_vs_cache_aware": True,
        "ttft_p95_vs_round_robin": False,
    }
    assert "| `tribes` | 70.0% | 95.0% | 100 | 300 | 0 | 0 |" in tables.table(report.as_data())


def test_a_router_that_does_not_start_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "command", lambda side: ["sh", "-c", "echo no such policy; exit 2"])
    monkeypatch.setattr(doors, "START_TIMEOUT_S", 0.5)
    with pytest.raises(RuntimeError, match="no such policy"), doors.router("random", [], tmp_path):
        pass
