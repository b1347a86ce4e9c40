"""Ray metrics of offline jobs.

Role: the counters and gauges that dashboards read. Owns: their names and labels. Must not know: where rows come from.
Counted where rows are committed, so that the metrics agree with the parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from batch_jobs.reporting.stats import RowStat


class JobMetrics:
    """Make one per process, inside Ray."""

    def __init__(self, model: str) -> None:
        from ray.util.metrics import Counter, Gauge

        by_pool = ("model", "pool")
        self._rows = Counter(
            "tribes_offline_rows_total",
            "Rows committed by offline jobs: ok, error, duplicate (another row's answer).",
            tag_keys=(*by_pool, "status"),
        )
        self._tokens = Counter(
            "tribes_offline_tokens_total",
            "Tokens of rows committed by offline jobs: uncached input, cached input, output.",
            tag_keys=(*by_pool, "kind"),
        )
        self._running = Gauge("tribes_offline_running_rows", "Rows that engines of a pool have.", tag_keys=by_pool)
        self._ready = Gauge("tribes_offline_engines_ready", "Engines of a pool that take rows.", tag_keys=by_pool)
        self._left = Gauge("tribes_offline_rows_left", "Rows of the job not committed yet.", tag_keys=("model",))
        for metric in (self._rows, self._tokens, self._running, self._ready, self._left):
            metric.set_default_tags({"model": model})

    def count(self, pool: str, stats: Sequence[RowStat]) -> None:
        """A duplicate of a failed row is an error: `ok`, `error` and `duplicate` add up to all rows."""
        computed = [stat for stat in stats if not stat.duplicate]
        errors = sum(stat.error is not None for stat in stats)
        duplicates = sum(stat.duplicate and stat.error is None for stat in stats)
        cached = sum(stat.cached_tokens for stat in computed)
        amounts = [
            (self._rows, {"status": "ok"}, len(stats) - errors - duplicates),
            (self._rows, {"status": "error"}, errors),
            (self._rows, {"status": "duplicate"}, duplicates),
            (self._tokens, {"kind": "input"}, sum(stat.prompt_tokens for stat in computed) - cached),
            (self._tokens, {"kind": "cached_input"}, cached),
            (self._tokens, {"kind": "output"}, sum(stat.output_tokens for stat in computed)),
        ]
        for counter, tags, amount in amounts:
            if amount > 0:  # Ray refuses to count nothing
                counter.inc(amount, tags=tags | {"pool": pool})

    def gauges(self, pool: str, running_rows: int, engines_ready: int) -> None:
        self._running.set(running_rows, tags={"pool": pool})
        self._ready.set(engines_ready, tags={"pool": pool})

    def rows_left(self, rows: int) -> None:
        self._left.set(rows)
