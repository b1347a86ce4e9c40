"""When a restarted dispatcher may grant again.

It knows neither the requests that wait nor the slots that are taken until gateways have said hello. A grant before that
would overtake older requests of another gateway, or fill a slot in which one of its requests runs. So the first grant
waits for every gateway that the predecessor knew (each brings their names), for at most `PATIENCE_S`: one of them may
have died together with it. A dispatcher that is started for the first time waits for nobody.

Owns: who is still missing. Must not know: the queue, messages, Ray. Times are of the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Collection

PATIENCE_S = 1.0


class Comeback:
    """Over once all known gateways are back; `restarted` when it is known from the start that there were some."""

    def __init__(self, restarted: bool, now_s: float) -> None:
        self._ends_at_s = now_s + PATIENCE_S
        self._unknown = restarted
        self._present: set[str] = set()
        self._missing: set[str] = set()

    def hello(self, gateway_id: str, others: Collection[str]) -> None:
        """A gateway is back, and names those that its former dispatcher knew (none: it had no other)."""
        self._present.add(gateway_id)
        self._missing.update(others)
        self._missing -= self._present
        self._unknown = self._unknown and not others

    def goodbye(self, gateway_id: str) -> None:
        self._missing.discard(gateway_id)

    def missing(self, now_s: float) -> set[str]:
        """Gateways that are still expected: a successor of this dispatcher, too, would have to wait for them."""
        return set() if self.is_over(now_s) else self._missing

    def is_over(self, now_s: float) -> bool:
        return now_s >= self._ends_at_s or not (self._unknown or self._missing)
