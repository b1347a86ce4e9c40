"""Role: the `tenants` section. Owns: shares, limits and default tiers. Must not know: API keys or the state store."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.config.base import Section
from cluster.config.upstreams import TenantUpstreams


class LimitsConfig(Section):
    """Upper bounds for one tenant; null = unlimited."""

    max_concurrent: int | None = Field(default=None, ge=1, description="Requests running at once.")
    max_queued: int | None = Field(
        default=None, ge=0, description="Requests waiting at once; 0 = refuse instead of queueing."
    )
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_day: int | None = Field(
        default=None, ge=1, description="Prompt and output tokens a day (UTC), all models together."
    )
    usd_per_day: float | None = Field(default=None, gt=0, description="Dollars a day (UTC), all models together.")


class TenantConfig(Section):
    """A billing unit that shares the cluster with the others."""

    weight: float = Field(default=1, gt=0, description="Share of a contended class, relative to the other tenants.")
    limits: LimitsConfig = LimitsConfig()
    default_tier: Literal["auto", "default", "priority", "flex"] = Field(
        default="auto", description="The tier of requests that name none; auto = what gateway.auto_tier says."
    )
    operator: bool | None = Field(
        default=None,
        description="Its keys may read what names every tenant: /metrics, /tribes/status, /tribes/region. "
        "null = only the tenant `default` may.",
    )
    upstreams: TenantUpstreams = Field(
        default={},
        description="What holds for this tenant instead of `use` of an upstream, by its name (* = all others), and its "
        "own budget there: never, or {frontier: never, spare: {use: on_overload, usd_per_day: 5}}.",
    )
