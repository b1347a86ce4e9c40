"""Names of actors and applications, and how to reach the dispatcher. Owns: names only. Must not know: what they do."""

from __future__ import annotations

from typing import Any

import ray

NAMESPACE = "tribes"
SERVE_APP = "tribes"
GATEWAY = "gateway"
MAX_CONCURRENT_CALLS = 10_000


def dispatcher_name(model: str) -> str:
    return f"dispatcher:{model}"


def get_dispatcher(model: str) -> Any:
    """The running dispatcher of a model; ValueError when there is none."""
    return ray.get_actor(dispatcher_name(model), namespace=NAMESPACE)


def ensure_dispatcher(config: dict[str, Any], model: str) -> Any:
    """The dispatcher of a model, created when missing. Ray restarts it whenever it dies, with this `config`; the latest
    one comes back to it from the gateways' memory."""
    from serve_apps.dispatcher import Dispatcher

    options: dict[str, Any] = {
        "name": dispatcher_name(model),
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": MAX_CONCURRENT_CALLS,
    }
    return ray.remote(Dispatcher).options(**options).remote(config, model)
