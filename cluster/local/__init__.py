"""A local cluster: start Ray on this machine, deploy the application, stop both and leave nothing behind.

Owns: the run file, the head process and what it started. Must not know: requests, policies, how replicas work.
"""

from cluster.local.errors import LocalClusterError
from cluster.local.run import RunInfo, read_run

__all__ = ["LocalClusterError", "RunInfo", "read_run"]
