"""What an output folder says about its job, from the small files that the driver keeps there.

Owns: what they mean together: rows, rates, cost, state. Must not know: how they are read, Ray, the screen.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from typing import Any

FRESH_S = 30.0
"""Rates older than this are not those of now: the driver writes every 2 s."""


@dataclass(frozen=True)
class OutputState:
    """The files as they are; {} for one that is missing. With a `problem` nothing is known."""

    location: str
    problem: str | None = None
    job: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    done: dict[str, Any] = field(default_factory=dict)
    lock: dict[str, Any] = field(default_factory=dict)
    heartbeat_unix_s: float | None = None
    names: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """Where it is, for messages: a URL without its secrets."""
        from batch_jobs.storage import shown

        return shown(self.location)

    @property
    def model(self) -> str | None:
        found = self.spec.get("model") or self.report.get("model")
        return None if found is None else str(found)

    @property
    def spec(self) -> dict[str, Any]:
        """What is asked of every row."""
        spec = self.job.get("spec")
        return spec if isinstance(spec, dict) else {}

    @property
    def pools(self) -> dict[str, dict[str, Any]]:
        """Each pool's figures: of now while it runs, of the last run when that has a report."""
        reported, now = self.report.get("pools"), self.progress.get("pools")
        if self._report_is_current and isinstance(reported, list):
            return {str(pool.get("name")): pool for pool in reported if isinstance(pool, dict)}
        return {name: pool for name, pool in now.items() if isinstance(pool, dict)} if isinstance(now, dict) else {}

    @property
    def complete(self) -> bool:
        return bool(self.done)

    @property
    def is_job(self) -> bool:
        return bool(self.job or self.progress or self.report or self.done or self.lock)

    @property
    def driver_alive(self) -> bool:
        """Whether some process works on it now, as batch_jobs.output.lock would judge it."""
        from batch_jobs.output.lock import STALE_S, process_start

        if not self.lock:
            return False
        if self.lock.get("host") == socket.gethostname():
            return process_start(int(self.lock["pid"])) == self.lock.get("process_start")
        return time.time() - (self.heartbeat_unix_s or float(self.lock.get("taken_unix_s", 0))) <= STALE_S

    @property
    def status(self) -> str:
        """Without Ray's word: complete, running, failed or stopped (the driver's last words), or interrupted."""
        if self.problem is not None:
            return "?"
        if self.complete:
            return "complete"
        if self.driver_alive:
            return "running"
        said = str(self.progress.get("state"))
        return said if said in ("failed", "stopped") else "interrupted"

    @property
    def rows_total(self) -> int | None:
        return _whole(self.progress.get("rows_total"), self.report.get("rows_total"), self.job.get("rows"))

    @property
    def rows_done(self) -> int | None:
        return _whole(self.done.get("rows"), self.progress.get("rows_done"), self.report.get("rows"))

    @property
    def percent(self) -> float | None:
        done, total = self.rows_done, self.rows_total
        return None if done is None or total is None else round(100 * done / total, 1) if total else 100.0

    @property
    def errors(self) -> dict[str, int]:
        """Error rows by kind. While it runs, only their sum may be known."""
        now, ended = self.progress.get("errors"), self.report.get("errors")
        if isinstance(now, int) and not isinstance(now, bool) and not self._report_is_current:
            return {"all kinds": now} if now else {}
        found = ended if self._report_is_current else now
        return {str(kind): int(count) for kind, count in (found or {}).items()} if isinstance(found, dict) else {}

    @property
    def rates(self) -> dict[str, float | None]:
        """Tokens per second: of now while it runs, of the whole last run when that has a report."""
        names = ("input_tokens_per_s", "output_tokens_per_s")
        if self.running_now:
            given = [_number(self.progress.get(name)) for name in names]
            total = sum(rate for rate in given if rate is not None) if any(rate is not None for rate in given) else None
            return {"tokens_per_s": total} | dict(zip(names, given, strict=True))
        total = _number(self._run.get("tokens_per_s")) if self._report_is_current else None
        return {"tokens_per_s": total} | dict.fromkeys(names)

    @property
    def eta_s(self) -> float | None:
        return _number(self.progress.get("eta_s")) if self.running_now else None

    @property
    def usd(self) -> float | None:
        now = _number(self.progress.get("usd"))
        ended = _number(self._run.get("usd"), self.report.get("usd"))
        return ended if self._report_is_current and ended is not None else now

    @property
    def _run(self) -> dict[str, Any]:
        run = self.report.get("run")
        return run if isinstance(run, dict) else {}

    @property
    def _report_is_current(self) -> bool:
        """The report is of the run that the progress is of; an earlier run's stays until this one ends."""
        return bool(self.report) and self.progress.get("run_id") in (None, self.report.get("run_id"))

    @property
    def running_now(self) -> bool:
        updated = _number(self.progress.get("updated_unix_s")) or 0.0
        return self.progress.get("state") in ("starting", "running") and time.time() - updated < FRESH_S


def _number(*values: object) -> float | None:
    """The first that is a number."""
    return next((float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)), None)


def _whole(*values: object) -> int | None:
    found = _number(*values)
    return None if found is None else int(found)
