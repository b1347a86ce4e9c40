"""Ray Serve's autoscaling policy: asks the dispatcher, which knows the queue. Owns: polling without blocking the
controller.

Serve calls the policy in its controller's event loop, so each poll is a one-shot task with a bound, and the last
answer is used meanwhile. While the dispatcher cannot be reached the number of replicas stays as it is.
Must not know: how the number is found (cluster.scheduling.autoscaling).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ray.exceptions import RayError
from ray.serve.config import AutoscalingContext

from serve_apps.names import get_dispatcher

POLL_S = 0.5
POLL_TIMEOUT_S = 5.0
log = logging.getLogger("ray.serve")


class BacklogPolicy:
    """`AutoscalingPolicy(policy_function=BacklogPolicy, policy_kwargs={"model": ..., "deployment": ...})`."""

    def __init__(self, model: str, deployment: str) -> None:
        self._model = model
        self._deployment = deployment
        self._dispatcher: Any = None
        self._desired: int | None = None
        self._polled_at_s = 0.0
        self._poll: asyncio.Task[None] | None = None

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        now_s = time.monotonic()
        if (self._poll is None or self._poll.done()) and now_s - self._polled_at_s >= POLL_S:
            self._polled_at_s = now_s
            self._poll = asyncio.get_running_loop().create_task(self._ask(context.target_num_replicas))
        desired = context.target_num_replicas if self._desired is None else self._desired
        return desired, {}

    async def _ask(self, current: int) -> None:
        try:
            async with asyncio.timeout(POLL_TIMEOUT_S):
                if self._dispatcher is None:
                    self._dispatcher = await asyncio.to_thread(get_dispatcher, self._model)
                self._desired = await self._dispatcher.desired_replicas.remote(self._deployment, current)
        except (RayError, ValueError, TimeoutError) as error:
            # ValueError: no dispatcher yet; it is created by the first gateway or replica.
            self._dispatcher, self._desired = None, None
            log.debug("no answer from the dispatcher of %s: %s", self._model, error)
