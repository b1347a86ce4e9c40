"""The whole demo with the cluster and the job faked and the gateway on loopback: steps, file, screen, clean-up."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.config import TribesConfig, load_config
from cluster.demo import burst
from cluster.demo import run as demo_run
from cluster.demo.offline import OfflineResult
from cluster.demo.run import run_demo
from cluster.local.up import Started
from cluster.state import Store
from tests.unit.cli.conftest import write_config
from tests.unit.cli.fake_gateway import FakeGateway, running_gateway
from tests.unit.demo.test_parts import REPORT


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with running_gateway() as running:
        yield running


@pytest.fixture
def config(tmp_path: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> TribesConfig:
    def up(config: TribesConfig, progress: Callable[[str], None]) -> Started:
        progress("starting Ray")
        return Started(f"{gateway.url}/v1", "http://dashboard", "sk-default", True)

    def offline(*arguments: Any) -> OfflineResult:
        return OfflineResult("job-1", REPORT, {"prompt": "Summarise", "answer": "A module."})

    gateway.replicas = [{"replica_id": "burst/r", "deployment": "burst", "state": "ready", "cold_start_s": 1.5}]
    monkeypatch.setattr(demo_run, "up", up)
    monkeypatch.setattr(demo_run, "run_offline", offline)
    monkeypatch.setattr("cluster.demo.bill.LEDGER_WAIT_S", 0.01)
    monkeypatch.setattr(burst, "SAMPLE_S", 0.02)
    monkeypatch.setattr(burst, "TAIL_S", 0.05)
    return load_config(write_config(tmp_path, gateway.port))


def run(config: TribesConfig, output: Path, **options: Any) -> tuple[dict[str, Any], str]:
    screen = Console(file=io.StringIO(), width=140)
    run_demo(config, output, screen, **options)
    text: str = screen.file.getvalue()  # type: ignore[attr-defined]
    return json.loads(output.read_text()), text


def test_everything_is_sent_measured_and_kept(config: TribesConfig, gateway: FakeGateway, tmp_path: Path) -> None:
    kept, screen = run(config, tmp_path / "artifacts" / "demo.json")
    assert list(kept["seconds"]) == ["up", "offline", "chat", "burst", "total"] and kept["reused"] is True
    assert [item["request_class"] for item in kept["classes"]] == ["online", "semi_online", "offline"]
    online, semi, offline = kept["classes"]
    assert (online["requests"], semi["requests"], offline["requests"], semi["errors"]) == (3, 36, 4, 0)
    assert semi["queue_wait_p50_s"] == 0.0125 and semi["output_tokens"] == 108
    turns = [r for r in gateway.requests if r["service_tier"] == "default"]
    assert [len(turn["messages"]) for turn in turns] == [2, 4, 6]
    assert sum(r["service_tier"] == "flex" for r in gateway.requests) == 36
    assert len(set(gateway.keys)) == 4, "the default key and one for each tenant"
    assert {row["tenant"]: row["requests"] for row in kept["tenants"]} == {"team-b": 12, "team-a": 12, "team-c": 12}
    assert kept["replicas_over_time"][0]["ready"] == 1 and kept["cold_start_s"] == {"burst/r": 1.5}
    assert set(kept["answers"]) == {"offline", "online", "semi_online"}
    assert kept["machine"]["cpus"] >= 1 and "ray" in kept["versions"]
    for part in ("1 of 4", "4 of 4", "What ran, by class", "team-b", "replicas ready: 1", "Hello!", "tribes down"):
        assert part in screen, part
    assert all(key.revoked for key in Store(config.state.url).keys())  # noqa: SIM118 (not a mapping)


def test_failed_requests_are_shown_and_counted(config: TribesConfig, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.fail_status = 429
    kept, screen = run(config, tmp_path / "demo.json")
    assert [item["errors"] for item in kept["classes"]] == [1, 36, 1]
    assert "the queue is full" in screen and kept["burst"]["requests"][0]["error"]


def test_down_happens_even_when_a_step_fails(
    config: TribesConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []

    def fail(*arguments: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(demo_run, "run_offline", fail)
    monkeypatch.setattr(demo_run, "down", lambda config, grace_s, progress: stopped.append(config.name))
    with pytest.raises(RuntimeError, match="broken"):
        run(config, tmp_path / "demo.json", stop_after=True)
    assert stopped == ["fake"]


def test_a_request_that_never_ends_is_given_up(config: TribesConfig, gateway: FakeGateway, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(demo_run, "BURST_TIMEOUT_S", 0.3)
    gateway.words, gateway.word_s = ["x"] * 4, 0.2
    kept, _ = run(config, tmp_path / "demo.json")
    assert kept["classes"][1]["errors"] == 36
    assert "no complete answer" in kept["burst"]["requests"][0]["error"]
