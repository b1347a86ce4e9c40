"""The local Ray head: `ray start --head --block` as a process of its own. Owns: its environment, start and end.

Must not know: Serve, deployments.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from cluster.config import TribesConfig
from cluster.engines import free_port
from cluster.local import processes
from cluster.local.errors import LocalClusterError
from cluster.local.run import RunInfo, read_run, remove_run, write_run

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
JOB_STOP_WAIT_S = 30
LOG_LINES = 25


def start_head(config: TribesConfig) -> RunInfo:
    """Start Ray on this machine, or return the run that is up already."""
    run = read_run(config)
    if run is not None and run.is_alive():
        return run
    if run is not None:
        _sweep(config, run)
    _check_ports(config)
    marker = uuid.uuid4().hex
    log_path = config.paths.data / "logs" / "ray-head.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            _command(config), env=_environment(config, marker), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    ports = (config.ray.port, config.ray.dashboard_port, config.gateway.port)
    run = RunInfo(process.pid, marker, time.time(), *ports)
    write_run(config, run)
    try:
        _wait_started(config, process, log_path)
    except BaseException:
        stop_head(config)
        raise
    return run


def stop_head(config: TribesConfig) -> bool:
    """End the head and everything it started. False when nothing was running."""
    run = read_run(config)
    if run is None:
        return False
    if run.is_alive():
        # The head ends its own children on SIGTERM; the sweep takes what was orphaned.
        processes.end([run.pid], STOP_TIMEOUT_S)
    _sweep(config, run)
    return True


def _sweep(config: TribesConfig, run: RunInfo) -> None:
    left = processes.marked_pids(run.marker)
    if left:
        processes.end(left, grace_s=5.0)
    remove_run(config)


def _command(config: TribesConfig) -> list[str]:
    ray = Path(sys.executable).with_name("ray")
    options = {
        "--port": config.ray.port,
        "--dashboard-port": config.ray.dashboard_port,
        "--dashboard-host": "127.0.0.1",
        # Any free port: a second cluster on this machine could not take jobs with Ray's fixed one.
        "--dashboard-agent-listen-port": 0,
        "--object-store-memory": int(config.ray.object_store_gib * 2**30),
        "--num-cpus": config.ray.num_cpus,
        "--temp-dir": config.ray.temp_dir,
    }
    given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    return [str(ray), "start", "--head", "--block", "--disable-usage-stats", *given]


def _environment(config: TribesConfig, marker: str) -> dict[str, str]:
    environment = {
        **os.environ,
        "TRIBES_RUN": marker,
        # The same interpreter for every worker, whatever PATH says.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        # Ray makes its workers nice (15); engines would then lag behind whatever else the machine does.
        "RAY_worker_niceness": "0",
        # The application is stopped before: nothing is left to drain on this node.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # A stopped offline job commits what it has finished. Ray would kill it 3 s after its SIGTERM.
        "RAY_JOB_STOP_WAIT_TIME_S": os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", str(JOB_STOP_WAIT_S)),
        # Replicas that leave need not wait for balancers to notice: HAProxy is told at once, and retries.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }
    # HAProxy's fixed side ports would keep a second cluster off this machine, and its default of 120 s would cut
    # streams that are longer than that whenever the gateway's replicas change. The port of the proxy to which it falls
    # back while an application starts would even be shared: one cluster would answer the other's requests.
    environment["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] = str(free_port("127.0.0.1"))
    environment["RAY_SERVE_HAPROXY_METRICS_PORT"] = str(free_port("0.0.0.0"))
    environment["RAY_SERVE_HAPROXY_STATS_PORT"] = str(free_port("0.0.0.0"))
    environment["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] = "3600"
    environment["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if config.ray.haproxy else "0"
    return environment


def _check_ports(config: TribesConfig) -> None:
    ports = {
        "gateway.port": config.gateway.port,
        "ray.port": config.ray.port,
        "ray.dashboard_port": config.ray.dashboard_port,
    }
    for key, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                message = f"port {port} ({key}) is taken: stop what listens there or set {key} to a free one"
                raise LocalClusterError(message) from error


def _wait_started(config: TribesConfig, process: subprocess.Popen[bytes], log_path: Path) -> None:
    """Until GCS and dashboard answer; bounded."""
    deadline = time.monotonic() + START_TIMEOUT_S
    waiting = {config.ray.port, config.ray.dashboard_port}
    while waiting:
        waiting = {port for port in waiting if not _listens(port)}
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise LocalClusterError(f"Ray did not start; its log {log_path} ends with:\n{tail}")
        time.sleep(0.2)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
