"""The commit log as a Ray actor, with metrics.

Role: one ordered place for all engines of a run. Owns: nothing but the actor and its metrics. Must not know: what is
inside rows.

It runs on the driver's node and dies with the driver's job; it is never restarted, because its memory of this run's
claims is what makes a commit safe. When it is lost, the job fails and a rerun continues from the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batch_jobs.work.commit_log import CommitLog, RowStat

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from batch_jobs.storage import Storage


class _MeteredLog(CommitLog):
    """Counts what it commits, so the metrics agree with the parts."""

    def measure(self, model: str) -> None:
        from ray.util.metrics import Counter

        self._rows = Counter(
            "tribes_offline_rows_total", "Rows committed by offline jobs.", tag_keys=("model", "status")
        )
        self._tokens = Counter(
            "tribes_offline_tokens_total",
            "Tokens of rows committed by offline jobs: uncached input, cached input, output.",
            tag_keys=("model", "kind"),
        )
        self._rows.set_default_tags({"model": model})
        self._tokens.set_default_tags({"model": model})

    def publish(self, engine: str, part: str, stats: Sequence[RowStat]) -> list[str]:
        refused = super().publish(engine, part, stats)
        if not refused:
            self._count(stats)
        return refused

    def _count(self, stats: Sequence[RowStat]) -> None:
        errors = sum(stat.error is not None for stat in stats)
        cached = sum(stat.cached_tokens for stat in stats)
        prompt = sum(stat.prompt_tokens for stat in stats)
        amounts = [
            (self._rows, {"status": "ok"}, len(stats) - errors),
            (self._rows, {"status": "error"}, errors),
            (self._tokens, {"kind": "input"}, prompt - cached),
            (self._tokens, {"kind": "cached_input"}, cached),
            (self._tokens, {"kind": "output"}, sum(stat.output_tokens for stat in stats)),
        ]
        for counter, tags, amount in amounts:
            if amount:
                counter.inc(amount, tags=tags)


def start_commit_log(storage: Storage, run_id: str, max_engines: int, model: str) -> ActorHandle[Any]:
    """Start the log beside the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class CommitLogActor(_MeteredLog):
        def __init__(self) -> None:
            super().__init__(storage, run_id, max_engines)
            self.measure(model)

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": here}
    actor: ActorHandle[Any] = ray.remote(**options)(CommitLogActor).remote()
    return actor
