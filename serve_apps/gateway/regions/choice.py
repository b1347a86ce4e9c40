"""Where a request runs: here, or in which other region.

    1. a session that went elsewhere stays there, while that region meets the SLO or is no slower than this one
    2. here, if the first byte is expected within the class's SLO
    3. the nearest region that meets it, its round trip included
    4. the one where it comes first, which may be this one

Pure. Owns: this order, and which sessions are elsewhere. Must not know: how times are measured, HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

MAX_SESSIONS = 50_000


@dataclass(frozen=True, slots=True)
class Distance:
    """A healthy region as seen from here."""

    expected_s: float
    """To the first byte, once the request is there."""
    rtt_s: float

    @property
    def total_s(self) -> float:
        return self.expected_s + self.rtt_s


def choose(here_s: float, peers: Mapping[str, Distance], slo_s: float, at: str | None = None) -> str | None:
    """The region's name; None: here. `at`: where the request's session is."""
    sticky = peers.get(at) if at is not None else None
    if sticky is not None and sticky.total_s <= max(slo_s, here_s):
        return at
    if here_s <= slo_s or not peers:
        return None
    good = [name for name, peer in peers.items() if peer.total_s <= slo_s]
    if good:
        return min(good, key=lambda name: peers[name].rtt_s)
    best = min(peers, key=lambda name: peers[name].total_s)
    return best if peers[best].total_s < here_s else None


class AwaySessions:
    """Sessions that went to another region, each for `keep_s` after its last request."""

    def __init__(self, keep_s: float, most: int = MAX_SESSIONS) -> None:
        self._keep_s = keep_s
        self._most = most
        self._regions: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def region_of(self, session: str, now_s: float) -> str | None:
        found = self._regions.get(session)
        if found is None:
            return None
        region, until_s = found
        if now_s >= until_s:
            del self._regions[session]
            return None
        return region

    def went(self, session: str, region: str | None, now_s: float) -> None:
        """Its latest request ran there; None: here."""
        if region is None:
            self._regions.pop(session, None)
            return
        self._regions[session] = (region, now_s + self._keep_s)
        self._regions.move_to_end(session)
        if len(self._regions) > self._most:
            self._regions.popitem(last=False)
