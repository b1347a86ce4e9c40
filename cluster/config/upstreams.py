"""Role: the `upstreams` section: APIs of others that may serve our requests. Owns: their addresses, prices and limits.

Must not know: HTTP, tenants' sections, or any key: a key is named (`env`, `file`) and read only where it is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, StringConstraints, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from cluster.config.base import ANY_OR_NAME_PATTERN, SECRET_ERROR, ModelName, Name, Section

UpstreamUse = Literal["never", "on_failure", "on_overload"]
UpstreamPath = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
ANY_UPSTREAM = "*"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?")


def _unspoken(message: str) -> PydanticCustomError:
    return PydanticCustomError(SECRET_ERROR, message)


def plain_address(url: str) -> str:
    """The address of an API; raises where it may have a secret in it."""
    if not _URL.fullmatch(url):
        raise _unspoken("must be like https://api.example.com/v1, without a user, key or query in it")
    return url.rstrip("/")


class SecretRef(Section):
    """Where a key is found: `{env: NAME}` or `{file: PATH}`."""

    env: str | None = Field(default=None, description="An environment variable of the gateway's processes.")
    file: Path | None = Field(default=None, description="A file with nothing else in it; relative to this one.")

    @model_validator(mode="before")
    @classmethod
    def _is_a_reference(cls, given: Any) -> Any:
        if isinstance(given, SecretRef):
            return given
        if not isinstance(given, Mapping):
            raise _unspoken("say where the key is, never the key itself: {env: NAME_OF_VARIABLE} or {file: PATH}")
        if sum(given.get(name) is not None for name in ("env", "file")) != 1:
            raise _unspoken("give one of the two: env: NAME_OF_VARIABLE or file: PATH")
        return given

    @field_validator("env", mode="before")
    @classmethod
    def _is_a_name(cls, given: Any) -> Any:
        if given is not None and not (isinstance(given, str) and _VARIABLE.fullmatch(given)):
            raise _unspoken("not the name of an environment variable; name the variable that holds the key")
        return given


class TokenPrices(Section):
    """Dollars per million tokens."""

    input: float = Field(ge=0)
    cached_input: float | None = Field(default=None, ge=0, description="null = as other input.")
    output: float = Field(ge=0)

    def usd(self, uncached_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """What a request costs."""
        cached = self.input if self.cached_input is None else self.cached_input
        return (uncached_tokens * self.input + cached_tokens * cached + output_tokens * self.output) / 1e6


class UpstreamConfig(Section):
    """An OpenAI-compatible API of somebody else that requests may be sent to."""

    base_url: str = Field(description="Up to the version, such as https://api.example.com/v1. No key, no query.")
    api_key: SecretRef | None = Field(default=None, description="Where its key is found; null = it takes none.")
    models: dict[ModelName, Annotated[str, StringConstraints(min_length=1, max_length=200)]] = Field(
        min_length=1,
        description="Our model id: its model id. One of ours that no deployment serves is served here alone.",
    )
    use: UpstreamUse = Field(
        default="on_failure",
        description="For models that we serve, too: never; on_failure = no replica of ours can serve the request; "
        "on_overload = on_failure, and where the queue is full or the wait too long.",
    )
    wait_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds that a request waits for a replica of ours before it goes there; null = as long as its "
        "class allows.",
    )
    usd_per_mtok: TokenPrices = Field(description="Its price list; zeros where it costs nothing.")
    usd_per_day: float | None = Field(
        default=None, gt=0, description="Dollars a day (UTC), all tenants together; null = unlimited."
    )
    tenants: list[Name] | None = Field(default=None, min_length=1, description="Who may use it; null = all.")
    accepted_work: bool = Field(
        default=False, description="Batches and background requests may go there too, as `use` says."
    )
    paths: list[UpstreamPath] = Field(
        default=list(get_args(UpstreamPath)), min_length=1, description="What it has; nothing else goes there."
    )
    drop: list[str] = Field(
        default=[], description="Fields of a body that it does not take, beside those that only engines know."
    )
    connect_timeout_s: float = Field(default=5, gt=0)
    first_byte_timeout_s: float = Field(default=30, gt=0, description="A stream that has not begun by then has failed.")
    idle_timeout_s: float = Field(default=300, gt=0, description="An answer that is silent this long has failed.")
    max_concurrent: int = Field(default=64, ge=1, description="Requests that one gateway process has there at once.")

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        return plain_address(url)

    def url_of(self, path: str) -> str:
        """Where a request for our path `/v1/...` goes: `base_url` has the version already."""
        return self.base_url + path.removeprefix("/v1")


class TenantUpstreamConfig(Section):
    """What holds for one tenant and upstream; a word alone stands for `{use: word}`."""

    use: UpstreamUse | None = Field(default=None, description="null = as the upstream says.")
    usd_per_day: float | None = Field(
        default=None, gt=0, description="Dollars a day (UTC) of this tenant; null = only the upstream's bound holds."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, given: Any) -> Any:
        return {"use": given} if isinstance(given, str) else given


class _OrWord:
    """In the JSON schema: a word of `use` alone will do."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(get_args(UpstreamUse))}, handler(core_schema)]}


def _for_all(given: Any) -> Any:
    return {ANY_UPSTREAM: given} if isinstance(given, str) else given


TenantUpstreams = Annotated[
    dict[Annotated[str, StringConstraints(pattern=ANY_OR_NAME_PATTERN)], Annotated[TenantUpstreamConfig, _OrWord()]],
    BeforeValidator(_for_all),
    _OrWord(),
]
"""By upstream, `*` being all that are not named; a word alone is for all."""
