"""Role: how many replicas of a bursty class stay up. Owns: the closed form. Must not know: why a replica has its rate.

A burst comes at once with r requests/s; k replicas of m requests/s are warm, the others serve after c seconds of cold
start. Whoever arrives t seconds into it waits for r t requests: while only the warm ones work until t r / (k m), and
from c on for nearly nothing, as then all together are faster than the burst. The one that waits longest arrives when
the warm ones are busy exactly until c, at t = c k m / r, and waits

    c (1 - k m / r)     so that a wait of w needs   k >= r / m (1 - w / c),   none where w >= c.
"""

from __future__ import annotations

import math


def floor_replicas(
    peak_requests_per_s: float, replica_requests_per_s: float, wait_s: float, cold_start_s: float
) -> int:
    """Warm replicas that keep every wait within `wait_s`."""
    if cold_start_s <= wait_s:
        return 0
    needed = peak_requests_per_s / replica_requests_per_s * (1 - wait_s / cold_start_s)
    return max(1, math.ceil(needed - 1e-9))


def mean_replicas(floor: int, most: int, mean_requests_per_s: float, peak_requests_per_s: float) -> float:
    """Paid on average, where load is either none or the peak."""
    return floor + max(0, most - floor) * min(1.0, mean_requests_per_s / peak_requests_per_s)
