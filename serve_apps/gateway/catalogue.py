"""What the gateway looks up for every request, worked out once: models, their doors, and who serves which class.

A model need not be deployed for every class, nor does every engine have every door: a request goes to the nearest class
in which whatever replica it may be given has the door.

Owns: these look-ups. Must not know: bodies, callers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from cluster.config import DeploymentConfig, TribesConfig
from cluster.engines import engine_path
from cluster.vocabulary import SERVICE_TIERS, RequestClass, class_of_tier, tier_of_class
from serve_apps.gateway.doors import BY_PATH, Door
from serve_apps.gateway.errors import ApiError

TIERS: Final = {request_class: tier_of_class(request_class) for request_class in RequestClass}
_ONLINE, _SEMI, _OFFLINE = RequestClass.ONLINE, RequestClass.SEMI_ONLINE, RequestClass.OFFLINE
_NEAREST: Final = {
    _ONLINE: (_ONLINE, _SEMI),
    _SEMI: (_SEMI, _ONLINE),
    _OFFLINE: (_OFFLINE, _SEMI, _ONLINE),
}
"""Where work of a class may run, best first."""

Classes = Mapping[RequestClass, RequestClass]
"""Class that is asked for -> class that serves it; empty where none does."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as clients can ask for it."""

    model: str
    max_model_len: int | None
    engines: tuple[str, ...]
    """Kinds of engine behind the gateway that have the model."""
    classes: Mapping[str, Classes]
    """By the door's path."""
    by_prefix: Collection[RequestClass]
    """Classes in which what a prompt begins with decides something."""

    def served_class(self, door: Door, wanted: RequestClass) -> RequestClass:
        """Raises ApiError 404 where nothing behind the gateway could take the request."""
        found = self.classes[door.path].get(wanted)
        if found is None:
            raise self._not_served(door)
        return found

    def _not_served(self, door: Door) -> ApiError:
        if not any(self.classes.values()):
            message = f"model {self.model!r} is deployed for batch jobs only"
            return ApiError(404, "model_not_served", message, param="model")
        served_by = " and ".join(self.engines) or "an upstream"
        message = (
            f"model {self.model!r} has no {door.path}: it is served by {served_by}. Use another model, or have it "
            "deployed on an engine that has this call (`engine.kind`; docs/online.md lists them)"
        )
        return ApiError(404, "unsupported_by_engine", message)


class Catalogue:
    """Made once from the configuration."""

    def __init__(self, config: TribesConfig) -> None:
        self.cache_salt = config.gateway.cache_salt
        self.class_of_tier = {tier: class_of_tier(tier, config.gateway.auto_tier) for tier in SERVICE_TIERS}
        self.served = config.served_models()
        """What clients can ask for."""
        self._offers = {name: _offer(name, config) for name in dict.fromkeys((*config.models, *self.served))}

    def offer(self, model: object) -> Offer:
        """The model that a body names. Raises ApiError 400 where it names none and 404 for an unknown one."""
        if not isinstance(model, str):
            raise ApiError(400, "missing_model", "the body needs a `model`", param="model")
        offer = self._offers.get(model)
        if offer is None:
            known = ", ".join(self._offers)
            raise ApiError(404, "model_not_found", f"unknown model {model!r}; known: {known}", param="model")
        return offer


def _offer(model: str, config: TribesConfig) -> Offer:
    deployments = [item for item in config.serving().values() if item.model == model]
    known = config.models.get(model)
    return Offer(
        model=model,
        max_model_len=known.max_model_len if known else None,
        engines=tuple(sorted({item.engine.kind for item in deployments})),
        classes=_rented(model, config) or {path: _classes(path, deployments) for path in BY_PATH},
        by_prefix=tuple(c for c in RequestClass if config.looks_at_prefixes(model, c)),
    )


def _rented(model: str, config: TribesConfig) -> Mapping[str, Classes]:
    """A model that only upstreams have is there for every class alike. Empty for others."""
    if not config.only_upstream(model):
        return {}
    paths = {path for upstream in config.upstreams_of(model).values() for path in upstream.paths}
    return {path: dict(zip(RequestClass, RequestClass, strict=True)) if path in paths else {} for path in BY_PATH}


def _classes(path: str, deployments: Collection[DeploymentConfig]) -> Classes:
    lacking = {c for item in deployments if engine_path(item.engine.kind, path) is None for c in item.serves}
    served = {c for item in deployments for c in item.serves} - lacking
    found = {wanted: next((c for c in near if c in served), None) for wanted, near in _NEAREST.items()}
    return {wanted: c for wanted, c in found.items() if c is not None}
