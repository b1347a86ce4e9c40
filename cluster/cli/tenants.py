"""Tenants in the state store, as commands need them. Owns: merging a policy. Must not know: options, the screen."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from cluster.cli.errors import UsageError
from cluster.config import TenantConfig, TribesConfig
from cluster.config.base import NAME_PATTERN, PATTERN_CURES
from cluster.state import Store


def open_store(config: TribesConfig) -> Store:
    """The state store with its tables and the configured tenants in it."""
    store = Store(config.state.url)
    store.create()
    store.add_tenants({name: tenant.model_dump(mode="json") for name, tenant in config.tenants.items()})
    return store


def merged_policy(existing: dict[str, Any], weight: float | None, limits: dict[str, int | None]) -> dict[str, Any]:
    """The tenant's policy with what was given changed and everything else kept."""
    given = {name: value for name, value in limits.items() if value is not None}
    merged = {**existing, "limits": {**existing.get("limits", {}), **given}}
    if weight is not None:
        merged["weight"] = weight
    try:
        return TenantConfig.model_validate(merged).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{where}: {first['msg']} (got {first['input']})") from None


def check_name(config: TribesConfig, tenant: str) -> None:
    """The same rule as for tenants in the configuration: names become metric labels."""
    if tenant not in config.tenants and not re.match(NAME_PATTERN, tenant):
        raise UsageError(f"tenant {tenant!r}: {PATTERN_CURES[NAME_PATTERN]}")
