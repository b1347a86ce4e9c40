"""The engine actors of a job, over all pools.

Role: start as many engines as the work is worth, and put a process back into a seat whose process ended.
Owns: the seats (one engine actor each). Must not know: rows, what the ledger decides.

Ray does the placing: every seat is an actor with the pool's labels, accelerator and resources and endless restarts. A
seat for which no node is free waits in Ray until one joins (which is what an autoscaler sees), and an actor whose node
is lost waits for another. The driver only notices that a seat's process ended, tells the ledger, and asks it to run
again, which waits in Ray until the new process is up.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import JobFailed
from batch_jobs.plan import PoolPlan
from batch_jobs.work.engine_actor import ActorSettings, EngineActor
from batch_jobs.work.ledger_actor import MAX_START_FAILURES, Troubles

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

RUN_AGAIN_S = 1.0

log = logging.getLogger(__name__)


def seats_per_pool(pools: Sequence[PoolPlan], pending_rows: int) -> dict[str, int]:
    """Engines to start in each pool: one after another over all pools until they can hold all pending rows at once.

    One engine that is full does more per dollar than two that are half full, and its start is paid once; with more rows
    than that, every pool's `replicas.max` are worth starting. `replicas.min` is always kept.
    """
    seats = {pool.name: pool.min_engines for pool in pools}
    left = pending_rows - sum(pool.min_engines * pool.rows_at_once for pool in pools)
    while left > 0 and any(seats[pool.name] < pool.max_engines for pool in pools):
        for pool in pools:
            if left > 0 and seats[pool.name] < pool.max_engines:
                seats[pool.name] += 1
                left -= pool.rows_at_once
    if not any(seats.values()):
        seats[pools[0].name] = 1
    return seats


@dataclass
class _Seat:
    name: str
    pool: str
    actor: ActorHandle[Any]
    run: ObjectRef[None] | None
    run_again_s: float | None = None
    """When to ask for the next run, after one that ended badly."""
    given_up: str | None = None
    """Why nobody sits here any more."""


class Fleet:
    """Used from the driver's main thread. Raises ray.exceptions.RayError when the ledger is gone."""

    def __init__(
        self, pools: Mapping[str, tuple[PoolPlan, ActorSettings]], seats: Mapping[str, int], ledger: Any
    ) -> None:
        self._ledger = ledger
        self._pools = dict(pools)
        self._seats: list[_Seat] = []
        self._dead: Counter[str] = Counter()
        self._began_s = time.monotonic()
        self._was_ready = False
        for name in pools:
            for index in range(seats[name]):
                seat = f"{name}#{index}"
                actor = self._start(name, seat)
                self._seats.append(_Seat(seat, name, actor, actor.run.remote(self._ledger)))

    def _start(self, pool: str, seat: str) -> ActorHandle[Any]:
        import ray

        plan, settings = self._pools[pool]
        # Bytes, because small ones travel with the actor: one that restarts must not look for an object that is gone.
        # Any number of restarts: the ledger and the count of failed starts decide when it is enough.
        options = plan.actor_options() | {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": 1000}
        actor: ActorHandle[Any] = ray.remote(**options)(EngineActor).remote(pickle.dumps(settings), seat)
        return actor

    @property
    def broken(self) -> frozenset[str]:
        """Pools in which nobody works any more."""
        return frozenset(
            pool for pool in self._pools if all(seat.given_up for seat in self._seats if seat.pool == pool)
        )

    def look(self, any_ready: bool) -> None:
        """Notice ended processes, end stuck ones. Raises JobFailed when no pool can go on."""
        import ray

        runs = {seat.run: seat for seat in self._seats if seat.run is not None}
        ended, _ = ray.wait(list(runs), num_returns=len(runs), timeout=0) if runs else ([], [])
        for ref in ended:
            self._ended(runs[ref], ref)
        self._heed(ray.get(self._ledger.troubles.remote()))
        for seat in self._seats:
            if seat.run_again_s is not None and time.monotonic() >= seat.run_again_s and not seat.given_up:
                seat.run, seat.run_again_s = seat.actor.run.remote(self._ledger), None
        self._was_ready = self._was_ready or any_ready
        self._bound_the_wait()

    def _ended(self, seat: _Seat, ref: ObjectRef[None]) -> None:
        import ray

        seat.run = None
        try:
            ray.get(ref)
            return
        except ray.exceptions.ActorDiedError as error:  # for good: not even its constructor came to an end
            log.warning("engine in seat %s cannot be started: %s", seat.name, _first_line(error))
            self._dead[seat.name] += 1
            if self._dead[seat.name] >= MAX_START_FAILURES:
                self._give_up(seat, _first_line(error))
                return
            seat.actor = self._start(seat.pool, seat.name)
        except ray.exceptions.RayError as error:
            log.warning("engine in seat %s ended: %s", seat.name, _first_line(error))
        ray.get(self._ledger.seat_lost.remote(seat.name))
        seat.run_again_s = time.monotonic() + RUN_AGAIN_S

    def _heed(self, troubles: Troubles) -> None:
        import ray

        for seat in self._seats:
            if seat.name in troubles.stuck_seats:
                log.warning("engine in seat %s is stuck: its process is replaced", seat.name)
                ray.kill(seat.actor, no_restart=False)
            failures = troubles.start_failures.get(seat.name, [])
            if len(failures) >= MAX_START_FAILURES and not seat.given_up:
                log.error("seat %s is given up, its engine does not start: %s", seat.name, failures[-1])
                self._give_up(seat, failures[-1])
        if all(seat.given_up for seat in self._seats):
            causes = "; ".join(sorted({f"{seat.pool}: {seat.given_up}" for seat in self._seats}))
            raise JobFailed(f"no engine starts. {causes}. Rerun with the cause removed; committed rows stay.")

    def _give_up(self, seat: _Seat, why: str) -> None:
        import ray

        seat.given_up, seat.run, seat.run_again_s = why, None, None
        ray.kill(seat.actor)
        ray.get(self._ledger.seat_lost.remote(seat.name))

    def _bound_the_wait(self) -> None:
        """A job whose first engine never comes must not wait for ever."""
        bound_s = max(plan.start_timeout_s for plan, _ in self._pools.values())
        if not self._was_ready and time.monotonic() - self._began_s > bound_s:
            raise JobFailed(
                f"no engine was ready within {bound_s:g} s (engine.start_timeout_s). {self._unplaced()}"
                "Rerun when nodes are there."
            )

    def _unplaced(self) -> str:
        nodes = cluster_nodes()
        waiting = [name for name, (plan, _) in self._pools.items() if not fits_a_node(plan, nodes)]
        return f"No node of the cluster fits: {', '.join(waiting)}. " if waiting else ""

    def close(self) -> None:
        """End every process of the job, those that wait for a node too."""
        import ray

        for seat in self._seats:
            ray.kill(seat.actor)


def cluster_nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def fits_a_node(plan: PoolPlan, nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some node has the pool's labels and, empty, the resources of one engine."""
    return any(_fits(plan, node) for node in nodes)


def _fits(plan: PoolPlan, node: Mapping[str, Any]) -> bool:
    needs = plan.resources()
    labels = node.get("Labels") or {}
    has_labels = all(labels.get(name) == value for name, value in plan.pool.labels.items())
    return has_labels and all(node["Resources"].get(name, 0) + 1e-9 >= amount for name, amount in needs.items())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
