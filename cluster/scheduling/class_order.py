"""Order of the request classes: strict priority with floors.

online goes before semi_online before offline. So that no class starves, each keeps a floor: while it waits, a class
whose part of the service handed out (on replicas it may use, since it began to wait) is below its floor goes first.
With floors f the class gets at least f of the service over any long backlog, whatever the others offer.

Owns: the account of service per waiting class. Must not know: tenants, tickets, replicas beyond the classes they serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cluster.vocabulary import RequestClass

PRIORITY: tuple[RequestClass, ...] = (RequestClass.ONLINE, RequestClass.SEMI_ONLINE, RequestClass.OFFLINE)


class ClassOrder:
    """Says which class is served next. `floors` maps a class to its guaranteed share, 0..1; their sum stays below 1."""

    def __init__(self, floors: Mapping[RequestClass, float]) -> None:
        if sum(floors.values()) >= 1:
            raise ValueError(f"floors must sum to less than 1, got {dict(floors)}")
        self._floors = dict(floors)
        self._own: dict[RequestClass, float] = {}
        self._total: dict[RequestClass, float] = {}

    def order(self, waiting: Iterable[RequestClass]) -> Sequence[RequestClass]:
        """Waiting classes, the one to serve first at the front: those below their floor, then by priority."""
        present = set(waiting)
        for request_class in list(self._own):
            if request_class not in present:
                del self._own[request_class], self._total[request_class]
        for request_class in present:
            self._own.setdefault(request_class, 0.0)
            self._total.setdefault(request_class, 0.0)
        ranked = [c for c in PRIORITY if c in present]
        return sorted(ranked, key=lambda c: not self._below_floor(c))

    def served(self, request_class: RequestClass, serves: Sequence[RequestClass], service: float) -> None:
        """Account `service` given to `request_class` on a replica that serves the classes `serves`."""
        for waiting in self._own:
            if waiting in serves:
                self._total[waiting] += service
                if waiting is request_class:
                    self._own[waiting] += service

    def _below_floor(self, request_class: RequestClass) -> bool:
        floor = self._floors.get(request_class, 0.0)
        return floor > 0 and self._own[request_class] < floor * self._total[request_class]
