"""Pending rows, from the input files to the ledger.

Role: the Ray Data pipeline that reads and prepares rows, and the thread that feeds them in. Owns: its depth.
Must not know: engines, the output.

Ray Data reads and prepares blocks in parallel tasks and holds back when nobody consumes; the thread takes blocks one by
one and offers them to the ledger, which answers when its window has room. So the input may be larger than memory.
A few blocks the thread reads itself: the pipeline's own processes would take longer to start than that, and stay.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from batch_jobs.input.chunks import Chunks
from batch_jobs.input.reading import chunk_source, prepared_rows, read_block
from batch_jobs.input.spec import JobSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.actor import ActorHandle
    from ray.data import Dataset

OWN_BLOCKS = 4
READ_TASKS = 2
OFFER_ROWS = 512


class Source:
    """Started once; `error` is set when the pipeline broke."""

    def __init__(self, blocks: Sequence[Chunks], spec: JobSpec, ledger: ActorHandle[Any]) -> None:
        self._blocks = list(blocks)
        self._spec = spec
        self._ledger = ledger
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._feed, name="source", daemon=True)

    @property
    def started(self) -> bool:
        return self._thread.ident is not None

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        if self.started:
            self._thread.join(timeout_s)

    def _dataset(self) -> Dataset:
        import ray
        from ray.data import DataContext

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # after its import, which sets levels of its own
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True  # neighbours in the input are often neighbours in the prompt
        # Reading reserves no CPU, as the engines may have reserved them all; so its tasks are bounded by number.
        return ray.data.read_datasource(
            chunk_source(self._blocks, self._spec),
            num_cpus=0,
            concurrency=min(READ_TASKS, len(self._blocks)),
            override_num_blocks=len(self._blocks),
        )

    def _tables(self) -> Iterable[pa.Table]:
        if len(self._blocks) <= OWN_BLOCKS:
            return (read_block(block, self._spec) for block in self._blocks)
        tables: Iterable[pa.Table] = self._dataset().iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=1
        )
        return tables

    def _feed(self) -> None:
        import ray

        try:
            for table in self._tables():
                rows = prepared_rows(table)
                for start in range(0, len(rows), OFFER_ROWS):
                    if not ray.get(self._ledger.offer.remote(rows[start : start + OFFER_ROWS])):
                        return
            ray.get(self._ledger.close.remote())
        except BaseException as error:
            self.error = error
