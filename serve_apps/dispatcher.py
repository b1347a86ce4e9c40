"""The dispatcher: one async Ray actor per model that owns the shared request queue.

Concurrency: every method body runs without awaiting between reading and writing the queue, on the actor's one event
loop, so no lock is needed. Gateways call `exchange` and hold one `next_answers` long poll each; replicas `report` once
a second; a tick every 200 ms expires tickets and notices who stopped calling. The wall clock is used because tickets
carry arrival times from other machines.

It is a detached named actor that Ray restarts (not a Serve deployment actor: those are versioned with one deployment's
code, and a rolling update would split the queue in two). After a restart gateways bring back what waits and runs
(`hello`), replicas report again, and tenants come from the store: it keeps no state of its own on disk.
With no gateway and no replica for a while it ends itself.

Owns: the RequestQueue of its model and who is alive. Must not know: HTTP, engines, prompts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

import ray
from sqlalchemy.exc import SQLAlchemyError

from cluster.config import DeploymentConfig, TribesConfig
from cluster.metrics.queue import QueueMetrics
from cluster.scheduling import (
    BacklogScaler,
    ClassPolicy,
    Lease,
    Replica,
    RequestQueue,
    ScalingBounds,
    ScalingDecision,
    ServiceWeights,
    TenantLimits,
    TenantPolicy,
    Ticket,
)
from cluster.state import Store
from cluster.vocabulary import RequestClass
from serve_apps.mailboxes import Mailboxes
from serve_apps.messages import Answers, Exchange, Grant, ReplicaOrder, ReplicaReport
from serve_apps.replica_book import ReplicaBook

TICK_S = 0.2
TENANT_REFRESH_S = 2.0
GATEWAY_SILENCE_S = 15.0
LATE_S = 1.0
LONELY_EXIT_S = 120.0
log = logging.getLogger(__name__)


class Dispatcher:
    """Grants leases on the replicas of one model to the gateways that ask."""

    def __init__(self, config: dict[str, Any], model: str) -> None:
        self._model = model
        self._config = TribesConfig.model_validate(config)
        self._store = Store(self._config.state.url)
        self._queue = RequestQueue(
            _class_policies(self._config, model),
            ServiceWeights(self._config.scheduling.input_weight, self._config.scheduling.output_weight),
            lease_prefix=f"{uuid.uuid4().hex[:8]}-",
        )
        self._metrics = QueueMetrics(model)
        self._gateways = Mailboxes()
        self._replicas = ReplicaBook()
        self._scalers: dict[str, BacklogScaler] = {}
        self._decisions: dict[str, ScalingDecision] = {}
        self._company_at_s = self._ticked_at_s = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        try:
            self._take_tenants(self._store.tenants())
        except SQLAlchemyError as error:
            log.warning("cannot read the tenants (%s); their limits hold once the store answers", error)

    # --- gateways -------------------------------------------------------------------------------------------------

    async def hello(self, gateway_id: str, waiting: list[Ticket], running: list[Lease]) -> Answers:
        """A gateway introduces itself and brings what it still holds (after this actor was restarted, or at first)."""
        self._start_ticking()
        self._gateways.open(gateway_id, time.monotonic())
        self._queue.reconcile_owner(gateway_id, waiting, running, time.time())
        self._grant()
        return self._gateways.take(gateway_id)

    async def exchange(self, message: Exchange) -> Answers:
        """Take a gateway's news and give it what there is for it; everything that can be decided now is."""
        if message.gateway_id not in self._gateways:
            return Answers(resync=True)
        self._gateways.heard(message.gateway_id, time.monotonic())
        now_s = time.time()
        for lease_id, output_tokens in message.progress.items():
            self._queue.progress(lease_id, output_tokens, now_s)
        for lease_id, usage in message.releases:
            self._queue.release(lease_id, usage, now_s)
        for replica_id in message.unreachable:
            self._hold_replica(replica_id)
        for ticket in message.submits:
            refusal = self._queue.submit(ticket, now_s)
            if refusal is not None:
                self._metrics.refused(ticket, refusal)
                self._gateways.post(message.gateway_id).refusals.append(refusal)
        for ticket_id in message.cancels:
            self._queue.cancel(ticket_id, now_s)
        self._grant()
        return self._gateways.take(message.gateway_id)

    async def next_answers(self, gateway_id: str, timeout_s: float) -> Answers:
        """Long poll: returns as soon as there is something for the gateway, or empty after `timeout_s`."""
        if gateway_id not in self._gateways:
            return Answers(resync=True)
        self._gateways.heard(gateway_id, time.monotonic())
        return await self._gateways.wait(gateway_id, timeout_s)

    async def goodbye(self, gateway_id: str) -> None:
        """A gateway leaves in order."""
        self._drop_gateway(gateway_id)

    # --- replicas -------------------------------------------------------------------------------------------------

    async def report(self, report: ReplicaReport) -> ReplicaOrder:
        """A replica says how it is; a ready one takes leases from now on."""
        self._start_ticking()
        changed, became_ready = self._replicas.note(report, time.monotonic())
        if changed:
            self._put_replica(report)
        if became_ready:
            self._metrics.cold_start(report)
        return ReplicaOrder(running=self._running_on(report.replica_id))

    async def replica_gone(self, replica_id: str) -> None:
        """A replica (or its engine) ended: its leases are told to their gateways, its waiting work goes elsewhere."""
        self._drop_replica(replica_id)

    # --- scaling and status ---------------------------------------------------------------------------------------

    async def desired_replicas(self, deployment: str, current: int) -> int:
        """What Ray Serve's autoscaler should aim at for a deployment that now has `current` replicas."""
        self._start_ticking()
        config = self._config.deployments[deployment]
        scaler = self._scalers.setdefault(deployment, BacklogScaler(_bounds(config)))
        now_s = time.time()
        decision = scaler.decide(self._queue.demand(deployment, config.own_class, now_s), current, now_s)
        if decision.replicas != current:
            log.info("%s: %d -> %d replicas: %s", deployment, current, decision.replicas, decision.reason)
        self._decisions[deployment] = decision
        return decision.replicas

    async def status(self) -> dict[str, Any]:
        """Everything `tribes status` shows about this model, as plain data."""
        now_s = time.time()
        running = self._queue.running_by_tenant()
        return {
            "model": self._model,
            "pid": os.getpid(),
            "gateways": len(self._gateways),
            "classes": {
                c.value: {
                    "waiting": self._queue.waiting(c),
                    "waiting_by_tenant": waiting,
                    "running_by_tenant": running.get(c, {}),
                    "service_by_tenant": self._queue.counters()[c],
                }
                for c, waiting in self._queue.waiting_by_tenant().items()
            },
            "replicas": [
                {
                    "replica_id": report.replica_id,
                    "deployment": report.deployment,
                    "state": report.state,
                    "pid": report.pid,
                    "running": self._running_on(report.replica_id),
                    "age_s": now_s - report.started_at_s,
                    "cold_start_s": report.cold_start_s,
                    "kv_usage": report.kv_usage,
                }
                for report in self._replicas.reports()
            ],
            "scaling": {
                name: {"replicas": decision.replicas, "reason": decision.reason}
                for name, decision in self._decisions.items()
            },
        }

    async def configure(self, config: dict[str, Any]) -> None:
        """Take over a new configuration's deployments and store; queue bounds change with the next start."""
        self._config = TribesConfig.model_validate(config)
        self._scalers = {}
        await self._refresh_tenants()
        for report in self._replicas.reports():
            if report.state != "starting":
                self._put_replica(report)
        self._grant()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _grant(self) -> None:
        for lease in self._queue.grant(time.time()):
            report = self._replicas[lease.replica_id]
            grant = Grant(lease, report.deployment, report.base_url, report.api_key)
            self._gateways.post(lease.ticket.owner).grants.append(grant)
            self._metrics.granted(lease)

    def _put_replica(self, report: ReplicaReport) -> None:
        config = self._config.deployments.get(report.deployment)
        if config is None:
            return  # removed from the configuration; Serve is about to stop it
        draining = not self._replicas.takes_leases(report.replica_id)
        replica = Replica(
            report.replica_id, report.deployment, tuple(config.serves), config.max_running, draining=draining
        )
        self._queue.put_replica(replica, time.time())
        self._grant()

    def _hold_replica(self, replica_id: str) -> None:
        """A gateway could not connect: no lease there until its next report says that its engine lives."""
        if self._replicas.hold(replica_id):
            self._put_replica(self._replicas[replica_id])

    def _running_on(self, replica_id: str) -> int:
        return next((r.running for r in self._queue.replicas() if r.replica_id == replica_id), 0)

    def _drop_replica(self, replica_id: str) -> None:
        self._replicas.drop(replica_id)
        for lease in self._queue.remove_replica(replica_id, time.time()):
            self._gateways.post(lease.ticket.owner).lost.append(lease.lease_id)

    def _drop_gateway(self, gateway_id: str) -> None:
        self._gateways.close(gateway_id)
        self._queue.release_owner(gateway_id, time.time())
        self._grant()

    def _start_ticking(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(loop) for loop in (self._tick_forever(), self._tenants_forever())]

    async def _tick_forever(self) -> None:
        """Runs for the actor's life; a tick that fails is logged and tried again."""
        while True:
            try:
                self._tick()
            except Exception:
                log.exception("dispatcher tick failed; trying again")
            await asyncio.sleep(TICK_S)

    async def _tenants_forever(self) -> None:
        """Apart from the tick: a store that is slow or away must not keep tickets from expiring."""
        while True:
            try:
                await self._refresh_tenants()
            except Exception as error:
                log.warning("cannot read the tenants (%s); trying again", error)
            await asyncio.sleep(TENANT_REFRESH_S)

    def _tick(self) -> None:
        clock_s = time.monotonic()
        late_s = clock_s - self._ticked_at_s - TICK_S
        self._ticked_at_s = clock_s
        if late_s > LATE_S:
            # This process did not run for a while: what the others sent meanwhile is still to be read.
            self._gateways.excuse(late_s)
            self._replicas.excuse(late_s)
            self._company_at_s += late_s
        for replica_id in self._replicas.silent(clock_s):
            log.warning("replica %s has been silent for too long: gone", replica_id)
            self._drop_replica(replica_id)
        for gateway_id in self._gateways.silent(clock_s, GATEWAY_SILENCE_S):
            log.warning("gateway %s has been silent for too long: gone", gateway_id)
            self._drop_gateway(gateway_id)
        leases = self._queue.leases()
        unseen = self._replicas.unseen({lease.replica_id for lease in leases}, clock_s)
        for lease in (lease for lease in leases if lease.replica_id in unseen):
            # Told again each tick until the gateway has given it back.
            self._gateways.post(lease.ticket.owner).lost.append(lease.lease_id)
        for ticket, refusal in self._queue.expire(time.time()):
            self._metrics.refused(ticket, refusal)
            self._gateways.post(ticket.owner).refusals.append(refusal)
        self._grant()
        self._metrics.levels(self._queue, self._replicas.reports())
        self._exit_when_lonely(clock_s)

    def _exit_when_lonely(self, clock_s: float) -> None:
        if len(self._gateways) or len(self._replicas):
            self._company_at_s = clock_s
        elif clock_s - self._company_at_s > LONELY_EXIT_S:
            log.info("no gateway and no replica for %.0f s: ending", LONELY_EXIT_S)
            ray.actor.exit_actor()

    async def _refresh_tenants(self) -> None:
        self._take_tenants(await asyncio.to_thread(self._store.tenants))
        self._grant()

    def _take_tenants(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        now_s = time.time()
        for name, policy in stored.items():
            limits = TenantLimits(**policy.get("limits", {}))
            self._queue.set_tenant(name, TenantPolicy(policy.get("weight", 1.0), limits), now_s)


def _bounds(config: DeploymentConfig) -> ScalingBounds:
    return ScalingBounds(
        min_replicas=config.replicas.min,
        max_replicas=config.replicas.max,
        slots_per_replica=config.max_running,
        wait_target_s=config.replicas.wait_target_s,
        idle_timeout_s=config.replicas.idle_timeout_s,
    )


def _class_policies(config: TribesConfig, model: str) -> dict[RequestClass, ClassPolicy]:
    """Policies of the classes that some served deployment of the model takes; the others are refused at once."""
    served = {c for d in config.serving().values() if d.model == model for c in d.serves}
    return {c: ClassPolicy(**p.model_dump()) for c, p in config.scheduling.classes.items() if c in served}
