"""The live part without engines of its own: what is planned, sent and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fairness_sides import live
from benchmarks.fairness_sides.live_load import Answer, Load, Planned, offer, plan
from benchmarks.report import Report
from cluster.config import TribesConfig
from tests.unit.serve_apps.servers import ENGINE_KEY, eventually, scripted_engine

QUIET_00 = "quiet-00"
QUIET, NOISY = Load(("quiet-00", "quiet-01"), 20.0, 3), Load(("noisy",), 40.0, 500)


def configuration(folder: Path, serves: str = "online") -> TribesConfig:
    deployment = {"model": "m", "serves": [serves], "engine": {"kind": "sglang"}, "max_running": 16}
    return TribesConfig.model_validate(
        {
            "models": {"m": {"source": {"kind": "local", "path": str(folder)}}},
            "deployments": {"d": deployment},
            "tenants": {"someone": {"weight": 3}},
        }
    )


def test_quiet_tenants_ask_at_the_same_times_in_every_run_of_a_pair() -> None:
    alone = plan([QUIET], 10.0, seed="0", salt="0 alone")
    beside = plan([QUIET, NOISY], 10.0, seed="0", salt="0 noisy")
    times = [(p.at_s, p.tenant) for p in alone]
    assert times == [(p.at_s, p.tenant) for p in beside if p.quiet]
    assert times != [(p.at_s, p.tenant) for p in plan([QUIET], 10.0, seed="1", salt="")]
    assert len(alone) == pytest.approx(200, rel=0.3) and len(beside) == pytest.approx(600, rel=0.2)
    prompts = [p.prompt for p in (*alone, *beside)]
    assert len(set(prompts)) == len(prompts), "no run may profit from a prefix that another left behind"


async def test_the_load_is_open_and_the_noise_is_broken_off() -> None:
    """Quiet answers are timed from their planned time; what the noise still runs at the end is left."""
    with scripted_engine("--itl-ms", "20", "--ttft-ms", "50", "--tokens", "1000") as engine:
        planned = plan([QUIET, NOISY], 1.0, seed="0", salt="")
        keys = dict.fromkeys(("quiet-00", "quiet-01", "noisy"), ENGINE_KEY)
        answers = await offer(engine.url, keys, "m", planned, patience_s=10.0)

        async def is_idle() -> bool:
            return (await engine.stats())["running"] == 0

        await eventually(is_idle)
        stats = await engine.stats()
    assert [a.planned for a in answers] == planned
    quiet = [a for a in answers if a.planned.quiet]
    assert quiet and all(a.status == 200 and a.ttft_s is not None and 0.05 <= a.ttft_s < 2 for a in quiet)
    assert all(a.ttft_s is None for a in answers if not a.planned.quiet), "500 tokens take ten seconds"
    assert stats["started"] == len(planned) and stats["aborted"] == len(planned) - len(quiet)


async def test_a_refused_request_has_no_time_to_first_token() -> None:
    planned = [Planned(0.0, "quiet-00", "x", 1), Planned(0.0, "quiet-01", "x", 1)]
    with scripted_engine() as engine:
        refused, served = await offer(engine.url, {"quiet-00": "wrong", "quiet-01": ENGINE_KEY}, "m", planned, 5.0)
    assert (refused.status, refused.ttft_s) == (401, None)
    assert served.status == 200 and served.ttft_s is not None
    gone = await offer(engine.url, {"quiet-00": "k", "quiet-01": "k"}, "m", planned, 5.0)
    assert [(a.status, a.ttft_s) for a in gone] == [(0, None), (0, None)]


def test_every_tenant_has_the_same_policy_but_the_one_for_fifo(tmp_path: Path) -> None:
    config = live.live_config(configuration(tmp_path))
    policies = {name: tenant.model_dump() for name, tenant in config.tenants.items() if name in (*live.QUIET, "noisy")}
    assert len(policies) == 16 and all(policy == policies["noisy"] for policy in policies.values())
    assert policies["noisy"]["limits"]["max_concurrent"] == 1  # 16 slots for 16 tenants
    assert config.tenants[live.EVERYONE].limits.max_concurrent is None
    assert "someone" not in config.tenants


def test_a_configuration_without_an_online_deployment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a deployment that serves \[online\]; name a configuration"):
        live.live_config(configuration(tmp_path, serves="semi_online"))


def test_loads_follow_the_measured_capacity() -> None:
    runs = live.Runs("http://nowhere", {}, "m", 16, 60.0)
    runs.capacity_per_s, runs._prompt_tokens = 6.5, 40
    loads = runs.loads()
    assert loads["quiet"].rate_per_s == pytest.approx(6.5 * live.QUIET_LOAD)
    # In service the noise offers 20/16 of the capacity: 6.5 quiet requests/s of 40 + 2 * 4, its own cost 40 + 2 * 128.
    assert loads["noisy"].rate_per_s == pytest.approx(20 * (6.5 * 48 / 16) / 296)


def test_a_missed_request_counts_as_the_longest_wait() -> None:
    early, quiet, noise = (Planned(at_s, who, "x", 1) for at_s, who in ((0, QUIET_00), (60, QUIET_00), (0, "noisy")))
    answers = [Answer(early, 200, 9.0), Answer(quiet, 200, 0.2), Answer(quiet, 429, None)]
    answers += [Answer(noise, 429, None), Answer(noise, 200, 1.0)]
    ttfts = live.quiet_ttfts_s(answers, missed_s=30.0)
    assert ttfts == [0.2, 30.0]
    figures = live.live_figures(answers, ttfts)
    assert figures["quiet_ttft_p99_s"] == 30.0 and figures["quiet_missed"] == 1 and figures["quiet_requests"] == 2
    assert (figures["noisy_requests"], figures["noisy_served"], figures["noisy_refused"]) == (2, 1, 1)


def test_ratios_are_taken_pair_by_pair() -> None:
    report = Report("fairness", "", {})
    report.add(0, "vtc", scenario="arena", quiet_ttft_p99_s=99.0)  # another scenario's run must not mix in
    for pair, (alone, ours, fifo) in enumerate([(1.0, 1.1, 9.0), (2.0, 2.0, 9.0), (1.0, 1.05, 9.0)]):
        for side, value in ((live.ALONE, alone), (live.OURS, ours), (live.FIFO, fifo)):
            report.add(pair, side, scenario="live", quiet_ttft_p99_s=value, quiet_ttft_p50_s=value)
    for side in (live.ALONE, live.OURS):
        report.add(0, side, scenario="live_pooled", quiet_ttft_p99_s=1.0)
    live.compare(report)
    assert report.ratios["quiet_p99_ttft_live"] == {"median": 1.05, "min": 1.0, "max": 1.1}
    assert report.ratios["quiet_p99_ttft_live_fifo"]["median"] == 9.0
    assert report.bars["quiet_p99_ttft_live"]["holds"] is True


def test_idle_is_nothing_waiting_and_nothing_running() -> None:
    def status(waiting: int, running: int) -> dict[str, object]:
        return {"classes": {"online": {"waiting": waiting}}, "replicas": [{"running": running}]}

    assert live.is_idle(status(0, 0))
    assert not live.is_idle(status(1, 0)) and not live.is_idle(status(0, 1))
