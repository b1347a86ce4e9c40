"""Who asks for what, and when: recorded traces in their formats, and drawn ones.

Owns: reading and drawing requests. Must not know: engines, queues, results.
"""

from cluster.simulation.workload.synthetic import Lengths, TenantLoad, draw
from cluster.simulation.workload.traces import Trace, TraceError, load_trace

__all__ = ["Lengths", "TenantLoad", "Trace", "TraceError", "draw", "load_trace"]
