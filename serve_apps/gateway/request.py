"""A generation request as the gateway understands it: the few fields it needs, and the bytes the engine gets.

Everything else in the body passes through unread, so new engine parameters work the day the engine has them.
Owns: parsing, class, session and size estimates. Must not know: leases, connections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from cluster.config import TribesConfig
from cluster.vocabulary import SERVICE_TIERS, RequestClass, class_of_tier, tier_of_class
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.errors import ApiError

BYTES_PER_TOKEN = 4
DEFAULT_OUTPUT_TOKENS = 512
"""Assumed bound where a request names none; predictions come from the tenant's own history."""
_TRUE = (True, "true", "True", "1")
_USAGE_OPTION = b'"stream_options":{"include_usage":true},'


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What the gateway knows about one request. Token counts are estimates for scheduling; bills use the engine's."""

    path: str
    model: str
    request_class: RequestClass
    tier: str
    stream: bool
    wants_usage: bool
    """The client asked for the stream's usage event; the gateway always asks the engine for it."""
    session: str | None
    prompt_tokens: int
    max_output_tokens: int
    body: bytes


def parse_request(
    path: str, raw: bytes, caller: Caller, config: TribesConfig, session_header: bytes | None
) -> GenerationRequest:
    """Raises ApiError 400 for a body that cannot be used and 404 for an unknown model."""
    parsed = _object(raw)
    model = parsed.get("model")
    if not isinstance(model, str):
        raise ApiError(400, "missing_model", "the body needs a `model`", param="model")
    if model not in config.models:
        known = ", ".join(config.models)
        raise ApiError(404, "model_not_found", f"unknown model {model!r}; known: {known}", param="model")
    tier = _asked_tier(parsed, caller)
    request_class = _request_class(tier, model, config)
    stream = parsed.get("stream") in _TRUE  # engines read it as leniently
    options = parsed.get("stream_options")
    wants_usage = isinstance(options, Mapping) and options.get("include_usage") is True
    return GenerationRequest(
        path=path,
        model=model,
        request_class=request_class,
        tier="priority" if (tier, request_class) == ("priority", RequestClass.ONLINE) else tier_of_class(request_class),
        stream=stream,
        wants_usage=wants_usage,
        session=_session(parsed, session_header),
        prompt_tokens=max(1, len(raw) // BYTES_PER_TOKEN),
        max_output_tokens=_max_output_tokens(parsed, config.models[model].max_model_len),
        body=_with_usage(raw, parsed) if stream and not wants_usage else raw,
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ApiError(400, "invalid_json", "the body must be a JSON object")
    return parsed


def _asked_tier(parsed: Mapping[str, Any], caller: Caller) -> str:
    """The tier that the client names; the tenant's own where it names none or `auto`."""
    tier = parsed.get("service_tier")
    if tier is None or tier == "auto":
        return caller.default_tier
    if tier not in SERVICE_TIERS:
        message = f"unknown service_tier {tier!r}; use one of {', '.join(SERVICE_TIERS)}"
        raise ApiError(400, "invalid_service_tier", message, param="service_tier")
    return str(tier)


def _request_class(tier: str, model: str, config: TribesConfig) -> RequestClass:
    wanted = class_of_tier(tier, config.gateway.auto_tier)
    served = {c for d in config.serving().values() if d.model == model for c in d.serves}
    # A model need not be deployed for every class: the nearest one serves, and the response says which it was.
    for request_class in (wanted, RequestClass.ONLINE, RequestClass.SEMI_ONLINE):
        if request_class in served:
            return request_class
    raise ApiError(404, "model_not_served", f"model {model!r} is deployed for batch jobs only", param="model")


def _max_output_tokens(parsed: Mapping[str, Any], max_model_len: int | None) -> int:
    for field in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = parsed.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return min(value, max_model_len) if max_model_len else value
    return min(DEFAULT_OUTPUT_TOKENS, max_model_len) if max_model_len else DEFAULT_OUTPUT_TOKENS


def _session(parsed: Mapping[str, Any], session_header: bytes | None) -> str | None:
    """What ties the turns of a conversation together: named by the client, else its leading messages."""
    for named in (parsed.get("prompt_cache_key"), session_header, parsed.get("user")):
        if named:
            # Hashed: the name stays in memory long after the request, and a client may send a very long one.
            return _digest(named if isinstance(named, bytes) else str(named).encode())
    messages = parsed.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    # Up to the first user message: the part that stays the same as the conversation grows.
    roles = [m.get("role") if isinstance(m, Mapping) else None for m in messages]
    head = messages[: roles.index("user") + 1] if "user" in roles else messages[:1]
    return _digest(orjson.dumps(head))


def _digest(name: bytes) -> str:
    return hashlib.blake2b(name, digest_size=12).hexdigest()


def _with_usage(raw: bytes, parsed: dict[str, Any]) -> bytes:
    """Ask for the usage event. Spliced in where possible: the client's own bytes stay as they are."""
    if parsed.get("stream_options") is None and "stream_options" not in parsed:
        start = raw.index(b"{") + 1
        return raw[:start] + _USAGE_OPTION + raw[start:]
    options = parsed["stream_options"]
    merged = {**options, "include_usage": True} if isinstance(options, Mapping) else {"include_usage": True}
    return orjson.dumps({**parsed, "stream_options": merged})
