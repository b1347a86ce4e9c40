"""benchmarks.online: the configuration of its real engine, and its ratios."""

from __future__ import annotations

import pytest
import typer

from benchmarks import online
from benchmarks.report import Report
from cluster.config import TribesConfig, load_config
from tests.support.stack import REPO


def test_the_engine_gets_a_slot_for_every_request_and_both_doors() -> None:
    config = online.engine_config(load_config(REPO / "configs" / "local.yaml"))
    (deployment,) = config.deployments.values()
    assert deployment.max_running == online.SATURATION
    assert deployment.engine.kind == "sglang"
    assert config.gateway.own_door.port is not None


def test_a_configuration_without_an_online_engine_is_refused(tmp_path) -> None:
    plain = online.replicas_config(tmp_path).model_dump(mode="json")
    for deployment in plain["deployments"].values():
        deployment["serves"] = ["semi_online"]
    with pytest.raises(typer.BadParameter, match=r"serves \[online\]"):
        online.engine_config(TribesConfig.model_validate(plain))


def test_ratios_are_taken_pair_by_pair() -> None:
    report = Report("online", "", {})
    for pair, drift in enumerate((1.0, 2.0, 0.5)):
        for side, part in (("bare", 1.0), ("tribes", 0.98), ("tribes_own_door", 0.99)):
            report.add(pair, side, case="engine", concurrency=32, tokens_per_s=100 * part * drift, itl_p50_ms=1.0)
            report.add(pair, side, case="engine", concurrency=8, tokens_per_s=1.0, itl_p50_ms=50 / part * drift)
        report.add(pair, "one", case="replicas", tokens_per_s=400 * drift)
        report.add(pair, "eight", case="replicas", tokens_per_s=3000 * drift)
    online.judge(report)
    assert report.ratios["tokens_per_s_vs_bare"]["median"] == pytest.approx(0.98)
    assert report.ratios["itl_p50_vs_bare"]["max"] == pytest.approx(1 / 0.98)
    assert report.ratios["own_door_tokens_per_s_vs_bare"]["min"] == pytest.approx(0.99)
    assert report.ratios["eight_replicas_vs_linear"]["median"] == pytest.approx(3000 / 3200)
    assert {name: bar["holds"] for name, bar in report.bars.items()} == {
        "tokens_per_s_vs_bare": True,
        "itl_p50_vs_bare": True,
        "eight_replicas_vs_linear": False,
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
