"""Role: the words every part shares. Owns: request classes and OpenAI service tiers, and how one maps to the other.

Must not know: Ray, engines, configuration, HTTP.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class RequestClass(StrEnum):
    """How work is treated. The order is the order of urgency."""

    ONLINE = "online"
    SEMI_ONLINE = "semi_online"
    OFFLINE = "offline"


SERVICE_TIERS: Final[tuple[str, ...]] = ("auto", "default", "priority", "flex")
"""The values of OpenAI's `service_tier` that a client may send."""

DEFAULT_TENANT: Final = "default"
"""Whose key a local cluster makes for its owner. An operator, unless the configuration says otherwise."""

UPSTREAM_PREFIX: Final = "upstream:"
"""Before an upstream's name where usage and metrics name a deployment. No deployment can be called so."""

BATCH_TIER: Final = "batch"
"""The tier of offline work. It appears in usage reports; clients get it through the Batch API, not by asking for it."""

_CLASS_OF_TIER: Final = {
    "default": RequestClass.ONLINE,
    "priority": RequestClass.ONLINE,
    "flex": RequestClass.SEMI_ONLINE,
    BATCH_TIER: RequestClass.OFFLINE,
}
_TIER_OF_CLASS: Final = {
    RequestClass.ONLINE: "default",
    RequestClass.SEMI_ONLINE: "flex",
    RequestClass.OFFLINE: BATCH_TIER,
}
_AUTO_TIERS: Final = ("default", "priority", "flex")


def class_of_tier(tier: str, auto_tier: str = "default") -> RequestClass:
    """The request class of a service tier; `auto` means `auto_tier`, which the operator or the tenant chose."""
    if auto_tier not in _AUTO_TIERS:
        raise ValueError(
            f"auto_tier {auto_tier!r} is not a tier that auto can mean; use one of {', '.join(_AUTO_TIERS)}"
        )
    concrete = auto_tier if tier == "auto" else tier
    if concrete not in _CLASS_OF_TIER:
        raise ValueError(f"unknown service_tier {tier!r}; use one of {', '.join(SERVICE_TIERS)}")
    return _CLASS_OF_TIER[concrete]


def tier_of_class(request_class: RequestClass | str) -> str:
    """The service tier that responses and usage reports name for a request class."""
    try:
        return _TIER_OF_CLASS[RequestClass(request_class)]
    except ValueError:
        known = ", ".join(RequestClass)
        raise ValueError(f"unknown request class {request_class!r}; use one of {known}") from None
