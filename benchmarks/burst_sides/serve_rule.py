"""Ray Serve's request-based autoscaling: Ray's own functions, with the clock given to them.

What Serve does around them (ray/serve/_private/router.py, autoscaling_state.py): a handle records waiting and running
requests every `min(0.2 * look_back, metrics_interval)`, sends what is not older than the look-back every
`metrics_interval`, and at once when there is no replica; the controller decides every 0.1 s on the time-weighted mean
(or maximum) of what it was sent last; scaling factors, then delays, then bounds.

Owns: that frame. Must not know: what is being scaled, and on which clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from ray.serve import autoscaling_policy as rule
from ray.serve._private.common import DeploymentID, TimeStampedValue
from ray.serve._private.metrics_utils import aggregate_timeseries
from ray.serve.config import AggregationFunction, AutoscalingConfig, AutoscalingContext

CONTROL_LOOP_S = 0.1
METRICS_INTERVAL_S = 1.0
RECORD_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What can be tuned. Scaling up is never delayed, and requests are counted every second instead of every ten."""

    target_ongoing_requests: float
    look_back_period_s: float
    downscale_delay_s: float
    aggregation: str = "mean"

    def config(self, least: int, most: int) -> AutoscalingConfig:
        return AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            metrics_interval_s=METRICS_INTERVAL_S,
            target_ongoing_requests=self.target_ongoing_requests,
            look_back_period_s=self.look_back_period_s,
            upscale_delay_s=0.0,
            downscale_delay_s=self.downscale_delay_s,
            aggregation_function=AggregationFunction(self.aggregation),
        )


class ServeRule:
    """Numbers of requests in, numbers of replicas out."""

    def __init__(self, settings: ServeSettings, least: int, most: int) -> None:
        self._config = settings.config(least, most)
        self._look_back_s = settings.look_back_period_s
        self._record_s = min(RECORD_SHARE * self._look_back_s, METRICS_INTERVAL_S)
        self._recorded: deque[TimeStampedValue] = deque()
        self._sent: list[TimeStampedValue] = []
        self._sent_at_s = -math.inf
        self._state: dict[str, Any] = {}

    def observe(self, requests: int, replicas: int, now_s: float) -> None:
        """The handle's side: `requests` wait or run, on `replicas` that are running."""
        recorded = self._recorded
        if not recorded or now_s - recorded[-1].timestamp >= self._record_s - 1e-9:
            recorded.append(TimeStampedValue(now_s, float(requests)))
        while recorded[0].timestamp <= now_s - self._look_back_s and len(recorded) > 1:
            recorded.popleft()
        if now_s - self._sent_at_s >= METRICS_INTERVAL_S - 1e-9 or (not replicas and requests and not self._known()):
            self._sent, self._sent_at_s = [*recorded, TimeStampedValue(now_s, float(requests))], now_s

    def decide(self, running: int, target: int, now_s: float) -> int:
        """The controller's side: `running` replicas, of `target` that were ordered."""
        context = self._context(running, target, now_s)
        desired = rule._get_cold_start_scale_up_replicas(context)
        if desired is None:
            wanted, _ = rule._core_replica_queue_length_policy(context)
            desired = rule._apply_scaling_factors(wanted, running, self._config)
            if running or desired <= 0:
                desired, self._state = rule._apply_delay_logic(
                    max(0, desired), target, self._config, self._state, _now=now_s
                )
        return max(self._config.min_replicas, min(self._config.max_replicas, math.ceil(desired)))

    def _known(self) -> bool:
        return bool(self._sent) and self._sent[-1].value > 0

    def _context(self, running: int, target: int, now_s: float) -> AutoscalingContext:
        total = 0.0
        if self._sent:
            since_s = max(1e-3, now_s - self._sent[-1].timestamp)
            total = aggregate_timeseries(self._sent, self._config.aggregation_function, since_s) or 0.0
        return AutoscalingContext(
            deployment_id=DeploymentID("d"),
            deployment_name="d",
            app_name=None,
            current_num_replicas=running,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=total,
            total_queued_requests=None,
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=self._config.min_replicas,
            capacity_adjusted_max_replicas=self._config.max_replicas,
            policy_state={},
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now_s,
            config=self._config,
        )
