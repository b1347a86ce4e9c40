"""`up` and `down`: the whole local cluster in one call each. Owns: the order of the steps. Must not know: their
insides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.config import TribesConfig
from cluster.local import deploy, head
from cluster.local.auth import enable_token_auth
from cluster.local.keys import default_key
from cluster.local.run import read_run
from cluster.models import prepare_model
from cluster.state import Store

DEPLOY_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Started:
    """Where the cluster is, and the key to talk to it."""

    api_url: str
    dashboard_url: str
    api_key: str
    reused: bool
    """The cluster was up already; the configuration was applied to it."""


def up(config: TribesConfig, progress: Callable[[str], None]) -> Started:
    """Start Ray (or join `ray.address`), deploy, and wait until the application runs."""
    enable_token_auth()
    for name, model in config.models.items():
        prepare_model(name, model, config.paths, progress)
    store = Store(config.state.url)
    store.create()
    store.add_tenants({name: tenant.model_dump(mode="json") for name, tenant in config.tenants.items()})
    key = default_key(config, store)
    run = read_run(config)
    reused = run is not None and run.is_alive()
    if config.ray.address is None:
        progress("Ray is up already" if reused else "starting Ray")
        head.start_head(config)
    progress("deploying the gateway and the engines")
    deploy.deploy(config)
    deploy.wait_running(config, DEPLOY_TIMEOUT_S, progress)
    api_url = f"http://{config.gateway.host}:{config.gateway.port}/v1"
    return Started(api_url, deploy.dashboard_url(config), key, reused)


def down(config: TribesConfig, grace_s: float, progress: Callable[[str], None]) -> bool:
    """Stop the application and the local Ray; False when nothing was running."""
    enable_token_auth()
    run = read_run(config)
    if run is None:
        return False
    if run.is_alive():
        progress("stopping the application")
        if not deploy.shutdown(config, grace_s):
            progress(f"requests still ran after {grace_s:.0f} s: stopping anyway")
    progress("stopping Ray")
    return head.stop_head(config)
