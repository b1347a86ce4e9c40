"""A request to a model as the gateway understands it: the few fields it needs, and the bytes the engine gets.

Everything else in the body passes through unread, so new engine parameters work the day the engine has them.
Owns: parsing, class and size estimates. Must not know: leases, connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from cluster.vocabulary import SERVICE_TIERS, RequestClass
from serve_apps.gateway import salt
from serve_apps.gateway.apis import messages
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.catalogue import TIERS, Catalogue, Offer
from serve_apps.gateway.doors import BY_PATH, DOORS, RESPONSES_PATH, Door
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.hints import Hints, deadline_of, program_of, session_of
from serve_apps.gateway.prefix import leading_blocks
from serve_apps.gateway.splice import with_fields

BACKGROUND_PATHS = tuple(path for path, door in BY_PATH.items() if door.background)
BYTES_PER_TOKEN = 4
DEFAULT_OUTPUT_TOKENS = 512
"""Assumed bound where a request names none; predictions come from the tenant's own history."""
_TRUE = (True, "true", "True", "1")


@dataclass(slots=True, unsafe_hash=True)
class GenerationRequest:
    """What the gateway knows about one request. Token counts are estimates for scheduling; bills use the engine's.
    Never changed; not frozen, because that would make it several times as slow to build.
    """

    path: str
    """The door's: one of `doors.BY_PATH`, whatever name of it the client used."""
    model: str
    request_class: RequestClass
    tier: str | None
    """The tier that the answer names; None where answers name none."""
    stream: bool
    background: bool
    wants_usage: bool
    """The client asked for the stream's usage event; the gateway always asks the engine for it."""
    session: str | None
    program: str | None
    deadline_at_s: float | None
    prefix: tuple[int, ...]
    prompt_tokens: int
    max_output_tokens: int
    salt: str | None
    body: bytes
    """Without a cache salt: that depends on the engine that gets it."""


