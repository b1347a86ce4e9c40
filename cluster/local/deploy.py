"""Deploying the application through Serve's REST API: the same as `serve deploy`. Owns: the Serve config and its
status.

Must not know: processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cluster.config import TribesConfig
from cluster.local.auth import enable_token_auth
from cluster.local.errors import LocalClusterError

POLL_S = 0.5
APP = "tribes"


def dashboard_url(config: TribesConfig) -> str:
    return f"http://127.0.0.1:{config.ray.dashboard_port}"


def serve_config(config: TribesConfig) -> dict[str, Any]:
    """What `serve deploy` takes; the configuration travels inside, so nodes need no copy of the file."""
    return {
        "proxy_location": "HeadOnly" if config.ray.address is None else "EveryNode",
        "http_options": {"host": config.gateway.host, "port": config.gateway.port},
        "applications": [
            {
                "name": APP,
                "route_prefix": "/",
                "import_path": "serve_apps.app:build",
                "args": {"config": config.model_dump(mode="json")},
            }
        ],
    }


def deploy(config: TribesConfig) -> None:
    """Ask Serve for the application; returns at once."""
    client = _client(config)
    try:
        client.deploy_applications(serve_config(config))
    except RuntimeError as error:
        # Ray sends the traceback of its own server: the reason is at its end.
        reason = [line for line in str(error).splitlines() if len(line.strip()) > 1]
        raise LocalClusterError(f"Serve refused the application: {reason[-1] if reason else error}") from error


def wait_running(config: TribesConfig, timeout_s: float, progress: Callable[[str], None]) -> None:
    """Until every deployment has the replicas it should have; LocalClusterError when one cannot, or time is up."""
    deadline = time.monotonic() + timeout_s
    last = ""
    while True:
        app = app_details(config)
        line = _summary(app)
        if line != last:
            progress(line)
            last = line
        status = app.get("status")
        if status == "RUNNING":
            return
        if status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise LocalClusterError(f"the application is {status}: {_why(app)}")
        if time.monotonic() > deadline:
            raise LocalClusterError(f"not running after {timeout_s:.0f} s ({line}); see `serve status` and Ray's logs")
        time.sleep(POLL_S)


def app_details(config: TribesConfig) -> dict[str, Any]:
    """Serve's own description of the application; {} when it is not deployed."""
    details = _client(config).get_serve_details()
    app = details.get("applications", {}).get(APP, {})
    return dict(app)


def shutdown(config: TribesConfig, timeout_s: float) -> bool:
    """Delete the application and wait for its replicas to leave; False when they did not in time."""
    client = _client(config)
    client.delete_applications()
    deadline = time.monotonic() + timeout_s
    while app_details(config):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _client(config: TribesConfig) -> Any:
    enable_token_auth()
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    try:
        return ServeSubmissionClient(dashboard_url(config))
    except ConnectionError as error:
        raise LocalClusterError(f"no Ray dashboard at {dashboard_url(config)}: run `tribes up` first") from error


def _summary(app: dict[str, Any]) -> str:
    parts = []
    for name, deployment in sorted(app.get("deployments", {}).items()):
        states: dict[str, int] = {}
        for replica in deployment.get("replicas", []):
            states[replica["state"].lower()] = states.get(replica["state"].lower(), 0) + 1
        shown = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "0 replicas"
        parts.append(f"{name}: {shown}")
    return "; ".join(parts) or str(app.get("status", "waiting for Serve")).lower()


def _why(app: dict[str, Any]) -> str:
    messages = [app.get("message", "")]
    messages += [d.get("message", "") for d in app.get("deployments", {}).values() if d.get("status") != "HEALTHY"]
    return "\n".join(m for m in messages if m) or "Serve gave no reason; see its logs"
