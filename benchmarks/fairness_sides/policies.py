"""The policies that ours is compared with, each as small as its definition. See `engine_model.Policy`.

Owns: FIFO, round robin, a rate limit per tenant, and the family of token counters (VTC, OSDI'24, arXiv 2401.00588):
VTC, VTC with a predictor or an oracle, and least counter first. Written apart from `cluster.scheduling`, so that a
mistake there cannot hide here. Must not know: engines, metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from benchmarks.fairness_sides.engine_model import Policy, Running
from benchmarks.fairness_sides.workload import WEIGHTS, Request

RATE_WINDOW_S = 60.0
LAST_OUTPUTS = 5


class Fifo:
    """First come, first served, whoever it is."""

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()

    def arrive(self, request: Request, now_s: float) -> bool:
        self._waiting.append(request)
        return True

    def head(self, now_s: float) -> Request | None:
        return self._waiting[0] if self._waiting else None

    def admit(self, request: Request, now_s: float) -> None:
        self._waiting.popleft()

    def produced(self, running: Sequence[Running], now_s: float) -> None:
        pass

    def finish(self, request: Request, now_s: float) -> None:
        pass


class RoundRobin(Fifo):
    """One request of each waiting tenant in turn, whatever it costs."""

    def __init__(self) -> None:
        super().__init__()
        self._queues: dict[str, deque[Request]] = {}
        """Insertion order is the turn; a tenant that was served goes to the end."""

    def arrive(self, request: Request, now_s: float) -> bool:
        self._queues.setdefault(request.tenant, deque()).append(request)
        return True

    def head(self, now_s: float) -> Request | None:
        return next(iter(self._queues.values()))[0] if self._queues else None

    def admit(self, request: Request, now_s: float) -> None:
        queue = self._queues.pop(request.tenant)
        queue.popleft()
        if queue:
            self._queues[request.tenant] = queue


class RateLimit(Fifo):
    """FIFO that refuses a tenant's request when `per_minute` of its requests were let in within the last minute."""

    def __init__(self, per_minute: int) -> None:
        super().__init__()
        self._per_minute = per_minute
        self._let_in: dict[str, deque[float]] = {}

    def arrive(self, request: Request, now_s: float) -> bool:
        times = self._let_in.setdefault(request.tenant, deque())
        while times and times[0] <= request.arrived_at_s - RATE_WINDOW_S:
            times.popleft()
        if len(times) >= self._per_minute:
            return False
        times.append(request.arrived_at_s)
        return super().arrive(request, now_s)


class LastOutputs:
    """Guesses an output as the mean of the tenant's last five, as the VTC artifact does; 0 for a stranger."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[int]] = {}

    def guess(self, request: Request) -> float:
        seen = self._seen.get(request.tenant)
        return sum(seen) / len(seen) if seen else 0.0

    def observe(self, request: Request) -> None:
        self._seen.setdefault(request.tenant, deque(maxlen=LAST_OUTPUTS)).append(request.output_tokens)


class Oracle:
    """Knows every output."""

    def guess(self, request: Request) -> float:
        return float(request.output_tokens)

    def observe(self, request: Request) -> None:
        pass


class TokenCounters:
    """The waiting tenant with the least service goes next.

    Without `predictor` input is charged at admission and output as it is produced; with one the predicted output is
    charged at admission too, what goes beyond it as it is produced, and what falls short is given back at the end.
    `lift`: a tenant that comes back from idling is put level with the least of those that wait (or with the last to
    leave), so that idle time earns no credit. Least counter first (LCF) is the same without it.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        *,
        predictor: LastOutputs | Oracle | None = None,
        lift: bool = True,
    ) -> None:
        self._weights = weights or {}
        self._predictor = predictor
        self._lift = lift
        self._queues: dict[str, deque[Request]] = {}
        self._counters: dict[str, float] = {}
        self._charged_output: dict[int, float] = {}
        self._last_to_leave: str | None = None

    def arrive(self, request: Request, now_s: float) -> bool:
        tenant = request.tenant
        self._counters.setdefault(tenant, 0.0)
        if tenant not in self._queues:
            if self._lift:
                self._counters[tenant] = max(self._counters[tenant], self._floor())
            self._queues[tenant] = deque()
        self._queues[tenant].append(request)
        return True

    def head(self, now_s: float) -> Request | None:
        if not self._queues:
            return None
        # Of equal counters the one that has waited for longer: `min` takes the first, and dicts keep their order.
        return self._queues[min(self._queues, key=self._counters.__getitem__)][0]

    def admit(self, request: Request, now_s: float) -> None:
        queue = self._queues[request.tenant]
        queue.popleft()
        if not queue:
            del self._queues[request.tenant]
            self._last_to_leave = request.tenant
        guess = self._predictor.guess(request) if self._predictor else 0.0
        self._charged_output[request.number] = guess
        self._charge(request.tenant, WEIGHTS.of(request.prompt_tokens, guess))

    def produced(self, running: Sequence[Running], now_s: float) -> None:
        for one in running:
            beyond = one.produced - self._charged_output[one.request.number]
            if beyond > 0:
                self._charged_output[one.request.number] += beyond
                self._charge(one.request.tenant, WEIGHTS.of(0, beyond))

    def finish(self, request: Request, now_s: float) -> None:
        self._charge(request.tenant, WEIGHTS.of(0, request.output_tokens - self._charged_output.pop(request.number)))
        if self._predictor:
            self._predictor.observe(request)

    def counters(self) -> dict[str, float]:
        """Service per weight, lifts included, of every tenant that was seen."""
        return dict(self._counters)

    def _charge(self, tenant: str, service: float) -> None:
        self._counters[tenant] += service / self._weights.get(tenant, 1.0)

    def _floor(self) -> float:
        if self._queues:
            return min(self._counters[tenant] for tenant in self._queues)
        return self._counters[self._last_to_leave] if self._last_to_leave is not None else 0.0


RATE_LIMITS = (30, 20, 15, 10, 5)


def rivals(weights: Mapping[str, float] | None = None) -> dict[str, Callable[[], Policy]]:
    """Makers of every policy but ours, by the name it has in the results."""
    return {
        "fcfs": Fifo,
        "round_robin": RoundRobin,
        **{f"rate_limit_{limit}": partial(RateLimit, limit) for limit in RATE_LIMITS},
        "lcf": lambda: TokenCounters(weights, lift=False),
        "vtc": lambda: TokenCounters(weights),
        "vtc_predicted": lambda: TokenCounters(weights, predictor=LastOutputs()),
        "vtc_oracle": lambda: TokenCounters(weights, predictor=Oracle()),
    }
