"""The dispatcher: one async Ray actor per model that owns the shared request queue.

Concurrency: every method body runs without awaiting between reading and writing the queue, on the actor's one event
loop, so no lock is needed. Gateways call `exchange` and hold one `next_answers` long poll each; replicas `report` once
a second; a tick every 200 ms expires tickets, sizes prepaid leases and notices who stopped calling. The wall clock is
used because tickets carry arrival times from other machines.

It is a detached named actor that Ray restarts (not a Serve deployment actor: those are versioned with one deployment's
code, and a rolling update would split the queue in two). After a restart gateways bring back what waits and runs and
the tenants' counters and the latest configuration (`hello`), replicas report again, and tenants come from the store: it
keeps no state of its own on disk. With no gateway and no replica for a while it ends itself.

Owns: what Ray calls, and the loops. Must not know: HTTP, engines, prompts; grants and recalls are the LeaseOffice's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from typing import Any

import ray

from cluster.config import TribesConfig
from cluster.metrics.queue import QueueMetrics
from cluster.policies import class_policies, queue_policy, service_weights
from cluster.scheduling import Claim, RequestQueue
from cluster.state import Store
from serve_apps.comeback import Comeback
from serve_apps.lease_office import LeaseOffice
from serve_apps.messages import Answers, Exchange, Hello, Memory, ReplicaOrder, ReplicaReport
from serve_apps.queue_status import queue_status, replica_status
from serve_apps.scaling_desk import ScalingDesk
from serve_apps.tenant_feed import TenantFeed

TICK_S = 0.2
MEMORY_S = 1.0
LEVELS_S = 1.0
LATE_S = 1.0
LONELY_EXIT_S = 120.0
log = logging.getLogger(__name__)


class Dispatcher:
    """Grants leases on the replicas of one model to the gateways that ask."""

    def __init__(self, config: dict[str, Any], model: str) -> None:
        self._model = model
        self._config = TribesConfig.model_validate(config)
        self._configured = config
        self._configured_at_s = 0.0
        self._store = Store(self._config.state.url)
        self._life = uuid.uuid4().hex[:8]
        self._company_at_s = self._ticked_at_s = time.monotonic()
        self._queue = RequestQueue(
            class_policies(self._config, model),
            service_weights(self._config),
            policy=queue_policy(self._config),
            lease_prefix=f"{self._life}-",
        )
        self._office = LeaseOffice(
            self._queue,
            self._config.deployments,
            QueueMetrics(model),
            Comeback(_restarted(), self._ticked_at_s),
        )
        self._feed = TenantFeed(self._store, self._queue, service_weights(self._config))
        self._scaling = ScalingDesk(self._office.replicas)
        self._memory = Memory(self._life, frozenset(), {})
        self._remembered_at_s = self._measured_at_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._feed.read_now()
        self._office.limited = self._feed.limited

    # --- gateways -------------------------------------------------------------------------------------------------

    async def hello(self, message: Hello) -> Answers:
        """A gateway introduces itself and brings what it still holds (after this actor was restarted, or at first)."""
        self._start_ticking()
        foreign = message.memory is not None and message.memory.life != self._life
        if foreign and message.memory is not None:
            self._adopt(message.memory)
        self._office.welcome(message, foreign)
        self._remember(time.monotonic())
        answers = self._office.gateways.take(message.gateway_id)
        answers.limited, answers.memory = self._office.limited, self._memory
        return answers

    async def exchange(self, message: Exchange) -> Answers:
        """Take a gateway's news and give it what there is for it; everything that can be decided now is."""
        if message.gateway_id not in self._office.gateways:
            return Answers(resync=True)
        self._office.gateways.heard(message.gateway_id, time.monotonic())
        self._office.take_news(message)
        return self._office.gateways.take(message.gateway_id)

    async def next_answers(self, gateway_id: str, timeout_s: float) -> Answers:
        """Long poll: returns as soon as there is something for the gateway, or empty after `timeout_s`."""
        if gateway_id not in self._office.gateways:
            return Answers(resync=True)
        self._office.gateways.heard(gateway_id, time.monotonic())
        return await self._office.gateways.wait(gateway_id, timeout_s)

    async def goodbye(self, gateway_id: str) -> None:
        """A gateway leaves in order."""
        self._office.drop_gateway(gateway_id)

    # --- replicas -------------------------------------------------------------------------------------------------

    async def report(self, report: ReplicaReport) -> ReplicaOrder:
        """A replica says how it is; a ready one takes leases from now on."""
        self._start_ticking()
        changed, became_ready = self._office.replicas.note(report, time.monotonic())
        if changed:
            self._office.put_replica(report)
        if became_ready:
            self._office.metrics.cold_start(report)
            self._scaling.became_ready(report)
        # A prepaid lease may be in use already: a draining replica waits for it like for the others.
        running = self._queue.taken_on(report.replica_id)
        if not self._office.comeback.is_over(time.monotonic()):
            running = max(1, running)  # some gateway has not said yet what it runs there
        return ReplicaOrder(running)

    async def replica_gone(self, replica_id: str) -> None:
        """A replica (or its engine) ended: its leases are told to their gateways, its waiting work goes elsewhere."""
        self._office.drop_replica(replica_id)

    # --- scaling and status ---------------------------------------------------------------------------------------

    async def desired_replicas(self, deployment: str, current: int, others: tuple[Claim, ...]) -> tuple[int, Claim]:
        """What Ray Serve's autoscaler should aim at for a deployment that has ordered `current` replicas, and what the
        other deployments of the cluster are to know of it; `others` is what is known of them."""
        self._start_ticking()
        config = self._config.deployments[deployment]
        demand = self._queue.demand(deployment, config.own_class, time.time(), self._config.guests_of(deployment))
        decision, claim = self._scaling.decide(deployment, config, demand, current, others)
        if decision.replicas != current:
            log.info("%s: %d -> %d replicas: %s", deployment, current, decision.replicas, decision.reason)
        return decision.replicas, claim

    async def status(self) -> dict[str, Any]:
        """Everything `tribes status` shows about this model, as plain data."""
        office = self._office
        return {
            "model": self._model,
            "pid": os.getpid(),
            "gateways": len(office.gateways),
            "classes": queue_status(self._queue),
            "replicas": replica_status(office.replicas, self._queue, office.prepaid, time.time()),
            "scaling": self._scaling.status(),
        }

    async def configure(self, config: dict[str, Any]) -> None:
        """Take over a new configuration: deployments, scaling, classes served, bounds and shares of the queue.

        The kind of fairness, the service weights of counters and the address of the store are those of the actor's
        start, for as long as it lives: changing them would make what has been counted meaningless.
        """
        # Above the one before even if the clock was set back: the successor takes the latest.
        self._take_over(config, max(time.time(), self._configured_at_s + 1e-3))
        self._remember(time.monotonic(), at_once=True)
        try:
            await self._feed.refresh()
        except Exception as error:
            log.warning("cannot read the tenants (%s); trying again with the next refresh", error)
        else:
            self._tenants_changed()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _adopt(self, memory: Memory) -> None:
        """A predecessor's word. Ray started this life with the configuration of the first one."""
        if memory.config is None or memory.configured_at_s <= self._configured_at_s:
            return
        try:
            self._take_over(memory.config, memory.configured_at_s)
        except ValueError:
            # A hello that fails is tried for ever; the gateway must be served all the same.
            log.exception("cannot take over the predecessor's configuration; going on with the actor's first one")

    def _take_over(self, config: dict[str, Any], configured_at_s: float) -> None:
        parsed = TribesConfig.model_validate(config)
        self._queue.configure(class_policies(parsed, self._model), queue_policy(parsed))
        self._config, self._configured, self._configured_at_s = parsed, config, configured_at_s
        self._office.deployments = parsed.deployments
        self._feed.weights = service_weights(parsed)
        for report in self._office.replicas.reports():
            if report.state != "starting":
                self._office.put_replica(report)
        self._office.grant()

    def _start_ticking(self) -> None:
        if not self._tasks:
            loops = (self._tick_forever(), self._feed.run_forever(self._tenants_changed))
            self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def _tick_forever(self) -> None:
        """Runs for the actor's life; a tick that fails is logged and tried again."""
        while True:
            try:
                self._tick()
            except Exception:
                log.exception("dispatcher tick failed; trying again")
            await asyncio.sleep(TICK_S)

    def _tick(self) -> None:
        clock_s = time.monotonic()
        late_s = clock_s - self._ticked_at_s - TICK_S
        self._ticked_at_s = clock_s
        if late_s > LATE_S:
            # This process did not run for a while: what the others sent meanwhile is still to be read.
            self._office.gateways.excuse(late_s)
            self._office.replicas.excuse(late_s)
            self._company_at_s += late_s
        self._office.tick(clock_s)
        self._remember(clock_s)
        if clock_s - self._measured_at_s >= LEVELS_S:
            self._measured_at_s = clock_s
            self._office.metrics.levels(self._queue, self._office.replicas.reports())
        self._exit_when_lonely(clock_s)

    def _exit_when_lonely(self, clock_s: float) -> None:
        if len(self._office.gateways) or len(self._office.replicas):
            self._company_at_s = clock_s
        elif clock_s - self._company_at_s > LONELY_EXIT_S:
            log.info("no gateway and no replica for %.0f s: ending", LONELY_EXIT_S)
            ray.actor.exit_actor()

    def _tenants_changed(self) -> None:
        """The store was read: gateways learn who has limits, and what new limits allow is granted."""
        if self._feed.limited is not None and self._feed.limited is not self._office.limited:
            self._office.limited = self._feed.limited
            for gateway_id in self._office.gateways:
                self._office.gateways.post(gateway_id).limited = self._feed.limited
        self._office.grant()

    def _remember(self, clock_s: float, at_once: bool = False) -> None:
        """Give every gateway what a successor of this actor will need: at once when a gateway came or went or the
        configuration changed, else at most once a second."""
        gateways = frozenset(self._office.gateways) | self._office.comeback.missing(clock_s)
        if not at_once and gateways == self._memory.gateways and clock_s - self._remembered_at_s < MEMORY_S:
            return
        counters = self._queue.counters_snapshot()
        memory = Memory(self._life, gateways, counters, self._configured, self._configured_at_s)
        self._remembered_at_s = clock_s
        old = self._memory
        changed = gateways != old.gateways or counters["classes"] != old.counters.get("classes")
        if changed or memory.configured_at_s != old.configured_at_s:
            self._memory = memory
            for gateway_id in self._office.gateways:
                self._office.gateways.post(gateway_id).memory = memory


def _restarted() -> bool:
    """Whether Ray has started this actor again after its death."""
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and context.was_current_actor_reconstructed
