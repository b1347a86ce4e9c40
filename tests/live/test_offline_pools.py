"""Offline jobs over several pools: nodes with labels, of different speed, that come, go and die while the job runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.offline_jobs import calls, engine_pids, write_jsonl
from tests.support.offline_runs import (
    Driver,
    assert_every_row_once,
    gone,
    pool_reports,
    report,
    run,
    write_pools,
)
from tests.support.ray_nodes import Nodes, nodes
from tests.support.stack import free_ports

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A node each of the pools `slow` and `fast`."""
    with nodes(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.join(pool="slow")
        cluster.join(pool="fast")
        cluster.wait()
        yield cluster


def numbered(folder: Path, count: int) -> tuple[Path, list[str]]:
    ids = [f"r{i}" for i in range(count)]
    return write_jsonl(folder / "in.jsonl", [{"id": row_id, "prompt": f"row {row_id}"} for row_id in ids]), ids


def test_two_pools_share_a_job_by_their_speed_and_end_together(tmp_path: Path, cluster: Nodes) -> None:
    # Full, the slow pool runs 8 rows at once in 1.5 s each and the fast one in 0.5 s. Without care for the tail the
    # slow one sits on 16 rows, 3 s of work, when the input ends: the fast one then stands idle for about 2 s.
    pools = {
        "slow": {"delay_s": 1.5, "max-num-seqs": 8, "price": 1.0},
        "fast": {"delay_s": 0.5, "max-num-seqs": 8, "price": 6.0},
    }
    write_pools(tmp_path, cluster.address, pools)
    source, ids = numbered(tmp_path, 320)
    text = run(tmp_path, source)
    assert_every_row_once(tmp_path, ids)
    assert len(calls(tmp_path)) == len(ids), "no row was computed by both pools"
    by_pool = pool_reports(tmp_path)
    assert by_pool["slow"]["rows"] + by_pool["fast"]["rows"] == len(ids)
    # Rates are over the time each could work, as engines do not start at the same moment.
    assert 2.2 <= by_pool["fast"]["tokens_per_s"] / by_pool["slow"]["tokens_per_s"] <= 4.0, by_pool
    assert 1.8 <= by_pool["fast"]["rows"] / by_pool["slow"]["rows"] <= 5.0, by_pool
    for name, pool in by_pool.items():
        expected = pool["engine_seconds"] * pools[name]["price"] / 3600
        assert pool["usd"] == pytest.approx(expected, rel=0.01) and pool["usd"] > 0
        assert pool["usd_per_mtok"] > 0
    assert report(tmp_path)["run"]["usd"] == pytest.approx(sum(pool["usd"] for pool in by_pool.values()), abs=1e-5)
    assert "Pools in this run" in text
    # Neither waits for much more than the other's last rows, which cannot be taken from it once they run.
    assert by_pool["fast"]["tail_idle_s"] <= 1.0, by_pool
    assert by_pool["slow"]["tail_idle_s"] <= 2.0, by_pool


def test_a_lost_node_costs_no_row_and_a_node_that_joins_gets_work(tmp_path: Path, cluster: Nodes) -> None:
    write_pools(
        tmp_path,
        cluster.address,
        {"spot": {"delay_s": 0.4, "engines": 2}, "late": {"delay_s": 0.4}},
        part_rows=5,
    )
    source, ids = numbered(tmp_path, 300)
    spot = [cluster.join(pool="spot"), cluster.join(pool="spot")]
    cluster.wait()
    driver = Driver(tmp_path, source)
    late = None
    try:
        driver.until(lambda: len(engine_pids(tmp_path)) == 2 and driver.parts() >= 4, "both nodes were at work")
        # The order of engine starts says nothing about nodes: lose one of them, whichever engine it has.
        spot[0].lose()
        late = cluster.join(pool="late")
        assert driver.wait() == 0, driver.text()
    finally:
        driver.end()
        for node in [*spot, *([late] if late else [])]:
            cluster.leave(node)
    assert_every_row_once(tmp_path, ids)
    by_pool = pool_reports(tmp_path)
    assert by_pool["late"]["rows"] > 0 and by_pool["spot"]["rows"] > 0, by_pool
    assert report(tmp_path)["run"]["engines_started"] == 3, "the lost engine waits for a node until the end"
    assert "pool late: no node of the cluster fits it now" in driver.text()
    # Paid for twice at most: what ran in the lost engine or waited for its part.
    assert len(calls(tmp_path)) - len(ids) <= 4 + 5


def test_the_whole_ray_and_the_driver_are_killed_and_a_new_cluster_goes_on(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    source, ids = numbered(tmp_path, 240)
    write_pools(tmp_path, f"127.0.0.1:{port}", {"a": {"delay_s": 0.25, "engines": 2}}, part_rows=5)
    with nodes(tmp_path, port) as first:
        first.join(2, pool="a")
        first.wait()
        driver = Driver(tmp_path, source)
        try:
            driver.until(lambda: len(engine_pids(tmp_path)) == 2 and driver.parts() >= 4, "both engines were at work")
            driver.process.kill()
            first.kill()
        finally:
            driver.end()
    orphans = engine_pids(tmp_path)
    assert gone(orphans)
    before = len(calls(tmp_path))
    assert before < len(ids)
    with nodes(tmp_path, port) as second:
        second.join(2, pool="a")
        second.wait()
        text = run(tmp_path, source)
    assert "taking over the output" in text
    assert_every_row_once(tmp_path, ids)
    # Paid for twice at most: what ran in the two engines or waited for its part.
    assert len(calls(tmp_path)) - len(ids) <= 2 * (4 + 5)


def test_a_pool_without_nodes_waits_and_stops_nobody(tmp_path: Path, cluster: Nodes) -> None:
    write_pools(tmp_path, cluster.address, {"fast": {}, "nowhere": {"start_timeout_s": 3}})
    source, ids = numbered(tmp_path, 40)
    text = run(tmp_path, source)
    assert "pool nowhere: no node of the cluster fits it now; its engines wait for one to join" in text
    assert "pool fast:" not in text
    assert_every_row_once(tmp_path, ids)
    nowhere = pool_reports(tmp_path)["nowhere"]
    assert (nowhere["rows"], nowhere["engines"], nowhere["usd"]) == (0, 0, 0.0)


def test_a_job_whose_only_pool_has_no_node_fails_in_time_and_says_so(tmp_path: Path, cluster: Nodes) -> None:
    write_pools(tmp_path, cluster.address, {"fast": {}, "nowhere": {"start_timeout_s": 3}})
    source, _ = numbered(tmp_path, 4)
    began_s = time.monotonic()
    driver = Driver(tmp_path, source, "--pool", "nowhere")
    assert driver.wait() == 1, driver.text()
    assert time.monotonic() - began_s < 60
    assert "no engine was ready within 3 s (engine.start_timeout_s)" in driver.text()
    assert "No node of the cluster fits: nowhere" in driver.text()
    assert engine_pids(tmp_path) == []
