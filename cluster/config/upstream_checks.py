"""Role: the rules that tie upstreams to the other sections. Owns: those checks and their messages.

Must not know: YAML, files or the root class. Like checks.py it reads plain data and skips values of the wrong type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.config.errors import KeyPath, Problem, unknown_reference
from cluster.config.upstreams import ANY_UPSTREAM
from cluster.vocabulary import RequestClass

Data = Mapping[str, Any]


def upstream_problems(data: Data) -> Iterator[Problem]:
    upstreams = _mapping(data.get("upstreams"))
    served = _served_models(data)
    for name, upstream in upstreams.items():
        if isinstance(upstream, Mapping):
            path: KeyPath = ("upstreams", str(name))
            yield from _check_tenants(path, upstream, data)
            yield from _check_models(path, upstream, served)
            yield from _check_budget(path, upstream)
    for tenant, section in _mapping(data.get("tenants")).items():
        overrides = section.get("upstreams") if isinstance(section, Mapping) else None
        for name in _mapping(overrides):
            if name != ANY_UPSTREAM and name not in upstreams:
                message = unknown_reference("upstream", name, upstreams)
                yield Problem(("tenants", str(tenant), "upstreams", str(name)), message)


def _mapping(value: Any) -> Data:
    return value if isinstance(value, Mapping) else {}


def _served_models(data: Data) -> set[Any]:
    """Models that have a deployment behind the gateway."""
    sections = [item for item in _mapping(data.get("deployments")).values() if isinstance(item, Mapping)]
    return {str(item.get("model")) for item in sections if item.get("serves") != [RequestClass.OFFLINE]}


def _check_tenants(path: KeyPath, upstream: Data, data: Data) -> Iterator[Problem]:
    named, tenants = upstream.get("tenants"), data.get("tenants", {"default": {}})
    if isinstance(named, list) and isinstance(tenants, Mapping):
        for place, tenant in enumerate(named):
            if isinstance(tenant, str) and tenant not in tenants:
                yield Problem((*path, "tenants", place), unknown_reference("tenant", tenant, tenants))


def _check_models(path: KeyPath, upstream: Data, served: set[Any]) -> Iterator[Problem]:
    if upstream.get("use") != "never":
        return
    for model in _mapping(upstream.get("models")):
        if model not in served:
            message = "no deployment serves this model and use: never keeps it from here; add one, or change use"
            yield Problem((*path, "models", str(model)), message)


def _check_budget(path: KeyPath, upstream: Data) -> Iterator[Problem]:
    prices = _mapping(upstream.get("usd_per_mtok"))
    if upstream.get("usd_per_day") is not None and prices and not any(prices.values()):
        yield Problem((*path, "usd_per_day"), "never binds, as all prices are 0; give prices, or remove it")
