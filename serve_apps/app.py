"""The Serve application: `serve_apps.app:build`, used by `tribes up` and by plain `serve deploy` / `serve run` alike.

Owns: which deployments there are and with which Serve options. Must not know: what they do.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` to make its typed argument.
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from cluster.config import DeploymentConfig, TribesConfig, load_config
from serve_apps.autoscale import BacklogPolicy
from serve_apps.deferred.deployment import DeferredWorker
from serve_apps.fork_hosts import ForkHosts, forked_deployments
from serve_apps.gateway import serve_ingress
from serve_apps.gateway.deployment import GatewayDeployment, OwnDoor
from serve_apps.names import GATEWAY
from serve_apps.replica import EngineReplica

STREAMS_PER_GATEWAY = 100_000
"""Serve's own limit must never bind: the dispatcher's bounds do."""
NEAR_SERVE = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": serve_ingress.IMPORT_PATH,
}
"""By default Serve runs an application on a thread of its own and passes every message, so every token, from one event
loop to the other. A gateway never blocks its loop, so it can live on Serve's.

And it has wishes to the server that Serve puts before it (gateway/serve_ingress.py)."""
NO_ACCESS_LOG = {"enable_access_log": False}
"""A line in a file for each request, on the request's way. The ledger and the metrics know more."""
OWN_DOOR = "own-door"
DEFERRED_WORKER = "deferred-worker"
FORK_HOSTS = "fork-hosts"
SURGE_PERCENT = 100
"""Of gateways: in an update the new ones listen before the old ones stop. Engines may have no room for as many more."""


class AppArgs(BaseModel, extra="forbid"):
    """Arguments of the application in a Serve config file: the path of a configuration file, or its content."""

    config: str | dict[str, Any]


def build(args: AppArgs) -> Application:
    """The application for one configuration."""
    config = _load(args.config) if isinstance(args.config, str) else TribesConfig.model_validate(args.config)
    plain = config.model_dump(mode="json")
    engines = [_engine(config, name, item).bind(plain, name) for name, item in config.serving().items()]
    doors = [_own_door(config).bind(plain)] if config.gateway.own_door.port is not None else []
    hosts = [_fork_hosts().bind(plain)] if forked_deployments(config) else []
    return _gateway(config).bind(plain, *engines, *doors, *hosts, _worker(config).bind(plain))


def _load(name: str) -> TribesConfig:
    """Serve builds in a worker whose folder is not the user's: a relative path may also start at this checkout."""
    beside = Path(__file__).parents[1] / name
    return load_config(beside if not Path(name).exists() and beside.exists() else name)


def _gateway(config: TribesConfig) -> Any:
    return serve.deployment(
        GatewayDeployment,
        name=GATEWAY,
        num_replicas=config.gateway.replicas,
        max_surge_percent=SURGE_PERCENT,
        max_ongoing_requests=STREAMS_PER_GATEWAY,
        ray_actor_options={"num_cpus": config.gateway.cpus, "runtime_env": {"env_vars": NEAR_SERVE}},
        logging_config=NO_ACCESS_LOG,
        graceful_shutdown_timeout_s=30,
    )


def _own_door(config: TribesConfig) -> Any:
    return serve.deployment(
        OwnDoor,
        name=OWN_DOOR,
        num_replicas=config.gateway.own_door.processes,
        max_surge_percent=SURGE_PERCENT,
        ray_actor_options={"num_cpus": config.gateway.cpus},
        graceful_shutdown_timeout_s=30,
    )


def _worker(config: TribesConfig) -> Any:
    return serve.deployment(
        DeferredWorker,
        name=DEFERRED_WORKER,
        num_replicas=config.batches.workers,
        ray_actor_options={"num_cpus": config.batches.cpus},
        graceful_shutdown_timeout_s=30,
    )


def _fork_hosts() -> Any:
    return serve.deployment(ForkHosts, name=FORK_HOSTS, ray_actor_options={"num_cpus": 0})


def _engine(config: TribesConfig, name: str, item: DeploymentConfig) -> Any:
    return serve.deployment(
        EngineReplica,
        name=name,
        ray_actor_options=_actor_options(config, item),
        # The engine drains inside the replica's destructor; Serve waits that long and a little more.
        graceful_shutdown_timeout_s=item.replicas.drain_timeout_s + 30,
        health_check_period_s=1,
        health_check_timeout_s=30,
        **_replicas(name, item),
    )


def _replicas(name: str, item: DeploymentConfig) -> dict[str, Any]:
    if item.replicas.min == item.replicas.max:
        return {"num_replicas": item.replicas.max}
    policy = AutoscalingPolicy(policy_function=BacklogPolicy, policy_kwargs={"model": item.model, "deployment": name})
    # The policy has its own hysteresis: Serve's delays would only come on top.
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=item.replicas.min,
            max_replicas=item.replicas.max,
            initial_replicas=item.replicas.min,
            upscale_delay_s=0,
            downscale_delay_s=0,
            downscale_to_zero_delay_s=0,
            metrics_interval_s=1,
            policy=policy,
        )
    }


def _actor_options(config: TribesConfig, item: DeploymentConfig) -> dict[str, Any]:
    pool, resources = config.pools[item.pool], item.resources
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.memory_gib is not None:
        options["memory"] = int(resources.memory_gib * 2**30)
    if resources.custom:
        options["resources"] = dict(resources.custom)
    if pool.accelerator_type is not None:
        options["accelerator_type"] = pool.accelerator_type
    if pool.labels:
        options["label_selector"] = dict(pool.labels)
    return options
