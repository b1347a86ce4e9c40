"""Locality-aware mode: the fairness bound holds, cached prefixes pay."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import ClassPolicy, QueuePolicy, Replica, RequestQueue, Ticket, TokenUsage
from cluster.scheduling.locality import MOST_PASSES
from cluster.vocabulary import RequestClass

ONLINE = RequestClass.ONLINE
BLOCK_TOKENS = 16


class CachingEngines:
    """Replicas with a small prefix cache each; a request takes a step per output token, cached input is free."""

    def __init__(self, fairness: str, quantum: float, replicas: int, slots: int, cache_blocks: int) -> None:
        policy = QueuePolicy(fairness=fairness, locality_quantum_tokens=quantum)  # type: ignore[arg-type]
        self.queue = RequestQueue({ONLINE: ClassPolicy(10**6, 10**9)}, policy=policy)
        self.caches: dict[str, OrderedDict[int, None]] = {}
        for n in range(replicas):
            self.queue.put_replica(Replica(f"r{n}", "d", (ONLINE,), slots), 0.0)
            self.caches[f"r{n}"] = OrderedDict()
        self.cache_blocks = cache_blocks
        self.now_s = 0.0
        self.running: dict[str, tuple[int, TokenUsage]] = {}
        self.waiting: dict[str, int] = defaultdict(int)
        self.service: dict[str, float] = defaultdict(float)
        self.cached = self.prompts = 0
        self.number = 0

    def submit(self, tenant: str, prefix: tuple[int, ...], output: int) -> None:
        self.number += 1
        tokens = len(prefix) * BLOCK_TOKENS + 8
        self.waiting[tenant] += 1
        one = Ticket(f"t{self.number}", "g", tenant, ONLINE, tokens, output, self.now_s, prefix=prefix)
        assert self.queue.submit(one, self.now_s) is None

    def step(self) -> None:
        self.now_s += 1.0
        for lease in self.queue.grant(self.now_s):
            one = lease.ticket
            self.waiting[one.tenant] -= 1
            cached = self._use_cache(lease.replica_id, one.prefix) * BLOCK_TOKENS
            usage = TokenUsage(one.prompt_tokens, cached, one.max_output_tokens)
            self.cached += cached
            self.prompts += one.prompt_tokens
            self.service[one.tenant] += usage.uncached_tokens + 2 * usage.output_tokens
            self.running[lease.lease_id] = (one.max_output_tokens, usage)
        for lease_id, (left, usage) in list(self.running.items()):
            if left == 1:
                del self.running[lease_id]
                self.queue.release(lease_id, usage, self.now_s)
            else:
                self.running[lease_id] = (left - 1, usage)

    def _use_cache(self, replica_id: str, prefix: tuple[int, ...]) -> int:
        cache, hits = self.caches[replica_id], 0
        while hits < len(prefix) and prefix[hits] in cache:
            hits += 1
        for block in reversed(prefix):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > self.cache_blocks:
            cache.popitem(last=False)
        return hits


def documents(tenant: int, rng: random.Random, per_tenant: int = 4, blocks: int = 12) -> tuple[int, ...]:
    """A question about one of the tenant's few documents: most of the prompt is shared with the others about it."""
    document = 1000 * (tenant + 1) + 50 * rng.randrange(per_tenant)
    return (*range(document, document + blocks), rng.getrandbits(60))


def run(fairness: str, quantum: float = 2000.0, replicas: int = 2, steps: int = 1500) -> CachingEngines:
    rng = random.Random(1)
    engines = CachingEngines(fairness, quantum, replicas, slots=2, cache_blocks=40)
    for _ in range(steps):
        for tenant in range(6):
            while engines.waiting[f"tenant{tenant}"] < 12:
                engines.submit(f"tenant{tenant}", documents(tenant, rng), rng.randint(2, 12))
        engines.step()
    return engines


def test_cached_prefixes_are_hit_more_often_than_without() -> None:
    """Replicas that hold 3 documents each, 24 documents asked about: a large gain in hits and in requests served."""
    plain, local = run("vtc"), run("dlpm")
    assert local.cached / local.prompts > plain.cached / plain.prompts + 0.2
    assert max(local.service.values()) - min(local.service.values()) <= 2 * (2000.0 + 4 * (13 * 16 + 8 + 24))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), quantum=st.sampled_from([50.0, 500.0, 5000.0]), replicas=st.integers(1, 3))