def parse_request(
    path: str,
    raw: bytes,
    caller: Caller,
    catalogue: Catalogue,
    hints: Hints,
    *,
    request_class: RequestClass | None = None,
    deadline_at_s: float | None = None,
) -> GenerationRequest:
    """Raises ApiError 400 for a body that cannot be used and 404 for a model that is unknown or has no such door.

    `request_class`: accepted work that runs now, in this class and with nobody connected, so not as a stream.
    """
    door = DOORS[path]
    parsed = json_object(raw)
    offer = catalogue.offer(parsed.get("model"))
    tier, served_class = _tier_and_class(door, parsed, caller, offer, catalogue, request_class)
    if door.path == RESPONSES_PATH:
        _check_references(parsed)
    accepted = request_class is not None
    stream = not accepted and door.writes and parsed.get("stream") in _TRUE  # engines read it as leniently
    options = parsed.get("stream_options")
    wants_usage = isinstance(options, dict) and options.get("include_usage") is True
    cache_salt = salt.cache_salt(catalogue.cache_salt, caller, parsed) if door.metered else None
    ask_for_usage = door.usage_on_request and stream and not wants_usage
    return GenerationRequest(
        path=door.path,
        model=offer.model,
        request_class=served_class,
        tier=tier,
        stream=stream,
        background=not accepted and _background(door, parsed, stream),
        wants_usage=wants_usage,
        session=_session(door, parsed, hints),
        program=program_of(parsed, hints),
        deadline_at_s=deadline_at_s if accepted else deadline_of(hints),
        prefix=leading_blocks(parsed, cache_salt or "") if served_class in offer.by_prefix and door.metered else (),
        prompt_tokens=max(1, len(raw) // BYTES_PER_TOKEN),
        max_output_tokens=_max_output_tokens(parsed, offer.max_model_len) if door.writes else 0,
        salt=cache_salt,
        body=with_fields(raw, parsed, _fields(door, parsed, tier, ask_for_usage), _dropped(cache_salt, accepted)),
    )


def _fields(door: Door, parsed: Mapping[str, Any], tier: str | None, ask_for_usage: bool) -> dict[str, Any]:
    """What the engine is told beyond what the client said."""
    if ask_for_usage:
        options = parsed.get("stream_options")
        merged = {**options, "include_usage": True} if isinstance(options, dict) else {"include_usage": True}
        return {"stream_options": merged}
    if door.path == RESPONSES_PATH and tier is not None and parsed.get("service_tier") != tier:
        # Engines repeat the tier in the response and in events of a stream; the usage is always in the last one.
        return {"service_tier": tier}
    return {}


def _dropped(cache_salt: str | None, accepted: bool) -> tuple[str, ...]:
    """What the engine must not hear: a salt of the client's own, and how accepted work was asked for."""
    own = () if cache_salt is None else (salt.FIELD,)
    return (*own, "background", "stream", "stream_options") if accepted else own


def _session(door: Door, parsed: Mapping[str, Any], hints: Hints) -> str | None:
    if not door.metered:
        return None
    if door.anthropic:
        return messages.session_of(parsed, hints)
    return session_of(parsed, parsed.get(door.leading) if door.leading else None, hints)


def _check_references(parsed: Mapping[str, Any]) -> None:
    """An engine keeps responses for whoever knows the id, on one replica: neither safe nor sure to be found."""
    for name in ("previous_response_id", "conversation"):
        if parsed.get(name) is not None:
            message = f"`{name}` is not kept here: send the whole conversation in `input`"
            raise ApiError(400, "unsupported_parameter", message, param=name)


def _background(door: Door, parsed: Mapping[str, Any], stream: bool) -> bool:
    background = parsed.get("background")
    if background is None or background is False:
        return False
    if background is not True:
        raise ApiError(400, "invalid_background", "`background` must be true or false", param="background")
    if not door.background:
        message = f"{door.path} cannot run in the background; {' and '.join(BACKGROUND_PATHS)} can"
        raise ApiError(400, "unsupported_parameter", message, param="background")
    if stream:
        message = "`stream` and `background` cannot both be true: ask for the answer by its id"
        raise ApiError(400, "unsupported_parameter", message, param="stream")
    return True


def _tier_and_class(
    door: Door,
    parsed: Mapping[str, Any],
    caller: Caller,
    offer: Offer,
    catalogue: Catalogue,
    request_class: RequestClass | None,
) -> tuple[str | None, RequestClass]:
    """The tier to name in the answer, and the class to run in: the nearest that serves this door of the model."""
    asked = None if request_class is RequestClass.OFFLINE else _asked_tier(door, parsed, caller)
    wanted = request_class or catalogue.class_of_tier[asked or "auto"]
    found = offer.served_class(door, wanted)
    if wanted is RequestClass.OFFLINE or not door.names_tier:
        return None, found
    priority = asked == "priority" and found is RequestClass.ONLINE
    return "priority" if priority else TIERS[found], found


def json_object(raw: bytes) -> dict[str, Any]:
    """Raises ApiError 400 for a body that is none."""
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ApiError(400, "invalid_json", "the body must be a JSON object")
    return parsed


def _asked_tier(door: Door, parsed: Mapping[str, Any], caller: Caller) -> str:
    """The tier that the client names; the tenant's own where it names none or `auto`."""
    if door.anthropic:
        return messages.asked_tier(parsed, caller)
    tier = parsed.get("service_tier")
    if tier is None or tier == "auto":
        return caller.default_tier
    if tier not in SERVICE_TIERS:
        message = f"unknown service_tier {tier!r}; use one of {', '.join(SERVICE_TIERS)}"
        raise ApiError(400, "invalid_service_tier", message, param="service_tier")
    return str(tier)


def _max_output_tokens(parsed: Mapping[str, Any], max_model_len: int | None) -> int:
    for field in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = parsed.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return min(value, max_model_len) if max_model_len else value
    return min(DEFAULT_OUTPUT_TOKENS, max_model_len) if max_model_len else DEFAULT_OUTPUT_TOKENS
