"""Order of the request classes: strict priority with floors and a bounded share for raised classes.

online goes before semi_online before offline. So that no class starves, each keeps a floor; and a class that is
*raised*, because its oldest request is too old or a deadline is near, goes before more important ones.

Both are accounts of service. While a class waits behind a more important one that could use the same replica, every
unit of service handed out there earns it `floor` units, and it may go first while its account is above zero; what it
was given that way is taken from the account, with the corrections of the same leases. One account of the same kind,
earning `raised_share`, is shared by all raised classes. So over any stretch in which online waits, the others together
get at most `sum of floors + raised_share` of the service that it could use, plus a constant: an account holds at most
`CREDIT_CHARGES` times the largest charge seen. Nothing is earned while nothing more important waits.

Owns: those accounts. Must not know: tenants, tickets, replicas beyond the classes they serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cluster.vocabulary import RequestClass

PRIORITY: Final[tuple[RequestClass, ...]] = tuple(RequestClass)
INDEX: Final[Mapping[RequestClass, int]] = {c: i for i, c in enumerate(PRIORITY)}
NORMAL, BY_FLOOR, RAISED = 0, 1, 2
"""Why a lease was granted when it was: its class's turn, its floor, or because it was raised."""
CREDIT_CHARGES = 4


def class_mask(classes: Iterable[RequestClass]) -> int:
    """A set of classes as bits, bit i for PRIORITY[i]."""
    return sum(1 << INDEX[c] for c in set(classes))


_MEMBERS: Final = tuple(tuple(i for i in range(len(PRIORITY)) if mask >> i & 1) for mask in range(1 << len(PRIORITY)))


class ClassOrder:
    """Says which class is served next. `floors` maps a class to its guaranteed share, 0..1."""

    def __init__(self, floors: Mapping[RequestClass, float], raised_share: float = 0.0) -> None:
        self.configure(floors, raised_share)
        self._credit = [0.0] * len(PRIORITY)
        self._raised_credit = 0.0
        self._cap = 0.0
        self.contended = False
        """More than one class waits: only then does anybody owe or earn anything."""
        self._ready = 0
        self._raised = 0
        self._ahead = 0

    def configure(self, floors: Mapping[RequestClass, float], raised_share: float) -> None:
        """New shares; the accounts stay."""
        if sum(floors.values()) + raised_share >= 1:
            raise ValueError(
                f"floors and raised_share must sum to less than 1, got {dict(floors)} and {raised_share}; lower them"
            )
        self._floors = [floors.get(c, 0.0) for c in PRIORITY]
        self._raised_share = raised_share

    def raise_classes(self, raised: int) -> None:
        """The classes (bits) that are raised from now on."""
        self._raised = raised
        if not raised:
            self._raised_credit = min(self._raised_credit, 0.0)

    def order(self, ready: int) -> tuple[int, ...]:
        """Classes (indexes) of the bits `ready`, the one to serve first at the front."""
        if ready != self._ready:
            self._ready = ready
            self.contended = len(_MEMBERS[ready]) > 1
            for i in range(len(PRIORITY)):
                if not ready >> i & 1 and self._credit[i] > 0:
                    self._credit[i] = 0.0  # a class that does not wait has no claim
        ranked = _MEMBERS[ready]
        if len(ranked) < 2:
            self._ahead = 0
            return ranked
        ahead = 0
        for i in ranked[1:]:
            if self._credit[i] > 0 and self._floors[i]:
                ahead |= 1 << i
        late = self._raised & ready & ~ahead & ~(1 << ranked[0]) if self._raised_credit > 0 else 0
        self._ahead = ahead | late
        if not self._ahead:
            return ranked
        return _MEMBERS[ahead] + _MEMBERS[late] + _MEMBERS[ready & ~self._ahead]

    def way(self, index: int, serves: int) -> int:
        """Why class `index` goes now on a replica that serves the classes `serves`: follows `order`."""
        if not (self._ahead >> index & 1 and self._ready & serves & ((1 << index) - 1)):
            return NORMAL
        return BY_FLOOR if self._credit[index] > 0 and self._floors[index] else RAISED

    def served(self, index: int, serves: int, service: float, way: int) -> None:
        """Account `service` (negative for a correction) given to class `index` on a replica that serves `serves`."""
        cap = abs(service) * CREDIT_CHARGES
        if cap > self._cap:
            self._cap = cap
        if way == BY_FLOOR:
            self._credit[index] = self._bounded(self._credit[index] - service)
        elif way == RAISED:
            self._raised_credit = self._bounded(self._raised_credit - service)
        contending = _MEMBERS[self._ready & serves]
        if len(contending) < 2:
            return
        for i in contending[1:]:
            if self._floors[i]:
                self._credit[i] = self._bounded(self._credit[i] + self._floors[i] * service)
        if self._raised & self._ready & serves & ~(1 << contending[0]):
            self._raised_credit = self._bounded(self._raised_credit + self._raised_share * service)

    def _bounded(self, credit: float) -> float:
        return max(-self._cap, min(self._cap, credit))
