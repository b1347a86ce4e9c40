"""benchmarks.burst: its load, its replicas, Ray Serve's rule on a given clock, its ratios."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import typer

from benchmarks import burst
from benchmarks.burst_sides import live, metrics, workload
from benchmarks.burst_sides.cluster_model import Cluster
from benchmarks.burst_sides.deciders import Fixed, Ours, Serve
from benchmarks.burst_sides.live import Asked
from benchmarks.burst_sides.serve_rule import ServeRule, ServeSettings
from benchmarks.burst_sides.workload import Load
from benchmarks.report import Report
from benchmarks.routing_sides.engine_model import Engine
from benchmarks.routing_sides.workload import Request
from cluster.config import load_config
from cluster.scheduling import ScalingBounds
from tests.support.stack import REPO

ENGINE = Engine(prefill_tokens_per_s=2500.0, prompt_s=0.04, step_s=0.04, decode_s_a_request=0.6e-3, slots=8)


def steady(seconds: float, every_s: float, burst_at_s: float = math.inf, factor: int = 10) -> Load:
    """A request of 200 and 40 tokens every so often; in the burst as many times as often."""
    requests: list[Request] = []
    now_s = 0.0
    while now_s < seconds:
        requests.append(Request(len(requests), "t", "", now_s, 200, 40, (), (), ()))
        in_burst = burst_at_s <= now_s < burst_at_s + workload.BURST_S
        now_s += every_s / factor if in_burst else every_s
    return Load(requests, seconds, burst_at_s)


def test_the_burst_is_ten_times_the_recording(tmp_path: Path) -> None:
    rows = ["arrived_at_s,tenant,prompt_tokens,output_tokens"]
    rows += [f"{second},t{second % 3},{100 + second},{10}" for second in range(300)]
    (tmp_path / workload.FILES[workload.SERVEGEN]).write_text("\n".join(rows))
    what = workload.load(tmp_path, workload.SERVEGEN, 30.0, 240.0, 90.0, seed=1)
    in_burst = [r for r in what.requests if 90 <= r.due_at_s < 150]
    assert len(in_burst) == 600 and len(what.requests) == 240 + 540
    assert {r.prompt_tokens for r in in_burst} == set(range(220, 280)), "those of the same minute"
    assert [r.number for r in what.requests] == list(range(780))
    assert sorted(what.requests, key=lambda r: r.due_at_s) == what.requests


def test_the_azure_trace_is_read_with_its_dates(tmp_path: Path) -> None:
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rows += ["2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109"]
    (tmp_path / workload.FILES[workload.AZURE]).write_text("\n".join(rows))
    what = workload.load(tmp_path, workload.AZURE, 0.0, 60.0, 30.0, seed=0)
    assert [(r.prompt_tokens, r.output_tokens) for r in what.requests] == [(374, 44), (396, 109)]
    assert what.requests[1].due_at_s == pytest.approx(4.314579, abs=1e-4)


def test_replicas_cost_from_order_to_departure_and_drain_before_they_leave() -> None:
    class Steps:
        period_s = 1.0

        def desired(self, cluster: Cluster, now_s: float) -> int:
            return 3 if 10 <= now_s < 30 else 1

        def came(self, seconds: float) -> None:
            came.append(seconds)

    came: list[float] = []
    cluster = Cluster(steady(60.0, 0.2), Steps(), ENGINE, 5.0, 1)
    served = cluster.run()
    assert len(served) == 300 and cluster.most() == 3
    assert len(came) == 2 and all(4.0 <= seconds <= 6.0 for seconds in came)
    left = sorted(machine.left_at_s for machine in cluster.machines)
    assert 30 <= left[0] <= left[1] < 40 and left[2] == math.inf
    assert cluster.replica_seconds(0.0, 60.0) == pytest.approx(60 + left[0] + left[1] - 20)
    # What ran when it was taken away has ended on it; nothing began on it after that.
    for machine in cluster.machines:
        own = [one for one in served if one.replica == machine.number]
        assert all(one.finished_at_s <= machine.left_at_s for one in own)
        assert all(one.given_at_s <= 30 for one in own if machine.left_at_s < math.inf)


def test_too_few_replicas_are_an_error_not_an_endless_run() -> None:
    with pytest.raises(RuntimeError, match="not served"):
        Cluster(steady(60.0, 0.2), Fixed(0), ENGINE, 5.0, 0).run()


def test_ours_follows_a_burst_and_costs_less_than_the_peak() -> None:
    what = steady(400.0, 0.6, burst_at_s=150.0)
    peak = Cluster(what, Fixed(8), ENGINE, 5.0, 8)
    ours = Cluster(what, Ours(ScalingBounds(0, 8, ENGINE.slots, 5.0, 60.0)), ENGINE, 5.0, 1)
    alone = Cluster(what, Fixed(1), ENGINE, 5.0, 1)
    got = {}
    for name, cluster in {"peak": peak, "ours": ours, "alone": alone}.items():
        cluster.run()
        got[name] = metrics.figures(cluster, 0.0)
    assert got["peak"]["attainment"] == 1.0 and got["peak"]["burst_to_slo_s"] == 0.0
    assert got["alone"]["attainment"] < got["ours"]["attainment"]
    assert got["ours"]["attainment"] >= 0.98
    assert got["ours"]["replica_seconds"] < 0.6 * got["peak"]["replica_seconds"]
    assert got["ours"]["burst_to_slo_s"] < 30 < got["alone"]["burst_to_slo_s"]


# --- Ray Serve's rule -------------------------------------------------------------------------------------------------


def rule() -> ServeRule:
    return ServeRule(ServeSettings(5.0, look_back_period_s=10.0, downscale_delay_s=30.0), 0, 20)


def watch(serve: ServeRule, from_s: float, seconds: float, requests: int, target: int) -> list[int]:
    decided = []
    for tick in range(round(seconds * 10)):
        now_s = from_s + tick / 10
        serve.observe(requests, target, now_s)
        target = serve.decide(target, target, now_s)
        decided.append(target)
    return decided


def test_serve_goes_by_the_mean_of_its_look_back() -> None:
    serve = rule()
    assert watch(serve, 0, 20, 20, 4)[-1] == 4
    up = watch(serve, 20, 20, 50, 4)
    assert up[0] <= 5 < up[30] < 10 and up[-1] == 10


def test_serve_waits_before_it_scales_down_and_to_zero() -> None:
    serve = rule()
    assert watch(serve, 0, 20, 50, 10)[-1] == 10
    down = watch(serve, 20, 45, 0, 10)
    assert down[280] == 10 and down[-1] == 1, "never from many to none at once"
    assert watch(serve, 65, 60, 0, 1)[-1] == 0


def test_serve_starts_from_zero_at_once() -> None:
    serve = rule()
    assert watch(serve, 0, 5, 0, 0)[-1] == 0
    assert watch(serve, 5, 1, 3, 0)[0] == 1


def test_serve_in_front_of_replicas() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        side = Serve(ServeSettings(4.0, 2.0, 30.0), 0, 8)
    cluster = Cluster(steady(300.0, 0.6, burst_at_s=100.0), side, ENGINE, 5.0, 1)
    cluster.run()
    assert cluster.most() > 2 and metrics.figures(cluster, 0.0)["attainment"] > 0.8


# --- live -------------------------------------------------------------------------------------------------------------


def test_the_live_sides_differ_in_their_replicas_only() -> None:
    config = load_config(REPO / "configs" / "local.yaml")
    sides = {side: live.side_config(config, side) for side in (live.OURS, live.SERVE, live.PEAK)}
    replicas = {side: next(iter(one.deployments.values())).replicas for side, one in sides.items()}
    assert (replicas[live.PEAK].min, replicas[live.OURS].min) == (2, 1)
    assert sides[live.OURS] == sides[live.SERVE] and all(one.max == 2 for one in replicas.values())
    assert all(list(one.models) == ["smollm2-135m"] for one in sides.values())
    plain = config.model_dump(mode="json")
    del plain["deployments"]["smollm2-burst"]
    with pytest.raises(typer.BadParameter, match="semi_online"):
        live.side_config(type(config).model_validate(plain), live.OURS)


def test_live_arrivals_are_ten_times_as_many_in_the_burst() -> None:
    moments = live.arrivals(2.0, 0)
    in_burst = [one for one in moments if live.BEFORE_S <= one < live.BEFORE_S + live.BURST_S]
    assert len(in_burst) == pytest.approx(1200, rel=0.15)
    assert len(moments) - len(in_burst) == pytest.approx(720, rel=0.15)
    assert live.arrivals(2.0, 0) == moments != live.arrivals(2.0, 1)


def test_live_failures_are_misses() -> None:
    asked = [Asked(10.0, 0.5), Asked(live.BEFORE_S + 3, 20.0), Asked(live.BEFORE_S + 7, None), Asked(250.0, 1.0)]
    got = live.figures_of(asked)
    assert got["attainment"] == 0.5 and got["failed"] == 1 and got["burst_to_slo_s"] == 7.0


def test_ratios_and_bars() -> None:
    report = Report("burst", "", {})
    for pair in range(2):
        for side, attainment, cost in (
            (burst.OURS, 0.99, 300.0),
            (burst.SERVE, 0.97, 400.0),
            (burst.PEAK, 1.0, 1000.0),
        ):
            figures = {"attainment": attainment, "replica_seconds": cost, "burst_to_slo_s": 8.0 + pair}
            report.add(pair, side, case="simulation", scenario="azure", **figures)
    burst.judge(report)
    medians = {name: ratio["median"] for name, ratio in report.ratios.items()}
    assert medians["attainment_vs_peak_points"] == pytest.approx(-1.0)
    assert medians["replica_seconds_vs_peak"] == pytest.approx(0.3)
    assert medians["attainment_vs_serve"] == pytest.approx(2.0)
    assert medians["replica_seconds_vs_serve"] == medians["azure_replica_seconds_vs_serve"] == 0.75
    assert medians["burst_to_slo_s"] == 8.5
    assert all(bar["holds"] for bar in report.bars.values()) and len(report.bars) == 4
