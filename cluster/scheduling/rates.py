"""Measured rates, exponentially weighted.

`RateMeter`: amount per second over about the last `tau_s`: `sum(amount_i * exp(-(t - t_i)/tau)) / tau`, divided by
`1 - exp(-(t - t0)/tau)` so that a young meter is not biased towards zero.
`PeakRate`: the highest windowed rate seen, decaying with a half-life; what a replica can do is what it did when busy.

Must not know: what is counted.
"""

from __future__ import annotations

import math

GRAIN = 0.01
"""Part of tau within which amounts count as added at once: an exponential less for each of them."""


class RateMeter:
    """Amount per second with time constant `tau_s`."""

    __slots__ = ("_grain_s", "_last_s", "_mass", "_start_s", "_tau_s")

    def __init__(self, tau_s: float) -> None:
        self._tau_s = tau_s
        self._grain_s = GRAIN * tau_s
        self._mass = 0.0
        self._start_s: float | None = None
        self._last_s = 0.0

    def add(self, amount: float, now_s: float) -> None:
        if self._start_s is None:
            self._start_s = self._last_s = now_s
        elif now_s - self._last_s >= self._grain_s:
            self._decay(now_s)
        self._mass += amount

    def rate(self, now_s: float) -> float:
        """Amount per second; 0.0 before anything was added."""
        if self._start_s is None:
            return 0.0
        self._decay(now_s)
        # Below a tenth of tau the age correction would turn one event into a huge rate.
        age_s = max(now_s - self._start_s, 0.1 * self._tau_s)
        return self._mass / self._tau_s / (1.0 - math.exp(-age_s / self._tau_s))

    def _decay(self, now_s: float) -> None:
        if now_s > self._last_s:
            self._mass *= math.exp(-(now_s - self._last_s) / self._tau_s)
            self._last_s = now_s


class PeakRate:
    """Highest rate seen over windows of `window_s`, halving every `half_life_s` without a higher one."""

    __slots__ = ("_amount", "_half_life_s", "_peak", "_peak_at_s", "_window_s", "_window_start_s")

    def __init__(self, window_s: float = 2.0, half_life_s: float = 600.0) -> None:
        self._window_s = window_s
        self._half_life_s = half_life_s
        self._peak = 0.0
        self._peak_at_s = 0.0
        self._amount = 0.0
        self._window_start_s: float | None = None

    def add(self, amount: float, now_s: float) -> None:
        if self._window_start_s is None:
            self._window_start_s = now_s
        elapsed_s = now_s - self._window_start_s
        if elapsed_s >= self._window_s:
            if elapsed_s < 2 * self._window_s and self._amount / elapsed_s > self.rate(now_s):
                self._peak, self._peak_at_s = self._amount / elapsed_s, now_s
            self._window_start_s, self._amount = now_s, 0.0
        self._amount += amount

    def rate(self, now_s: float) -> float:
        """Amount per second; 0.0 while unknown."""
        return self._peak * math.exp2(-max(0.0, now_s - self._peak_at_s) / self._half_life_s)
