"""How many requests may be run again: a share of the requests of late, so that a bad minute cannot double the load.

    again + cost <= floor_per_s * WINDOW_S + share * (running + ended)

`again` and `ended` fade with exp(-t / WINDOW_S), so each is about what happened in the last WINDOW_S seconds; a request
counts in full while it runs. The floor lets a nearly idle gateway try again at all.

To go on with a stream that has begun costs a prefill, not a second run, and when a replica dies all of its streams need
it in the same moment: they are counted apart, and for them the whole of `running + ended` counts instead of the share.
Counted together, the streams of one death would leave nothing for the requests that had not begun.

Pure: the clock comes with each call. Owns: the counts of one model in one gateway. Must not know: what failed, and why.
"""

from __future__ import annotations

import math

WINDOW_S = 10.0
MOST_PATIENCE_S = 30.0


class RetryBudget:
    """Asked before anything is run again."""

    __slots__ = ("_again", "_ended", "_floor", "_gone_on", "_read_at_s", "_running", "_share")

    def __init__(self, share: float, floor_per_s: float) -> None:
        self._share = share
        self._floor = floor_per_s * WINDOW_S
        self._running = 0
        self._ended = 0.0
        self._again = 0.0
        self._gone_on = 0.0
        self._read_at_s = 0.0

    def started(self) -> None:
        self._running += 1

    def ended(self, now_s: float) -> None:
        self._fade(now_s)
        self._running -= 1
        self._ended += 1

    def allows(self, now_s: float, *, begun: bool = False) -> bool:
        """Whether one more may be run again now; if so, it is counted. `begun`: the client has part of its answer."""
        self._fade(now_s)
        requests = self._running + self._ended
        if begun:
            allowed = self._gone_on + 1 <= self._floor + requests
            self._gone_on += allowed
        else:
            allowed = self._again + 1 <= self._floor + self._share * requests
            self._again += allowed
        return allowed

    def patience_s(self, now_s: float) -> float:
        """When a request that comes anew will probably be allowed to be run again: what `Retry-After` says."""
        self._fade(now_s)
        # What has ended fades too, but may be made up for; only what runs and the floor are sure to stay.
        room = self._floor + self._share * self._running - 1
        if self._again <= room:
            return 1.0
        wait_s = WINDOW_S * math.log(self._again / room) if room > 0 else MOST_PATIENCE_S
        return min(MOST_PATIENCE_S, max(1.0, wait_s))

    def _fade(self, now_s: float) -> None:
        if now_s > self._read_at_s:
            kept = math.exp((self._read_at_s - now_s) / WINDOW_S)
            self._again *= kept
            self._gone_on *= kept
            self._ended *= kept
            self._read_at_s = now_s
