"""Plain Ray Serve before the engine: `plain_app.py` on a cluster of its own, as shipped or behind HAProxy.

Ray's head is started exactly as this project's is, with the same settings of Ray, so that only what runs on it differs.
Owns: start and stop. Must not know: what the application does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gateway_sides.load import Door
from benchmarks.gateway_sides.up import Up, wait_answering
from cluster.config import TribesConfig
from cluster.local import deploy, head, processes
from cluster.local.isolate import isolated

SHIPPED, HAPROXY = "serve", "serve_haproxy"
IMPORT_PATH = "benchmarks.gateway_sides.plain_app:build"
DEPLOY_TIMEOUT_S = 180.0
STOP_GRACE_S = 5.0


@contextlib.contextmanager
def plain_serve(name: str, engine: Door, folder: Path, say: Callable[[str], None]) -> Iterator[Up]:
    config = isolated(_cluster(folder, haproxy=name == HAPROXY), folder)
    folder.mkdir(parents=True, exist_ok=True)
    application = application_config(config, engine)
    run = head.start_head(config)
    try:
        deploy_application(config, application)
        deploy.wait_running(config, DEPLOY_TIMEOUT_S, say)
        door = Door(f"http://{config.gateway.host}:{config.gateway.port}", engine.api_keys, engine.model)
        wait_answering(door, run.pid, config.paths.data / "logs" / "ray-head.log")
        application["applications"][0]["args"] = {}  # the engine's key is in it
        shown = {"serve": application, "haproxy": config.ray.haproxy}
        yield Up({name: door}, lambda: set(processes.marked_pids(run.marker)), shown)
    finally:
        with contextlib.suppress(Exception):  # it may not have got so far; the head goes in any case
            deploy.shutdown(config, STOP_GRACE_S)
        head.stop_head(config)


def application_config(config: TribesConfig, engine: Door) -> dict[str, Any]:
    """What `serve deploy` takes."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": config.gateway.host, "port": config.gateway.port},
        "applications": [
            {
                # The name under which cluster.local.deploy looks for an application.
                "name": deploy.APP,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {"url": engine.base_url, "key": engine.api_keys[0]},
            }
        ],
    }


def deploy_application(config: TribesConfig, application: dict[str, Any]) -> None:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    ServeSubmissionClient(deploy.dashboard_url(config)).deploy_applications(application)


def _cluster(folder: Path, *, haproxy: bool) -> TribesConfig:
    """Only its ports, its folder and Ray's settings are used."""
    return TribesConfig.model_validate(
        {
            "models": {"unused": {"source": {"kind": "local", "path": str(folder)}}},
            "deployments": {"unused": {"model": "unused", "serves": ["online"], "engine": {"kind": "vllm"}}},
            "paths": {"data": str(folder)},
            "ray": {"num_cpus": 4, "object_store_gib": 0.2, "haproxy": haproxy},
        }
    )
