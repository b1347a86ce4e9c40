"""Role: the `scheduling` section. Owns: the numbers that the pure policies read. Must not know: the policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field, field_validator

from cluster.config.base import Section
from cluster.vocabulary import RequestClass


def _drop_defaults(schema: dict[str, Any]) -> None:
    """The defaults differ per class (CLASS_DEFAULTS): one number shown in an editor would be wrong for two of them."""
    for field in schema["properties"].values():
        field.pop("default", None)


class ClassConfig(Section):
    """Queue bounds and guaranteed share of one request class. Keys left out keep that class's own default."""

    model_config = ConfigDict(json_schema_extra=_drop_defaults)

    max_queued: int = Field(
        default=4096, ge=0, description="Requests of this class that may wait, all tenants together."
    )
    max_wait_s: float = Field(default=600, gt=0, description="A request that waited this long is refused.")
    floor: float = Field(
        default=0, ge=0, lt=1, description="Share of the service guaranteed while this class has a backlog."
    )
    max_age_s: float | None = Field(
        default=None,
        gt=0,
        description="When its oldest request has waited this long, the class goes before more important ones, within "
        "scheduling.raised_share; null = never.",
    )


CLASS_DEFAULTS: Final[Mapping[RequestClass, ClassConfig]] = {
    RequestClass.ONLINE: ClassConfig(max_queued=512, max_wait_s=30, floor=0),
    RequestClass.SEMI_ONLINE: ClassConfig(max_queued=4096, max_wait_s=600, floor=0.1, max_age_s=60),
    RequestClass.OFFLINE: ClassConfig(max_queued=4096, max_wait_s=86400, floor=0.02, max_age_s=3600),
}


class RoutingConfig(Section):
    """Which replica a request goes to, where a model has several."""

    prefix: bool = Field(
        default=False,
        description="Look at what prompts begin with (gateways hash at most 16 KiB) and prefer replicas that have it "
        "cached: for traffic that names no sessions or shares documents. false = only sessions count. No effect on a "
        "class for which a model has one replica at most.",
    )
    stay_s: float = Field(
        default=0.05,
        ge=0,
        le=60,
        description="A session leaves its replica when its first token would come this much sooner elsewhere, what is "
        "cached and what has to be prefilled before it counted on both sides.",
    )
    load_factor: float = Field(
        default=1.25,
        gt=1,
        le=100,
        description="A session that nobody remembers goes to its place on a hash ring, up to this multiple of the mean "
        "load.",
    )


class SchedulingConfig(Section):
    """What a token costs in the fair queue, and how the classes share the slots."""

    input_weight: float = Field(default=1, ge=0, description="Service charged per uncached input token.")
    output_weight: float = Field(default=2, gt=0, description="Service charged per output token.")
    fairness: Literal["vtc", "dlpm"] = Field(
        default="vtc",
        description="How tenants take turns: vtc = the one with the least service per weight; dlpm = among those "
        "within locality_quantum_tokens of it, the request whose prompt is cached on a free replica.",
    )
    locality_quantum_tokens: float = Field(
        default=4096,
        gt=0,
        description="dlpm: service by which a tenant may run ahead of the others for a cached prefix. Small = like "
        "vtc, large = like serving the longest cached prefix first.",
    )
    routing: RoutingConfig = RoutingConfig()
    max_queued: int | None = Field(
        default=8192,
        ge=0,
        description="Requests that may wait, all classes together; beyond it the least important class is shed first. "
        "null = only the classes' own bounds.",
    )
    raised_share: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Most of the service that aged or urgent work may take from more important classes, beside floors.",
    )
    deadline_margin_s: float = Field(
        default=60,
        ge=0,
        description="A class with a deadline nearer than this (or than twice its usual run time) goes before more "
        "important ones, within raised_share.",
    )
    classes: dict[RequestClass, ClassConfig] = Field(
        default_factory=lambda: dict(CLASS_DEFAULTS),
        description="Per class; classes and keys that are left out keep their defaults.",
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """Lay what was given over the defaults, so that changing one number does not lose the others."""
        if not isinstance(given, Mapping):
            return given
        merged: dict[Any, Any] = {name: config.model_dump() for name, config in CLASS_DEFAULTS.items()}
        for name, config in given.items():
            if isinstance(config, Mapping) and name in merged:
                merged[name] = {**merged[name], **config}
            else:
                merged[name] = config
        return merged
