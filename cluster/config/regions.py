"""Role: the `region` section: where this cluster is, and which others serve the same models and tenants elsewhere.

Owns: addresses, distances and when a request may leave. Must not know: HTTP, or any key (upstreams.py has SecretRef).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from cluster.config.base import Name, Section
from cluster.config.upstreams import SecretRef, plain_address
from cluster.vocabulary import RequestClass


class PeerConfig(Section):
    """Another region's gateway."""

    base_url: str = Field(description="Up to the version, such as https://us-east.example.com/v1.")
    probe_key: SecretRef = Field(
        description="An API key of an operator of that region, with which its state is asked for."
    )
    keys: dict[Name, SecretRef] = Field(
        default={}, description="Tenants whose key there is another one; all others' own keys must work there."
    )
    rtt_ms: float | None = Field(default=None, ge=0, description="Round trip; null = as measured.")

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        return plain_address(url)


class RegionConfig(Section):
    """This region and its peers. Each of them names the others in its own configuration."""

    name: Name = Field(description="As peers and headers call this region.")
    ttft_slo_s: dict[RequestClass, Annotated[float, Field(gt=0)]] = Field(
        default={RequestClass.ONLINE: 1.0, RequestClass.SEMI_ONLINE: 30.0},
        description="By class, the time to the first byte beyond which requests go where it is shorter; a class that "
        "is not named stays here.",
    )
    peers: dict[Name, PeerConfig] = Field(min_length=1, description="By the name of the other region.")
    probe_interval_s: float = Field(default=1.0, ge=0.1, le=60, description="How often each peer is asked.")
    session_s: float = Field(default=600, gt=0, description="A session that went elsewhere stays there this long.")
