"""Many replicas one by one: nothing lost, the same every time, and the spread that was asked for."""

from __future__ import annotations

import gc
import random

import pytest

from cluster.simulation import Engine, ReplicaModel, Request, StepModel
from cluster.simulation.fleet import run_fleet, serve, spread_over

ENGINE = Engine(StepModel(0.01, 1e-4, 1e-4, 1e-7), kv_tokens=20_000, max_num_seqs=16)


def load(count: int = 400) -> list[Request]:
    rng = random.Random(3)
    at_s, requests = 0.0, []
    for number in range(count):
        at_s += rng.expovariate(30)
        session = f"s{rng.randrange(40)}"
        requests.append(Request(number, at_s, rng.randint(1, 900), rng.randint(1, 60), session=session))
    return requests


def courses(requests: list[Request]) -> list[tuple[int, float, float]]:
    return [(r.replica, r.first_token_s, r.finished_s) for r in requests]


@pytest.mark.parametrize("spread", ["round_robin", "random", "session"])
def test_every_request_ends_once_after_it_came(spread: str) -> None:
    requests, done = load(), []
    models = run_fleet(requests, ENGINE, 5, spread, 1, done.append)  # type: ignore[arg-type]
    assert done == [1, 2, 3, 4, 5] and gc.isenabled()
    assert all(r.arrived_s <= r.first_token_s <= r.finished_s for r in requests)
    assert sum(m.prefilled_tokens for m in models) == sum(r.prompt_tokens for r in requests)
    assert all(m.idle for m in models)
    again = load()
    run_fleet(again, ENGINE, 5, spread, 1)  # type: ignore[arg-type]
    assert courses(requests) == courses(again)


def test_a_session_stays_on_its_replica() -> None:
    shares = spread_over(load(), 5, "session", 0)
    homes = [{r.session for r in share} for share in shares]
    assert sum(len(home) for home in homes) == len(set().union(*homes))


def test_one_replica_of_a_fleet_is_a_replica_alone() -> None:
    requests, alone = load(), load()
    run_fleet(requests, ENGINE, 3)
    serve(ReplicaModel(ENGINE), alone[1::3], 1)
    assert courses(requests)[1::3] == courses(alone)[1::3]


def test_a_fleet_needs_a_replica() -> None:
    with pytest.raises(ValueError, match="at least one"):
        run_fleet(load(), ENGINE, 0)
