"""A queue that is rebuilt from what gateways bring back: everybody has been charged what was used, once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import (
    ClassPolicy,
    Lease,
    OutputPredictor,
    Replica,
    RequestQueue,
    TenantPolicy,
    Ticket,
    TokenUsage,
)
from cluster.vocabulary import RequestClass

ONLINE = RequestClass.ONLINE
PROMPT = 10
WEIGHTS = {"a": 1.0, "b": 3.0}


def fresh(life: int, first_guess: int = 64) -> RequestQueue:
    predictor = OutputPredictor(first_guess_tokens=first_guess)
    queue = RequestQueue({ONLINE: ClassPolicy(1000, 1000)}, predictor=predictor, lease_prefix=f"{life}-")
    queue.put_replica(Replica("r", "d", (ONLINE,), 100), 0.0)
    for tenant, weight in WEIGHTS.items():
        queue.set_tenant(tenant, TenantPolicy(weight), 0.0)
    return queue


def begin(queue: RequestQueue, number: int, tenant: str = "a", **fields: Any) -> Lease:
    assert queue.submit(Ticket(f"t{number}", "g", tenant, ONLINE, PROMPT, 1000, 0.0, **fields), 0.0) is None
    (lease,) = queue.grant(0.0)
    return lease


requests = st.tuples(
    st.sampled_from(sorted(WEIGHTS)), st.integers(0, 2), st.integers(0, 900), st.none() | st.floats(0, 1)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests, min_size=1, max_size=40), st.integers(0, 500))
def test_a_restart_changes_nothing_in_what_was_charged_in_the_end(
    asked: list[tuple[str, int, int, float | None]], first_guess: int
) -> None:
    """Whatever the former queue had predicted for what still runs, and how much of it was produced: the new queue's
    counters end where the former one's would have."""
    first = fresh(1)
    running: list[tuple[Lease, TokenUsage]] = []
    produced: dict[str, int] = {}
    for number, (tenant, key, output, part) in enumerate(asked):
        lease, usage = begin(first, number, tenant, key=f"k{key}"), TokenUsage(PROMPT, 0, output)
        if part is None:
            first.release(lease.lease_id, usage, 1.0)
        else:
            running.append((lease, usage))
            produced[lease.lease_id] = int(part * output)
            first.progress(lease.lease_id, produced[lease.lease_id], 1.0)
    snapshot = first.counters_snapshot()
    second = fresh(2, first_guess)
    for _ in range(2):  # two gateways have the same snapshot
        second.recovery.restore_counters(snapshot)
    second.recovery.restore([], [lease for lease, _ in running], 2.0, produced=produced)
    for queue in (first, second):
        for lease, usage in running:
            assert queue.release(lease.lease_id, usage, 3.0)
    assert second.counters()[ONLINE] == pytest.approx(first.counters()[ONLINE])


def test_of_two_snapshots_the_later_one_counts_although_more_ran_when_the_earlier_was_made() -> None:
    queue = fresh(1)
    first, second = begin(queue, 1), begin(queue, 2)
    earlier = queue.counters_snapshot()
    queue.release(first.lease_id, TokenUsage(PROMPT, 0, 1), 1.0)  # far less than was predicted
    queue.release(second.lease_id, None, 1.0)
    later, truth = queue.counters_snapshot(), queue.counters()
    again = fresh(2)
    for snapshot in (later, earlier):
        again.recovery.restore_counters(snapshot)
    assert again.counters() == truth


def test_what_was_produced_before_is_not_work_of_this_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a restart would make replicas look many times as fast as they are."""
    lease = begin(fresh(1), 1)
    queue, seen = fresh(2), []
    monkeypatch.setattr(queue._demand, "worked", lambda deployment, replica, service, *_: seen.append(service))
    queue.recovery.restore([], [lease], 1.0, produced={lease.lease_id: 700})
    queue.progress(lease.lease_id, 710, 1.2)
    queue.release(lease.lease_id, TokenUsage(PROMPT, 0, 715), 1.4)
    assert seen == [2 * 10, PROMPT + 2 * 5]


def test_a_gateway_that_says_hello_again_brings_its_progress_too() -> None:
    """News of it may have been lost; what is known already is charged once."""
    queue = fresh(1)
    lease = begin(queue, 1)
    for _ in range(2):
        queue.recovery.reconcile_owner("g", [], [lease], 1.0, produced={lease.lease_id: 300})
    assert queue.counters()[ONLINE]["a"] == PROMPT + 2 * 300


def test_who_comes_to_wait_after_a_restart_is_lifted_to_counters_that_hold_what_runs() -> None:
    former = fresh(1)
    running = [begin(former, number) for number in range(4)]
    for number in range(10, 13):
        former.submit(Ticket(f"t{number}", "g", "a", ONLINE, PROMPT, 1000, 0.0), 0.0)
    queue = fresh(2)
    queue.recovery.restore_counters(former.counters_snapshot())
    queue.recovery.restore(former.tickets(), running, 1.0)
    assert queue.counters() == former.counters()
    queue.submit(Ticket("new", "g", "b", ONLINE, PROMPT, 1000, 2.0), 2.0)
    assert queue.counters()[ONLINE]["b"] == queue.counters()[ONLINE]["a"] > 0
