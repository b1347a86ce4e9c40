"""What a busy replica does, and how long the next one takes: measured so that noise and idling do not mislead."""

from __future__ import annotations

import pytest

from cluster.scheduling import (
    ClassPolicy,
    Replica,
    RequestQueue,
    StartTimes,
    TenantLimits,
    TenantPolicy,
    Ticket,
    TokenUsage,
)
from cluster.scheduling.busy_rate import BusyRate
from cluster.vocabulary import RequestClass

ONLINE = RequestClass.ONLINE


def test_the_rate_is_that_of_busy_time_only() -> None:
    rate = BusyRate()
    for step in range(100):
        rate.note("light", 1.0, False, step * 0.1)
    assert rate.rate() == 0.0, "under light load it is the load that is measured"
    for step in range(201):
        rate.note("a", 10.0, True, 20 + step * 0.1, ended=20 + (step - 1) * 0.1)
        rate.note("b", 20.0, True, 20 + step * 0.1, ended=20 + (step - 1) * 0.1)
    assert rate.rate() == pytest.approx(150, rel=0.01), "a mean over replicas: what one more would add"
    rate.note("a", 1000.0, True, 5000.0)
    assert rate.rate() == pytest.approx(150, rel=0.01), "nobody knows whether it was busy since"


def test_a_rate_needs_some_seconds_to_be_believed() -> None:
    rate = BusyRate()
    rate.note("a", 10.0, True, 0.0)
    rate.note("a", 10.0, True, 3.0, ended=2.5)
    rate.note("a", 10.0, True, 4.0)
    assert rate.rate() == 0.0
    rate.note("a", 30.0, True, 7.0)
    assert rate.rate() == pytest.approx(10, rel=0.01)


def test_new_work_replaces_old_measurements() -> None:
    rate = BusyRate()
    for second in range(100):
        rate.note("a", 100.0, True, float(second), ended=second - 1.0)
    for second in range(100, 400):
        rate.note("a", 10.0, True, float(second))
    assert rate.rate() == pytest.approx(10, rel=0.1)


def test_the_queue_measures_its_replicas_while_somebody_waits() -> None:
    queue = RequestQueue({ONLINE: ClassPolicy(max_queued=1000, max_wait_s=1e6)})
    queue.put_replica(Replica("r", "d", (ONLINE,), 2), 0.0)
    for number in range(40):
        assert queue.submit(Ticket(str(number), "g", "t", ONLINE, 100, 50, 0.0, session=f"s{number}"), 0.0) is None
    leases = queue.grant(0.0)
    ahead = queue.demand("d", ONLINE, 0.0).prefill_s
    assert ahead > 0, "two prompts are to be prefilled"
    second = 0.0
    while leases:
        second += 1.0
        now = queue.demand("d", ONLINE, second)
        queue.release(leases.pop(0).lease_id, TokenUsage(100, 0, 50), second)
        leases += queue.grant(second)
    assert now.saturated and now.replica_service_per_s == pytest.approx(200, rel=0.05)
    idle = queue.demand("d", ONLINE, second + 3600)
    assert idle.saturated and idle.replica_service_per_s == now.replica_service_per_s, "idle time fades nothing"
    assert idle.prefill_s == 0


def test_the_expected_start_is_that_of_the_latest_rung() -> None:
    starts = StartTimes()
    assert starts.expected_s("d") == 0.0
    for seconds in (50.0, 60.0, 55.0, 300.0):
        starts.learn("d", "cold", seconds)
    assert starts.expected_s("d") == 60.0, "one outlier does not rule it"
    starts.learn("d", "forked", 5.0)
    assert starts.expected_s("d") == 5.0
    assert starts.by_rung("d") == {"cold": 60.0, "forked": 5.0}
    assert starts.expected_s("other") == 0.0
    for _ in range(16):
        starts.learn("d", "forked", 9.0)
    assert starts.expected_s("d") == 9.0


def test_who_waits_for_a_limit_of_its_own_tenant_needs_no_replica() -> None:
    queue = RequestQueue({ONLINE: ClassPolicy(max_queued=1000, max_wait_s=1e6)})
    queue.set_tenant("capped", TenantPolicy(limits=TenantLimits(max_concurrent=1)), 0.0)
    queue.put_replica(Replica("r", "d", (ONLINE,), 2), 0.0)
    for number in range(9):
        assert queue.submit(Ticket(str(number), "g", "capped", ONLINE, 100, 50, 0.0), 0.0) is None
    assert len(queue.grant(0.0)) == 1
    held = queue.demand("d", ONLINE, 0.0)
    assert (held.waiting, held.backlog_service, held.running) == (0, 0.0, 1)
    for number in range(3):
        assert queue.submit(Ticket(f"b{number}", "g", "b", ONLINE, 100, 50, 0.0), 0.0) is None
    queue.grant(0.0)
    now = queue.demand("d", ONLINE, 0.0)
    assert now.waiting == 2 and now.backlog_service == pytest.approx(2 * 200)


def test_a_replica_that_is_still_filling_is_not_measured() -> None:
    rate = BusyRate()
    for step in range(100):
        rate.note("a", 0.0, True, step * 0.1)
    assert rate.rate() == 0.0 and rate._measured_s == 0.0
    rate.note("a", 100.0, True, 10.0, ended=-5.0)
    assert rate._measured_s == 0.0, "it began before the others came to wait"
    rate.note("a", 100.0, True, 10.5, ended=0.5)
    assert rate._measured_s == 0.0, "only what was short has ended"
    rate.note("a", 100.0, True, 11.0, ended=2.5)
    for second in range(12, 20):
        rate.note("a", 100.0, True, float(second))
    assert rate.rate() == pytest.approx(100, rel=0.01)
