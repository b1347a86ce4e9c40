"""What the demo sends to whom. Owns: choosing models, deployments and tenants of a configuration, and keys for the run.

Must not know: requests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.cli.errors import UsageError
from cluster.cli.tenants import open_store
from cluster.config import TribesConfig
from cluster.vocabulary import DEFAULT_TENANT, RequestClass

TENANTS = ("team-a", "team-b", "team-c")


@dataclass(frozen=True, slots=True)
class Targets:
    """A model for each class, and the deployments whose first class it is."""

    online_model: str
    burst_model: str
    offline_model: str
    online: tuple[str, ...]
    burst: tuple[str, ...]


def choose(config: TribesConfig) -> Targets:
    """The first model of the configuration for each class. UsageError when a class has no deployment of its own."""
    online = _first_model(config, RequestClass.ONLINE)
    burst = _first_model(config, RequestClass.SEMI_ONLINE)
    return Targets(
        online,
        burst,
        _first_model(config, RequestClass.OFFLINE),
        _deployments(config, online, RequestClass.ONLINE),
        _deployments(config, burst, RequestClass.SEMI_ONLINE),
    )


def tenants(config: TribesConfig) -> list[str]:
    """Three tenants: those of the configuration first."""
    named = [name for name in config.tenants if name != DEFAULT_TENANT]
    return list(dict.fromkeys([*named, *TENANTS]))[: len(TENANTS)]


@contextlib.contextmanager
def keys_for(config: TribesConfig, names: list[str]) -> Iterator[dict[str, str]]:
    """A key for each tenant, revoked at the end: only hashes are stored, so that a later run could not reuse them."""
    store = open_store(config)
    made = {name: store.create_key(name) for name in names}
    try:
        yield {name: secret for name, (_, secret) in made.items()}
    finally:
        for key_id, _ in made.values():
            store.revoke_key(key_id)
        store.close()


def weights(config: TribesConfig, names: list[str]) -> dict[str, float]:
    """The tenants' weights as the store has them: `tribes keys create --weight` may have changed them."""
    store = open_store(config)
    try:
        policies = store.tenants()
    finally:
        store.close()
    return {name: float(policies.get(name, {}).get("weight", 1.0)) for name in names}


def _first_model(config: TribesConfig, request_class: RequestClass) -> str:
    for item in config.deployments.values():
        if item.own_class is request_class and (item.in_process or request_class is not RequestClass.OFFLINE):
            return item.model
    raise UsageError(
        f"the demo needs a deployment whose first class is {request_class}: add one, or use configs/local.yaml"
    )


def _deployments(config: TribesConfig, model: str, request_class: RequestClass) -> tuple[str, ...]:
    served = config.serving().items()
    return tuple(name for name, item in served if item.model == model and item.own_class is request_class)
