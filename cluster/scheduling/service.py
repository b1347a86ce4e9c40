"""Service: the weighted tokens in which fairness is counted.

Formula (VTC, OSDI'24, arXiv 2401.00588, section 3): `W = w_in * uncached input tokens + w_out * output tokens`.
Cached input is free because it costs the engine next to nothing.

Owns: the weights and the guess of an output's length. Must not know: queues, replicas, time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from cluster.scheduling.types import TokenUsage


@dataclass(frozen=True, slots=True)
class ServiceWeights:
    """Weights per token; the paper's defaults are 1 and 2."""

    input_weight: float = 1.0
    output_weight: float = 2.0

    def of(self, uncached_tokens: float, output_tokens: float) -> float:
        return self.input_weight * uncached_tokens + self.output_weight * output_tokens

    def of_usage(self, usage: TokenUsage) -> float:
        return self.of(usage.uncached_tokens, usage.output_tokens)


class OutputPredictor:
    """Guesses a request's output length as the mean of its tenant's last `window` outputs.

    The VTC artifact ships the same predictor with a window of 5. Charging the guess at admission and the difference at
    the end keeps a burst of admissions from all looking free. A tenant never seen is guessed at `first_guess_tokens`.
    """

    def __init__(self, window: int = 5, first_guess_tokens: int = 64, max_tenants: int = 65_536) -> None:
        self._window = window
        self._first_guess_tokens = first_guess_tokens
        self._max_tenants = max_tenants
        self._seen: OrderedDict[str, deque[int]] = OrderedDict()

    def predict(self, tenant: str, max_output_tokens: int) -> int:
        seen = self._seen.get(tenant)
        guess = round(sum(seen) / len(seen)) if seen else self._first_guess_tokens
        return max(0, min(guess, max_output_tokens))

    def observe(self, tenant: str, output_tokens: int) -> None:
        seen = self._seen.setdefault(tenant, deque(maxlen=self._window))
        seen.append(output_tokens)
        self._seen.move_to_end(tenant)
        if len(self._seen) > self._max_tenants:
            self._seen.popitem(last=False)
