"""Choice of a replica for the next request: where its prompt is cached, unless waiting there costs more than it saves.

    cost(w) = (work(w) + miss_weight * uncached(w) + running_tokens * running(w)) / measured prefill rate    in seconds

`work` is what w has still to prefill (see `backlog`), `uncached` what it would have to of this prompt. In order:

1. *Home*, the replica that served the session last, while `cost(home) <= cost(any other) + stay_s`: while what is ahead
   of it there costs no more than the cache saves, and a little. In tokens the slack is `tau = rate * stay_s`.
2. *Prefix*: of the replicas with the longest known beginning of the prompt the cheapest, if it costs less than where
   there is least to do. With less than half of the prompt in its cache it must also be within the bound of 3, and
   `HEADROOM`: what begins alike must not gather on one replica for the sake of a system prompt.
3. *Unseen* session: its owner on a hash ring with bounded loads (see `hash_ring`), if that costs at most a fifth of
   `stay_s` more: so a restarted dispatcher and every gateway choose alike, and replicas that come or go move few
   sessions.
4. The one with the least work of those with the fewest requests.

A replica whose own class is the ticket's comes before one that merely lends its idle slots. Nothing waits for a full
replica while another one has a slot. Tickets without session and prefix go to the least loaded, at once.

Owns: the bounded map session -> replica, the prefix index, the ring. Must not know: queues, tenants, engines.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from cluster.scheduling.backlog import PrefillBacklog
from cluster.scheduling.hash_ring import HashRing, capacity, session_key
from cluster.scheduling.prefix_index import BLOCK_TOKENS, BLOCKS_USED, PrefixIndex
from cluster.scheduling.replica_pools import ReplicaPool, ReplicaPools, Seat
from cluster.scheduling.types import RoutingPolicy, Ticket

SEATS_LOOKED_AT = 8
"""Of each pool those with the fewest requests, to find one with little work."""
RING_SHARE = 0.2
"""Part of `stay_s` that an unseen session may pay for its place on the ring: nothing of it is known to be there."""
RING_STEPS = 16
"""Members of the ring that are looked at for an unseen session."""
HEADROOM = 4
"""Few requests need no balance."""
REST_CACHED = 0.9
"""Part of what follows the last block that is hashed, if all are there and nobody knows the session: in a conversation
only what is new is not."""
GROWTH_CACHED = 0.5
"""Part of what a session's prompt has grown by that its last replica has: the answer, but not the new question."""


class _Bounds:
    """How many requests a replica may run and still be given a session that is not its own: see `hash_ring`."""

    __slots__ = ("_factor", "_load", "_slots")

    def __init__(self, factor: float, tier: list[ReplicaPool]) -> None:
        self._factor = factor
        self._slots = sum(pool.all_slots for pool in tier)
        self._load = self._slots - sum(pool.free_slots for pool in tier)

    def allow(self, seat: Seat, headroom: int = 0) -> bool:
        most = capacity(self._factor, self._load, seat.pool.slots, self._slots)
        return seat.replica.running < most + headroom


