"""How long a request that comes now will wait for its first byte here, per model, class and tenant.

    expected = max(the tenant's recent wait in the queue, age of its oldest that still waits) + recent time from lease
               to first byte, of all tenants

Per tenant, because a fair queue makes the one wait that sends much, and a tenant's own limits only itself. "Recent" is
a mean that fades: after a quiet while both are 0. Waits of the past fade soon, as what waits now speaks for itself; how
long a prompt takes changes with the prompts.

Pure: the clock comes with each call. Owns: the means of one gateway process. Must not know: HTTP, other regions.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from cluster.vocabulary import RequestClass

QUEUE_MEMORY_S = 2.0
PREFILL_MEMORY_S = 10.0
MAX_TENANTS = 10_000
Kind = tuple[str, RequestClass]
"""Model and class."""


@dataclass(slots=True)
class _Mean:
    """Of the last few values; it fades towards 0 while none comes."""

    memory_s: float
    total: float = 0.0
    count: float = 0.0
    at_s: float = 0.0

    def add(self, value: float, now_s: float) -> None:
        kept = self._kept(now_s)
        self.total, self.count, self.at_s = self.total * kept + value, self.count * kept + 1.0, now_s

    def read(self, now_s: float) -> float:
        return self.total / self.count * self._kept(now_s) if self.count else 0.0

    def _kept(self, now_s: float) -> float:
        return math.exp(min(0.0, self.at_s - now_s) / self.memory_s)


class RegionLoad:
    """Kinds are as many as the configuration has; of tenants the latest are kept."""

    def __init__(self) -> None:
        self._waits: OrderedDict[tuple[Kind, str | None], _Mean] = OrderedDict()
        self._prefills: dict[Kind, _Mean] = {}

    def began(self, kind: Kind, tenant: str, queue_s: float, first_byte_s: float | None, now_s: float) -> None:
        """An answer began after `first_byte_s`, of which it waited `queue_s`. None: a whole answer, which has no
        first byte before its end."""
        for who in (tenant, None):
            self._waits.setdefault((kind, who), _Mean(QUEUE_MEMORY_S)).add(queue_s, now_s)
            self._waits.move_to_end((kind, who))
        while len(self._waits) > MAX_TENANTS:
            self._waits.popitem(last=False)
        if first_byte_s is not None:
            prefill_s = max(0.0, first_byte_s - queue_s)
            self._prefills.setdefault(kind, _Mean(PREFILL_MEMORY_S)).add(prefill_s, now_s)

    def expected_s(self, kind: Kind, tenant: str | None, oldest_wait_s: float, now_s: float) -> float:
        """`tenant` None: any of whom nothing is known, who is taken for an average one."""
        wait, prefill = self._waits.get((kind, tenant)), self._prefills.get(kind)
        wait_s = max(oldest_wait_s, wait.read(now_s) if wait is not None else 0.0)
        return wait_s + (prefill.read(now_s) if prefill is not None else 0.0)
