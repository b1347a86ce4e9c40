"""This project's application with Ray Serve's request-based rule in place of the own policy, on a real cluster.

Requests never pass Serve's handles here, so what handles would count is asked of the dispatcher. `build` is imported by
Serve itself, in its own processes. Role: one side of `benchmarks.burst`. Must not know: the load.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` to make its typed argument.
import asyncio
import time
from typing import Any

from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import AutoscalingContext

from benchmarks.burst_sides.serve_rule import ServeRule, ServeSettings
from serve_apps import app
from serve_apps.app import AppArgs
from serve_apps.names import get_dispatcher

IMPORT_PATH = "benchmarks.burst_sides.serve_live:build"
SETTINGS = ServeSettings(target_ongoing_requests=8.0, look_back_period_s=2.0, downscale_delay_s=30.0)
"""Half of the slots of the engine in configs/local.yaml; as quick as the rule can be made."""
POLL_S, POLL_TIMEOUT_S = 0.4, 5.0


class ServePolicy:
    """Takes the place of `BacklogPolicy`."""

    def __init__(self, model: str, deployment: str) -> None:
        self._model = model
        self._rule: ServeRule | None = None
        self._requests: int | None = None
        self._polled_at_s = 0.0
        self._poll: asyncio.Task[None] | None = None

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        now_s = time.monotonic()
        if self._rule is None:
            least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
            self._rule = ServeRule(SETTINGS, least, most)
        if (self._poll is None or self._poll.done()) and now_s - self._polled_at_s >= POLL_S:
            self._polled_at_s = now_s
            self._poll = asyncio.get_running_loop().create_task(self._ask())
        if self._requests is None:
            return context.target_num_replicas, {}
        self._rule.observe(self._requests, context.current_num_replicas, now_s)
        return self._rule.decide(context.current_num_replicas, context.target_num_replicas, now_s), {}

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(POLL_TIMEOUT_S):
                dispatcher = await asyncio.to_thread(get_dispatcher, self._model)
                status = await dispatcher.status.remote()
        except (RayError, ValueError, TimeoutError):
            return  # the last count stands
        waiting = sum(line["waiting"] for line in status["classes"].values())
        self._requests = waiting + sum(replica["running"] for replica in status["replicas"])


def build(args: AppArgs) -> Application:
    """As `serve_apps.app:build`."""
    app.BacklogPolicy = ServePolicy  # type: ignore[misc,assignment]
    return app.build(args)