class SessionPlacement:
    """Sticky placement, with bounded memory of sessions and prefixes."""

    def __init__(self, pools: ReplicaPools, policy: RoutingPolicy | None = None, max_sessions: int = 65_536) -> None:
        self._pools = pools
        self.policy = policy or RoutingPolicy()
        self._max_sessions = max_sessions
        self._homes: OrderedDict[tuple[str, str], tuple[str, int]] = OrderedDict()
        """Replica and prompt tokens of the session's latest request."""
        self._ring = HashRing()
        self.prefixes = PrefixIndex()
        self.backlog = PrefillBacklog()

    # --- choosing -------------------------------------------------------------------------------------------------

    def choose(self, ticket: Ticket, index: int, now_s: float) -> Seat | None:
        """A replica with a free slot for a ticket of the class with that index; None when there is none, or for a retry
        none but those that failed it, while others serve the class."""
        seat = self._pools.least_loaded(index)
        if seat is None:
            return None
        if ticket.session is not None or ticket.prefix:
            own, lent = self._pools.tiers(index)
            tier = own if seat.pool in own else lent
            if len(tier) > 1 or len(tier[0].seats) > 1:
                best = self._best(ticket, tier, now_s)
                if best is not None:
                    return best
        return seat if seat.replica_id not in ticket.avoid else self._least_loaded_but(ticket.avoid, index)

    def _best(self, ticket: Ticket, tier: list[ReplicaPool], now_s: float) -> Seat | None:
        """Of the free replicas in `tier`, of which there is one at least; None if those with the least to do have all
        failed the ticket."""
        cold = self._coldest(ticket, tier, now_s)
        if cold is None:
            return None
        best, best_s = cold, self._cost_s(ticket, cold, now_s)
        home_id = self.home_of(ticket)
        bounds = _Bounds(self.policy.load_factor, tier)
        for replica_id in self.prefixes.holders(ticket.prefix):
            seat = self._free_in(ticket, tier, replica_id)
            if seat is None or replica_id == home_id:
                continue
            mostly_there = 2 * self.cached_tokens(ticket, replica_id) > ticket.prompt_tokens
            if mostly_there or bounds.allow(seat, HEADROOM):
                cost_s = self._cost_s(ticket, seat, now_s)
                if cost_s < best_s:
                    best, best_s = seat, cost_s
        stay_s = self.policy.stay_s
        if home_id is not None:
            home = self._free_in(ticket, tier, home_id)
            return home if home is not None and self._cost_s(ticket, home, now_s) <= best_s + stay_s else best
        if best is cold and ticket.session is not None:
            return self._from_ring(ticket, tier, bounds, best_s + RING_SHARE * stay_s, now_s) or cold
        return best

    def _free_in(self, ticket: Ticket, tier: list[ReplicaPool], replica_id: str) -> Seat | None:
        seat = self._pools.get(replica_id)
        if seat is None or not seat.replica.free or replica_id in ticket.avoid:
            return None
        return seat if seat.pool in tier else None

    def _coldest(self, ticket: Ticket, tier: list[ReplicaPool], now_s: float) -> Seat | None:
        """The replica with the least work."""
        delay_s, running_tokens = self.backlog.delay_s, self.policy.running_tokens
        coldest, least_s = None, math.inf
        for pool in tier:
            for seat in pool.free(SEATS_LOOKED_AT):
                cost_s = delay_s(seat, running_tokens * seat.replica.running, now_s)
                # The first of equals is the one that has been so little loaded for longest.
                if cost_s < least_s and seat.replica_id not in ticket.avoid:
                    coldest, least_s = seat, cost_s
        return coldest

    def _from_ring(
        self, ticket: Ticket, tier: list[ReplicaPool], bounds: _Bounds, limit_s: float, now_s: float
    ) -> Seat | None:
        """The unseen session's place, if there is one that is below its capacity and costs no more than the limit."""
        assert ticket.session is not None
        for step, replica_id in enumerate(self._ring.walk(session_key(ticket.tenant, ticket.session))):
            if step == RING_STEPS:
                break
            seat = self._free_in(ticket, tier, replica_id)
            if seat is not None and bounds.allow(seat) and self._cost_s(ticket, seat, now_s) <= limit_s:
                return seat
        return None

    def _cost_s(self, ticket: Ticket, seat: Seat, now_s: float) -> float:
        uncached = ticket.prompt_tokens - self.cached_tokens(ticket, seat.replica_id)
        # What runs there costs too: each step of the engine is shared with it.
        burden = self.policy.running_tokens * seat.replica.running
        return self.backlog.delay_s(seat, self.policy.miss_weight * uncached + burden, now_s)

    def _least_loaded_but(self, avoid: tuple[str, ...], index: int) -> Seat | None:
        """The least loaded of the others, own ones first. While these are full it is None: one that fails is always
        free, and only waiting for the others keeps a retry from it."""
        tiers = self._pools.tiers(index)
        for tier in tiers:
            free = [seat for pool in tier for seat in pool.free(len(avoid) + 1) if seat.replica_id not in avoid]
            if free:
                return min(free, key=lambda seat: seat.replica.load)
        pools = [pool for tier in tiers for pool in tier]
        failed = [seat for i in set(avoid) if (seat := self._pools.get(i)) is not None and seat.pool in pools]
        others = sum(pool.replicas for pool in pools) - sum(not seat.replica.draining for seat in failed)
        return self._pools.least_loaded(index) if not others else None

    # --- what is cached where -------------------------------------------------------------------------------------

    def home_of(self, ticket: Ticket) -> str | None:
        """The replica that served the session's latest request."""
        if ticket.session is None:
            return None
        home = self._homes.get((ticket.tenant, ticket.session))
        return home[0] if home is not None else None

    def home_is_full(self, ticket: Ticket) -> bool:
        """The session has a replica, and that takes no more for now."""
        home = self.home_of(ticket)
        seat = self._pools.get(home) if home is not None else None
        return seat is not None and not seat.replica.free and not seat.replica.draining

    def cached_tokens(self, ticket: Ticket, replica_id: str) -> int:
        """Tokens of the ticket's prompt that the replica has probably cached."""
        prompt = ticket.prompt_tokens
        if ticket.prefix:
            blocks = self.prefixes.matched(replica_id, ticket.prefix)
            if blocks < BLOCKS_USED:
                return min(prompt, blocks * BLOCK_TOKENS)
        # Without blocks, or beyond those that are hashed, the session's last prompt is all there is to go by.
        known = 0
        if ticket.session is not None:
            home = self._homes.get((ticket.tenant, ticket.session))
            if home is not None and home[0] == replica_id:
                known = min(prompt, home[1]) + int(GROWTH_CACHED * max(0, prompt - home[1]))
        hashed = min(prompt, min(len(ticket.prefix), BLOCKS_USED) * BLOCK_TOKENS)
        if hashed and self.home_of(ticket) is None:
            hashed += int(REST_CACHED * (prompt - hashed))
        return max(known, hashed)

    def placed(self, ticket: Ticket, seat: Seat, now_s: float) -> float:
        """The ticket runs there from now on; returns the tokens that are prefilled before its own."""
        uncached = ticket.prompt_tokens - self.cached_tokens(ticket, seat.replica_id)
        self.remember(ticket, seat.replica_id)
        return self.backlog.give(seat, uncached, now_s)

    def prefill_s(self, replica_id: str, now_s: float) -> float:
        """Seconds of prefill that lie ahead on the replica."""
        seat = self._pools.get(replica_id)
        if seat is None:
            return 0.0
        return self.backlog.ahead(seat, now_s) / self.backlog.rate(seat.replica.deployment).per_s

    def first_token_seen(self, replica_id: str, tokens: float, seconds: float) -> None:
        """The replica has prefilled `tokens` in `seconds`, if it is still there."""
        seat = self._pools.get(replica_id)
        if seat is not None:
            self.backlog.rate(seat.replica.deployment).observe(tokens, seconds)

    def remember(self, ticket: Ticket, replica_id: str) -> None:
        """The ticket's session and prompt are cached there from now on."""
        # A replica that never comes would never be forgotten either: leases are brought back before replicas report.
        if ticket.prefix and self._pools.get(replica_id) is not None:
            self.prefixes.add(replica_id, ticket.prefix)
        if ticket.session is None:
            return
        session = (ticket.tenant, ticket.session)
        self._homes[session] = (replica_id, ticket.prompt_tokens)
        self._homes.move_to_end(session)
        if len(self._homes) > self._max_sessions:
            self._homes.popitem(last=False)

    def put_replica(self, replica_id: str) -> None:
        """A replica may be chosen from now on; a known one is left alone."""
        self._ring.add(replica_id)

    def forget_replica(self, replica_id: str) -> None:
        self._ring.remove(replica_id)
        self.prefixes.forget_replica(replica_id)
        self.backlog.forget_replica(replica_id)
        for session in [s for s, home in self._homes.items() if home[0] == replica_id]:
            del self._homes[session]
