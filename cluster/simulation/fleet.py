"""Very many replicas without a queue: requests are bound to a replica when they come, by a rule that looks at no load.

This mode has none of the live policies; it says how engines behave under a given spread of the load, and it is what a
thousand replicas can be simulated with in seconds: as no replica's state matters to another, each is simulated from its
first request to its last, and the order of events over all replicas is never needed.

Owns: the spread, and running replicas one by one. Must not know: queues, scaling.
"""

from __future__ import annotations

import gc
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from cluster.simulation.engine import Engine
from cluster.simulation.replica import ReplicaModel
from cluster.simulation.request import Request

Spread = Literal["round_robin", "random", "session"]


def run_fleet(
    requests: Sequence[Request],
    engine: Engine,
    replicas: int,
    spread: Spread = "round_robin",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[ReplicaModel]:
    """Serve all requests, which are in the order of arrival; their courses are noted in them. `progress` gets how many
    replicas are done."""
    if replicas < 1:
        raise ValueError(f"a fleet needs at least one replica, got {replicas}")
    cache = engine.prefix_caching and any(request.blocks for request in requests)
    done = []
    with no_garbage_collection():
        for index, share in enumerate(spread_over(requests, replicas, spread, seed)):
            model = ReplicaModel(engine, cache)
            serve(model, share, index)
            done.append(model)
            if progress is not None:
                progress(index + 1)
    return done


def serve(model: ReplicaModel, requests: Sequence[Request], index: int = 0) -> None:
    """One replica, alone, from the first of its requests to the end of the last."""
    step, give = model.step, model.give
    for request in requests:
        arrived_s = request.arrived_s
        while model.end_s < arrived_s:
            step()
        request.given_s = arrived_s
        request.replica = index
        give(request, arrived_s)
    while model.end_s < math.inf:
        step()


def spread_over(requests: Sequence[Request], replicas: int, spread: Spread, seed: int) -> list[Sequence[Request]]:
    """The requests of each replica, in the order of arrival."""
    if spread == "round_robin":
        return [requests[index::replicas] for index in range(replicas)]
    shares: list[list[Request]] = [[] for _ in range(replicas)]
    if spread == "random":
        choose = random.Random(seed).randrange
        for request in requests:
            shares[choose(replicas)].append(request)
    else:
        for request in requests:
            shares[_place(request, replicas)].append(request)
    return list(shares)


def _place(request: Request, replicas: int) -> int:
    """By the session's name: those without one by their number."""
    name = request.session if request.session is not None else f"#{request.number}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % replicas


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A simulation makes no cycles, and searching millions of objects for some costs as much as the simulation."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