def test_two_backlogged_tenants_stay_within_the_dlpm_bound(seed: int, quantum: float, replicas: int) -> None:
    """|W_a - W_b| <= 2 (U + Q); U: what a full set of slots may be charged in one round."""
    rng = random.Random(seed)
    engines = CachingEngines("dlpm", quantum, replicas, slots=3, cache_blocks=60)
    sizes = {"a": rng.randint(2, 40), "b": rng.randint(2, 40)}
    largest = 13 * BLOCK_TOKENS + 8 + 2 * max(*sizes.values(), 64)
    bound = 2 * (3 * replicas * largest + quantum)
    for _ in range(250):
        for number, tenant in enumerate(sizes):
            while engines.waiting[tenant] <= 3 * replicas:
                engines.submit(tenant, documents(number, rng, per_tenant=2), rng.randint(1, sizes[tenant]))
        engines.step()
        assert abs(engines.service["a"] - engines.service["b"]) <= bound


def test_a_prompt_goes_to_the_replica_that_has_most_of_it() -> None:
    queue = RequestQueue({ONLINE: ClassPolicy(10, 10)}, policy=QueuePolicy(fairness="dlpm"))
    for name in ("r1", "r2", "r3"):
        queue.put_replica(Replica(name, "d", (ONLINE,), 3), 0.0)
    homes = {}
    for number, prefix in enumerate([(1, 2, 3), (1, 2, 9), (7, 8)]):
        queue.submit(Ticket(f"t{number}", "g", "a", ONLINE, 3 * 64, 10, 0.0, prefix=prefix), 0.0)
        (lease,) = queue.grant(0.0)
        homes[prefix] = lease.replica_id
    assert homes[1, 2, 9] == homes[1, 2, 3], "shares two blocks, though the others are less loaded"
    assert homes[7, 8] != homes[1, 2, 3]
    assert queue.remove_replica(homes[1, 2, 3], 0.0)
    queue.submit(Ticket("t9", "g", "a", ONLINE, 10, 10, 0.0, prefix=(1, 2, 3)), 0.0)
    (lease,) = queue.grant(0.0)
    assert lease.replica_id != homes[1, 2, 3]


def test_a_large_quantum_serves_the_cached_prefix_first_and_a_small_one_the_tenant_that_is_due() -> None:
    for quantum, first in ((10_000.0, "cached"), (1.0, "due")):
        queue = RequestQueue(
            {ONLINE: ClassPolicy(10, 10)},
            policy=QueuePolicy(fairness="dlpm", locality_quantum_tokens=quantum),
        )
        queue.put_replica(Replica("r", "d", (ONLINE,), 1), 0.0)
        for number, (tenant, prefix) in enumerate([("cached", (1, 2)), ("due", (5, 6)), ("cached", (1, 2, 3))]):
            queue.submit(Ticket(f"t{number}", "g", tenant, ONLINE, 100, 10, float(number), prefix=prefix), 5.0)
        (lease,) = queue.grant(5.0)
        assert lease.ticket.ticket_id == "t0"
        queue.release(lease.lease_id, TokenUsage(100, 0, 10), 6.0)
        assert queue.grant(6.0)[0].ticket.tenant == first


def test_hot_prefixes_do_not_starve_a_cold_prompt_of_the_same_flow() -> None:
    queue = RequestQueue({ONLINE: ClassPolicy(1000, 1000)}, policy=QueuePolicy(fairness="dlpm"))
    queue.put_replica(Replica("r", "d", (ONLINE,), 1), 0.0)
    served: list[str] = []
    for number in range(100):
        prefix = (7, 8) if number == 1 else (1, 2, number + 100)
        queue.submit(Ticket(f"t{number}", "g", "a", ONLINE, 10, 10, float(number), prefix=prefix), 0.0)
    for _ in range(50):
        (lease,) = queue.grant(0.0)
        served.append(lease.ticket.ticket_id)
        queue.release(lease.lease_id, TokenUsage(10, 0, 10), 0.0)
    assert served.index("t1") == MOST_PASSES + 1
