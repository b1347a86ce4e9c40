"""What replicas said about themselves, when, and which of them gateways could not reach.

Owns: the last report of each replica. Must not know: leases, the queue, Ray. Times are of the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from serve_apps.messages import ReplicaReport

SILENCE_S = 6.0
STARTING_SILENCE_S = 30.0


class ReplicaBook:
    """Last reports by replica id."""

    def __init__(self) -> None:
        self._reports: dict[str, ReplicaReport] = {}
        self._heard_s: dict[str, float] = {}
        self._unreachable: set[str] = set()
        self._unseen_since_s: dict[str, float] = {}

    def __contains__(self, replica_id: str) -> bool:
        return replica_id in self._reports

    def __len__(self) -> int:
        return len(self._reports)

    def __getitem__(self, replica_id: str) -> ReplicaReport:
        return self._reports[replica_id]

    def reports(self) -> list[ReplicaReport]:
        return list(self._reports.values())

    def note(self, report: ReplicaReport, now_s: float) -> tuple[bool, bool]:
        """Take a report: (what it may take has changed, it has just become ready)."""
        before = self._reports.get(report.replica_id)
        was = before.state if before else None
        held = report.replica_id in self._unreachable
        self._reports[report.replica_id] = report
        self._heard_s[report.replica_id] = now_s
        self._unreachable.discard(report.replica_id)
        changed = report.state != "starting" and (report.state != was or held)
        return changed, report.state == "ready" and was != "ready"

    def hold(self, replica_id: str) -> bool:
        """A gateway could not connect: no lease there until its next report. False when it was not ready anyway."""
        ready = replica_id in self._reports and self._reports[replica_id].state == "ready"
        if ready:
            self._unreachable.add(replica_id)
        return ready

    def takes_leases(self, replica_id: str) -> bool:
        return self._reports[replica_id].state == "ready" and replica_id not in self._unreachable

    def drop(self, replica_id: str) -> None:
        self._reports.pop(replica_id, None)
        self._heard_s.pop(replica_id, None)
        self._unreachable.discard(replica_id)

    def silent(self, now_s: float) -> list[str]:
        def patience_s(report: ReplicaReport) -> float:
            return STARTING_SILENCE_S if report.state == "starting" else SILENCE_S

        return [i for i, report in self._reports.items() if now_s - self._heard_s[i] > patience_s(report)]

    def unseen(self, replica_ids: Iterable[str], now_s: float) -> Collection[str]:
        """Those of `replica_ids` (which hold leases) that nobody has heard from for too long: they died while the
        dispatcher was away, or a gateway was told of their end in an answer that was lost."""
        missing = {i for i in replica_ids if i not in self._reports}
        self._unseen_since_s = {i: self._unseen_since_s.get(i, now_s) for i in missing}
        return {i for i, since_s in self._unseen_since_s.items() if now_s - since_s > SILENCE_S}

    def excuse(self, seconds: float) -> None:
        """The dispatcher itself was late: nobody is more silent for that."""
        self._heard_s = {replica_id: heard_s + seconds for replica_id, heard_s in self._heard_s.items()}
        self._unseen_since_s = {replica_id: since_s + seconds for replica_id, since_s in self._unseen_since_s.items()}
