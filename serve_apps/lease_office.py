"""Carries out what the queue decides: grants, refusals and recalls go to the gateways that they concern.

Concurrency: no method awaits, so each is atomic on the dispatcher's event loop.

Owns: the queue, prepaid leases, mailboxes and replicas of one model, and keeps them in step with each other.
Must not know: Ray, the state store, who calls when.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from cluster.config import DeploymentConfig
from cluster.metrics.queue import QueueMetrics
from cluster.scheduling import Lease, Refusal, Replica, RequestQueue, Ticket
from serve_apps.comeback import Comeback
from serve_apps.mailboxes import Mailboxes
from serve_apps.messages import Exchange, Grant, Hello, PrepaidGrant, ReplicaReport
from serve_apps.prepaid_desk import PrepaidDesk, Recalls
from serve_apps.replica_book import ReplicaBook

GATEWAY_SILENCE_S = 15.0
log = logging.getLogger(__name__)


class LeaseOffice:
    """The queue with everybody around it."""

    def __init__(
        self,
        queue: RequestQueue,
        deployments: Mapping[str, DeploymentConfig],
        metrics: QueueMetrics,
        comeback: Comeback,
    ) -> None:
        self.queue = queue
        self.deployments = deployments
        self.metrics = metrics
        self.comeback = comeback
        self.gateways = Mailboxes()
        self.replicas = ReplicaBook()
        self.prepaid = PrepaidDesk(queue)
        self.limited: frozenset[str] | None = None
        """Tenants with any limit: each of their requests is decided here. None until it is known."""

    # --- gateways -------------------------------------------------------------------------------------------------

    def welcome(self, message: Hello, foreign_memory: bool) -> None:
        """A gateway with all that it holds; `foreign_memory`: what it remembers was said by a predecessor."""
        gateway_id, now_s = message.gateway_id, time.time()
        self.gateways.open(gateway_id, time.monotonic())
        if foreign_memory and message.memory is not None:
            self.queue.recovery.restore_counters(message.memory.counters)
        others = message.memory.gateways if foreign_memory and message.memory is not None else ()
        self.comeback.hello(gateway_id, others)
        self.prepaid.reconcile(gateway_id, message.running, message.prepaid, now_s)
        unserved = self.queue.recovery.reconcile_owner(
            gateway_id, message.waiting, message.running, now_s, message.prepaid, message.produced
        )
        for ticket, refusal in unserved:
            self._refuse(ticket, refusal)
        self.grant()

    def take_news(self, message: Exchange) -> None:
        """Everything that a gateway has to say, and all that follows from it."""
        now_s = time.time()
        self._take_prepaid_news(message, now_s)
        for lease_id, output_tokens in message.progress.items():
            self.queue.progress(lease_id, output_tokens, now_s)
        for lease_id, usage in message.releases:
            self.queue.release(lease_id, usage, now_s)
        for replica_id in message.unreachable:
            self.hold_replica(replica_id)
        for ticket_id in message.cancels:
            self.queue.cancel(ticket_id, now_s)
        self._hand_out(now_s)
        for ticket in message.submits:
            refusal = self.queue.submit(ticket, now_s)
            if refusal is not None:
                self._refuse(ticket, refusal)
            else:
                # One by one: who can run at once must not count as waiting when the next one's bounds are checked.
                self._hand_out(now_s)
        self.grant()
        self.prepay(message.gateway_id)

    def drop_gateway(self, gateway_id: str) -> None:
        self.gateways.close(gateway_id)
        self.comeback.goodbye(gateway_id)
        self.prepaid.close(gateway_id)
        self.queue.release_owner(gateway_id, time.time())
        self.grant()

    # --- replicas -------------------------------------------------------------------------------------------------

    def put_replica(self, report: ReplicaReport) -> None:
        config = self.deployments.get(report.deployment)
        draining = config is None or not self.replicas.takes_leases(report.replica_id)
        if config is not None:
            serves, slots = tuple(config.serves), config.max_running
        elif (known := self.queue.replica(report.replica_id)) is not None:
            # Removed from the configuration: Serve is about to stop it, and what runs there is to end.
            serves, slots = known.serves, known.max_running
        else:
            return
        replica = Replica(report.replica_id, report.deployment, serves, slots, draining=draining)
        self.queue.put_replica(replica, time.time())
        if draining:
            self._recall(self.prepaid.recall_from(report.replica_id))
        self.grant()

    def hold_replica(self, replica_id: str) -> None:
        """A gateway could not connect: no lease there until its next report says that its engine lives."""
        if self.replicas.hold(replica_id):
            self.put_replica(self.replicas[replica_id])

    def drop_replica(self, replica_id: str) -> None:
        self.replicas.drop(replica_id)
        for lease in self.queue.remove_replica(replica_id, time.time()):
            self.gateways.post(lease.ticket.owner).lost.append(lease.lease_id)
        self._recall(self.prepaid.recall_from(replica_id))

    # --- decisions ------------------------------------------------------------------------------------------------

    def grant(self) -> None:
        """Everything that can be granted now; if somebody still waits, prepaid leases are called back for them."""
        self._hand_out(time.time())
        for ticket, refusal in self.queue.take_shed():
            self._refuse(ticket, refusal)
        self._recall(self.prepaid.recall_for_waiting())

    def prepay(self, gateway_id: str) -> None:
        """Give the gateway the prepaid leases that it lacks."""
        if not self.comeback.is_over(time.monotonic()):
            return
        for one in self.prepaid.refill(gateway_id, time.time()):
            report = self.replicas[one.replica_id]
            address = (report.deployment, report.base_url, report.api_key)
            grant = PrepaidGrant(one.lease_id, one.replica_id, one.serves, *address)
            self.gateways.post(gateway_id).prepaid.append(grant)

    def tick(self, clock_s: float) -> None:
        """What happens because time passes."""
        for replica_id in self.replicas.silent(clock_s):
            log.warning("replica %s has been silent for too long: gone", replica_id)
            self.drop_replica(replica_id)
        for gateway_id in self.gateways.silent(clock_s, GATEWAY_SILENCE_S):
            log.warning("gateway %s has been silent for too long: gone", gateway_id)
            self.drop_gateway(gateway_id)
        leases = self.queue.leases()
        used = {lease.replica_id for lease in leases} | self.prepaid.replica_ids()
        unseen = self.replicas.unseen(used, clock_s)
        for lease in (lease for lease in leases if lease.replica_id in unseen):
            # Told again each tick until the gateway has given it back.
            self.gateways.post(lease.ticket.owner).lost.append(lease.lease_id)
        # Also what a hello has brought back, and what was on its way when the replica began to drain.
        draining = {replica.replica_id for replica in self.queue.replicas() if replica.draining}
        self._recall(self.prepaid.recall_from(*unseen, *draining))
        for ticket, refusal in self.queue.expire(time.time()):
            self._refuse(ticket, refusal)
        self._recall(self.prepaid.recall_again())
        self.grant()
        self._recall(self.prepaid.retarget(time.time()))
        for gateway_id in self.gateways:
            self.prepay(gateway_id)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _hand_out(self, now_s: float) -> None:
        if not self.comeback.is_over(time.monotonic()):
            return
        for lease in self.queue.grant(now_s):
            tenant, owner = lease.ticket.tenant, lease.ticket.owner
            may_be_limited = self.limited is None or tenant in self.limited
            limits = self.queue.rate_limits(tenant, now_s) if may_be_limited else None
            report = self.replicas[lease.replica_id]
            grant = Grant(lease, report.deployment, report.base_url, report.api_key, limits)
            self.gateways.post(owner).grants.append(grant)
            self.metrics.granted(lease)
            self.prepaid.started(owner, [lease.ticket.request_class], now_s)

    def _take_prepaid_news(self, message: Exchange, now_s: float) -> None:
        owner = message.gateway_id
        for lease_id, ticket, granted_at_s in message.used:
            if self.prepaid.use(owner, lease_id, ticket, granted_at_s, now_s):
                self.metrics.granted(Lease(lease_id, ticket, "", granted_at_s))
            else:
                self.gateways.post(owner).lost.append(lease_id)
        if message.used:
            self.prepaid.started(owner, [ticket.request_class for _, ticket, _ in message.used], now_s)
        self.prepaid.give_back(owner, message.returned, now_s)

    def _recall(self, recalls: Recalls) -> None:
        for gateway_id, lease_ids in recalls.items():
            self.gateways.post(gateway_id).recall.extend(lease_ids)

    def _refuse(self, ticket: Ticket, refusal: Refusal) -> None:
        self.metrics.refused(ticket, refusal)
        self.gateways.post(ticket.owner).refusals.append(refusal)
