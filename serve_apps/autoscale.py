"""Ray Serve's autoscaling policy: asks the dispatcher, which knows the queue. Owns: polling without blocking the
controller, and passing on what the dispatchers are to know of each other.

Serve calls the policy in its controller's event loop, so each poll is a one-shot task with a bound, and the last
answer is used meanwhile. While the dispatcher cannot be reached the number of replicas stays as it is.

The policies of all deployments live in that one process and ask all dispatchers anyway: each answer brings the
deployment's claim on the nodes, each question takes those of the others along. So dispatchers need no channel of their
own, and no claim outlives its deployment for long.
Must not know: how the number is found (`autoscaling` in cluster.scheduling), what is in a claim (`sharing` there).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ray.exceptions import RayError
from ray.serve.config import AutoscalingContext

from cluster.scheduling import Claim
from serve_apps.names import get_dispatcher

POLL_S = 0.5
POLL_TIMEOUT_S = 5.0
CLAIM_HOLDS_S = 5.0
log = logging.getLogger("ray.serve")


class ClaimBoard:
    """The latest claim of every deployment."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[float, Claim]] = {}

    def post(self, claim: Claim, now_s: float) -> None:
        self._claims[claim.deployment] = now_s, claim

    def others(self, deployment: str, now_s: float) -> tuple[Claim, ...]:
        """Of deployments that were heard lately."""
        self._claims = {name: held for name, held in self._claims.items() if now_s - held[0] <= CLAIM_HOLDS_S}
        return tuple(claim for name, (_, claim) in self._claims.items() if name != deployment)


BOARD = ClaimBoard()
"""Of this controller process."""


class BacklogPolicy:
    """`AutoscalingPolicy(policy_function=BacklogPolicy, policy_kwargs={"model": ..., "deployment": ...})`."""

    def __init__(self, model: str, deployment: str, board: ClaimBoard | None = None) -> None:
        self._model = model
        self._deployment = deployment
        self._board = BOARD if board is None else board
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
                others = self._board.others(self._deployment, time.monotonic())
                answer = self._dispatcher.desired_replicas.remote(self._deployment, current, others)
                self._desired, claim = await answer
        except (RayError, ValueError, TimeoutError) as error:
            # ValueError: no dispatcher yet; it is created by the first gateway or replica.
            self._dispatcher, self._desired = None, None
            log.debug("no answer from the dispatcher of %s: %s", self._model, error)
        else:
            self._board.post(claim, time.monotonic())
