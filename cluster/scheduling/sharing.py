"""Several deployments on the same nodes: idle replicas of one give way to the queue of another when there is no room.

Every deployment makes a claim: how many replicas it needs that found no room, and how many it could do without. All see
the same claims and come to the same answer, each for itself:

    wanted = sum(missing * size) - sum(giving * size)        in one pool; size in GPUs, or in CPUs where it has none
    the givers, longest idle first, give replicas until `wanted` is covered

- *Missing*: ordered, still needed, and not heard of for `PATIENCE_S`: Ray has found no place for them.
- *Spare*: above `min_replicas` and above what is needed now: kept only because it was needed a moment ago. It may be
  given once it was spare for as long as its own start takes (within bounds), so that two queues that take turns do not
  spend their time starting replicas. Who misses replicas has none to spare.
- *Giving*: given a moment ago; the room is there only once the replica has drained. Counted for `SETTLE_S`.

Not known here: which nodes the freed pieces lie on. Labels, custom resources and fragments can leave a claim unmet;
then the next spare replica goes when `SETTLE_S` is over.

Owns: claims and who gives way. Must not know: queues, Ray, how replicas stop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

PATIENCE_S = 5.0
SETTLE_S = 15.0
LEAST_SPARE_S, MOST_SPARE_S = 5.0, 30.0


@dataclass(frozen=True, slots=True)
class Claim:
    """What one deployment says to those that share its pool."""

    deployment: str
    pool: str
    size: float
    """Of one replica, in what is scarce in the pool."""
    missing: int = 0
    spare: int = 0
    """May be given now."""
    spare_for_s: float = 0.0
    giving: int = 0
    """Given up a moment ago: its room is not there yet, or not taken yet."""


def give_way(claims: Iterable[Claim], pool: str) -> dict[str, int]:
    """Replicas that each deployment of the pool should give up now."""
    there = [claim for claim in claims if claim.pool == pool]
    wanted = sum((claim.missing - claim.giving) * claim.size for claim in there)
    given: dict[str, int] = {}
    for claim in sorted(there, key=lambda claim: (-claim.spare_for_s, claim.deployment)):
        if claim.missing:
            continue
        while wanted > 0 and given.get(claim.deployment, 0) < claim.spare:
            given[claim.deployment] = given.get(claim.deployment, 0) + 1
            wanted -= claim.size
    return given


class Neighbour:
    """One deployment among those that share its pool."""

    def __init__(self) -> None:
        self._missing_since_s: float | None = None
        self._spare_since_s: float | None = None
        self._given: deque[tuple[float, int]] = deque()

    def claim(
        self,
        blank: Claim,
        *,
        needed: int,
        wanted: int,
        current: int,
        placed: int,
        least: int,
        start_s: float,
        now_s: float,
    ) -> Claim:
        """`blank` filled in. Replicas `needed` now, `wanted` with what is kept, `current` ones ordered, of which
        `placed` are ready or starting; `least` are never given up."""
        missing = min(needed, current) - placed
        self._missing_since_s = _since(missing > 0, self._missing_since_s, now_s)
        spare = min(wanted, current) - max(needed, least)
        self._spare_since_s = _since(spare > 0, self._spare_since_s, now_s)
        while self._given and self._given[0][0] < now_s - SETTLE_S:
            self._given.popleft()
        patient = self._missing_since_s is not None and now_s - self._missing_since_s >= PATIENCE_S
        spare_s = 0.0 if self._spare_since_s is None else now_s - self._spare_since_s
        ripe = spare_s >= min(MOST_SPARE_S, max(LEAST_SPARE_S, start_s))
        return replace(
            blank,
            missing=missing if patient else 0,
            spare=spare if ripe else 0,
            spare_for_s=spare_s,
            giving=sum(count for _, count in self._given),
        )

    def give(self, own: Claim, others: Iterable[Claim], now_s: float) -> int:
        """Replicas to give up now; taken as done."""
        count = give_way([own, *others], own.pool).get(own.deployment, 0)
        if count:
            self._given.append((now_s, count))
        return count


def _since(true: bool, since_s: float | None, now_s: float) -> float | None:
    if not true:
        return None
    return now_s if since_s is None else since_s
