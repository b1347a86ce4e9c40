"""What every part of the worker works with, and its pace. Owns: nothing but these references."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.config import TribesConfig
from cluster.files import FileStore
from cluster.state import Store
from cluster.state.deferred import DeferredStore
from cluster.vocabulary import RequestClass
from serve_apps.deferred.jobs import Jobs
from serve_apps.deferred.runner import Runner
from serve_apps.deferred.slots import Slots

_T = TypeVar("_T")
WHOLE_FILES_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a worker looks, in seconds."""

    busy_s: float = 0.2
    """Between two looks for work while there is some ..."""
    idle_s: float = 1.0
    """... and at most this while there is none."""
    beat_s: float = 1.0
    """Between two heartbeats, by which it also learns what was cancelled."""
    house_s: float = 60.0
    job_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Shop:
    """One worker's tools."""

    config: TribesConfig
    store: Store
    deferred: DeferredStore
    files: FileStore
    runner: Runner
    slots: Slots
    """Places of requests in the queue ..."""
    job_slots: Slots
    """... and of offline jobs."""
    jobs: Jobs | None = None
    """None: no offline jobs can be started from here."""
    pace: Pace = field(default_factory=Pace)
    whole_files: Executor = field(default_factory=lambda: ThreadPoolExecutor(WHOLE_FILES_AT_ONCE, "whole-files"))

    async def on_whole_file(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Do what takes as long as a whole file. On threads of their own: the loop's are few, and commits of
        results must not wait behind minutes of reading."""
        return await asyncio.get_running_loop().run_in_executor(self.whole_files, call, *arguments)

    def lowest_class(self, model: str) -> RequestClass | None:
        """The class of batches on this model: offline, or the least important one that its deployments serve."""
        served = {c for d in self.config.serving().values() if d.model == model for c in d.serves}
        order = (RequestClass.OFFLINE, RequestClass.SEMI_ONLINE, RequestClass.ONLINE)
        return next((c for c in order if c in served), None)
