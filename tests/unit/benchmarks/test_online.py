"""benchmarks.online: the configuration of its real engine, its ratios, and how a failed start ends."""

from __future__ import annotations

import os
import signal

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import online
from benchmarks.online_sides import ours, real_load
from benchmarks.online_sides.engine import engine_config
from benchmarks.online_sides.replicas import replicas_config
from benchmarks.report import Report
from cluster.config import TribesConfig, load_config
from cluster.local import LocalClusterError
from tests.support.stack import REPO


def test_the_engine_gets_a_slot_for_every_request_and_both_doors() -> None:
    config = engine_config(load_config(REPO / "configs" / "local.yaml"))
    (deployment,) = config.deployments.values()
    assert deployment.max_running == real_load.SATURATION
    assert deployment.engine.kind == "sglang"
    assert config.gateway.own_door.port is not None


def test_a_configuration_without_an_online_engine_is_refused(tmp_path) -> None:
    plain = replicas_config(tmp_path).model_dump(mode="json")
    for deployment in plain["deployments"].values():
        deployment["serves"] = ["semi_online"]
    with pytest.raises(typer.BadParameter, match=r"serves \[online\]"):
        engine_config(TribesConfig.model_validate(plain))


def test_ratios_are_taken_pair_by_pair() -> None:
    report = Report("online", "", {})
    for pair, drift in enumerate((1.0, 2.0, 0.5)):
        for side, part in (("bare", 1.0), ("tribes", 0.98), ("tribes_own_door", 0.99)):
            report.add(pair, side, case="engine", concurrency=32, tokens_per_s=100 * part * drift, itl_p50_ms=1.0)
            report.add(pair, side, case="engine", concurrency=8, tokens_per_s=1.0, itl_p50_ms=50 / part * drift)
        report.add(pair, "one", case="replicas", tokens_per_s=400 * drift)
        report.add(pair, "eight", case="replicas", tokens_per_s=3000 * drift)
        # A side of the same name in another case, on another engine: not to be mixed with the one above.
        for side, part in (("tribes", 0.95), ("ray_serve_llm", 1.0)):
            figures = {"ttft_p50_ms": 200 / part * drift, "itl_p50_ms": 20 * part * drift}
            report.add(pair, side, case="ray_serve_llm", concurrency=32, tokens_per_s=300 * part * drift, **figures)
            report.add(pair, side, case="ray_serve_llm", concurrency=8, tokens_per_s=1.0, **figures)
    online.judge(report)
    assert report.ratios["tokens_per_s_vs_bare"]["median"] == pytest.approx(0.98)
    assert report.ratios["itl_p50_vs_bare"]["max"] == pytest.approx(1 / 0.98)
    assert report.ratios["own_door_tokens_per_s_vs_bare"]["min"] == pytest.approx(0.99)
    assert report.ratios["eight_replicas_vs_linear"]["median"] == pytest.approx(3000 / 3200)
    assert report.ratios["tokens_per_s_vs_ray_serve_llm"]["min"] == pytest.approx(0.95)
    assert report.ratios["ttft_p50_vs_ray_serve_llm"]["median"] == pytest.approx(1 / 0.95)
    assert report.ratios["itl_p50_vs_ray_serve_llm"]["max"] == pytest.approx(0.95)
    assert {name: bar["holds"] for name, bar in report.bars.items()} == {
        "tokens_per_s_vs_bare": True,
        "itl_p50_vs_bare": True,
        "eight_replicas_vs_linear": False,
        "tokens_per_s_vs_ray_serve_llm": False,
    }


def test_a_case_that_was_not_measured_again_is_kept() -> None:
    before = {
        "runs": [{"case": "engine", "pair": 0}, {"case": "replicas", "pair": 0}],
        "config": {"engine": {"tokens": 32}, "replicas": {}},
        "command": "first",
    }
    report = Report("online", "second", {})
    online.keep_other_cases(report, before, ["replicas"])
    assert report.runs == [{"case": "engine", "pair": 0}]
    assert report.config == {"engine": {"tokens": 32}}
    assert report.command == "first; second"


@pytest.fixture
def app(monkeypatch) -> typer.Typer:
    monkeypatch.setattr(online, "enable_token_auth", lambda: None)
    app = typer.Typer()
    app.command()(online.main)
    return app


def test_a_cluster_that_does_not_start_ends_the_run_in_words(app, monkeypatch, tmp_path) -> None:
    def fails(*_: object) -> None:
        raise LocalClusterError("ray.serve.llm did not start: [no] luck")

    monkeypatch.setattr(online.ray_llm, "measure_ray_llm", fails)
    result = CliRunner().invoke(app, ["--json", str(tmp_path / "F"), "--case", "ray_serve_llm"])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert not (tmp_path / "F").exists()


def test_only_the_chosen_cases_run_and_each_is_written(app, monkeypatch, tmp_path) -> None:
    def one_pair(report: Report, *_: object) -> None:
        for side in ("one", "eight"):
            report.add(0, side, case="replicas", tokens_per_s=100.0)

    monkeypatch.setattr(online.replicas, "measure_replicas", one_pair)
    result = CliRunner().invoke(app, ["--json", str(tmp_path / "F"), "--case", "replicas"])
    assert result.exit_code == 0, result.output
    assert "eight_replicas_vs_linear" in (tmp_path / "F").read_text()


def test_a_run_that_is_stopped_stops_its_cluster(monkeypatch, tmp_path) -> None:
    stopped = []
    monkeypatch.setattr(ours, "up", lambda *_: None)
    monkeypatch.setattr(ours, "down", lambda config, *_: stopped.append(config.paths.data))
    config = load_config(REPO / "configs" / "local.yaml")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended, ours.tribes(config, tmp_path / "run", print):
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it goes on")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM
    assert stopped == [tmp_path / "run"]


def test_an_unknown_case_is_refused(app, tmp_path) -> None:
    result = CliRunner().invoke(app, ["--json", str(tmp_path / "F"), "--case", "ray"])
    assert result.exit_code == 2
    assert "ray_serve_llm" in result.output
