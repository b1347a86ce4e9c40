"""The prefix cache's salt: a client can divide its own cache, and never join a neighbour's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import TribesConfig
from cluster.engines import takes_cache_salt
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.catalogue import Catalogue
from serve_apps.gateway.doors import BY_PATH
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.hints import Hints
from serve_apps.gateway.request import parse_request
from serve_apps.gateway.salt import with_salt
from tests.unit.serve_apps.harness import CHAT, chat, configuration
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.porch import porch
from tests.unit.serve_apps.servers import Engine, served

ALICE, BOB = Caller("alice", "k1"), Caller("bob", "k2")
CATALOGUE = {
    mode: Catalogue(TribesConfig.model_validate(configuration(Path("weights"), gateway={"cache_salt": mode})))
    for mode in ("tenant", "key", "off")
}
PROMPT = "a prompt that is longer than a few blocks of the cache, " * 8


def sent(raw: bytes, caller: Caller = ALICE, mode: str = "tenant") -> bytes:
    """What an engine that takes salts gets."""
    request = parse_request(CHAT, raw, caller, CATALOGUE[mode], Hints())
    return request.body if request.salt is None else with_salt(request.body, request.salt)


def salt_of(raw: bytes, caller: Caller = ALICE, mode: str = "tenant") -> Any:
    return json.loads(sent(raw, caller, mode)).get("cache_salt")


PLAIN = b'{ "model":"m",\n "messages": [ {"role":"user","content":"\\u00e9"} ], "x": 1.0e3 }'


def test_the_clients_bytes_stay() -> None:
    salt = salt_of(PLAIN)
    assert isinstance(salt, str) and len(salt) >= 32
    assert sent(PLAIN) == b'{"cache_salt":"' + salt.encode() + b'",' + PLAIN[1:]
    assert sent(PLAIN, mode="off") == PLAIN


def test_a_salt_is_what_both_engines_accept() -> None:
    assert all(c in "0123456789abcdef" for c in salt_of(PLAIN)) and len(salt_of(PLAIN)) <= 128


def test_who_shares_a_salt() -> None:
    second_key = Caller("alice", "k9")
    assert salt_of(PLAIN) == salt_of(PLAIN, second_key) != salt_of(PLAIN, BOB)
    by_key = [salt_of(PLAIN, caller, "key") for caller in (ALICE, second_key, BOB)]
    assert len({*by_key, salt_of(PLAIN)}) == 4


def test_a_client_divides_its_own_cache_further() -> None:
    raw = orjson.dumps(chat(cache_salt="mine"))
    assert salt_of(raw) == salt_of(raw) != salt_of(orjson.dumps(chat()))
    assert salt_of(raw) != "mine" and salt_of(raw) != salt_of(raw, BOB)
    assert salt_of(raw, mode="off") == "mine"


BOBS = salt_of(PLAIN, BOB).encode()


@pytest.mark.parametrize(
    "members",
    [
        b'"cache_salt":"%b"' % BOBS,
        b'"cache_salt":"x","cache_salt":"%b"' % BOBS,
        b'"cache_salt":"%b","cache_salt":null' % BOBS,
        b'"cache_salt":null',
        b'"cache\\u005fsalt":"%b"' % BOBS,
        b'"\\u0063ache_salt":"x", "cache_salt" : "%b"' % BOBS,
    ],
)
@pytest.mark.parametrize("place", [b"{%b,%b}", b" {%b , %b }"])
@pytest.mark.parametrize("last", [True, False])
def test_no_writing_of_the_field_gets_a_neighbours_salt(members: bytes, place: bytes, last: bool) -> None:
    rest = orjson.dumps(chat("hi"))[1:-1]
    body = sent(place % ((rest, members) if last else (members, rest)))
    pairs = json.loads(body, object_pairs_hook=lambda pairs: pairs)
    salts = [value for name, value in pairs if name == "cache_salt"]
    assert len(salts) == 1 and salts[0] not in (None, BOBS.decode(), "x")
    assert [name for name, _ in pairs].count("messages") == 1


@given(st.text(), st.sampled_from(["tenant", "key"]))
def test_no_salt_of_a_client_is_a_neighbours(own: str, mode: str) -> None:
    if own:
        mine = salt_of(json.dumps(chat(cache_salt=own)).encode(), mode=mode)
        assert mine not in (salt_of(PLAIN, BOB, mode), salt_of(PLAIN, mode=mode), own)


@pytest.mark.parametrize("own", ["", 1, ["a"], {"a": 1}, False])
def test_a_salt_that_is_no_text(own: Any) -> None:
    with pytest.raises(ApiError) as caught:
        sent(orjson.dumps(chat(cache_salt=own)))
    assert (caught.value.status, caught.value.param) == (400, "cache_salt")


def test_where_the_engines_take_it() -> None:
    computed = {path for path, door in BY_PATH.items() if door.metered}
    assert {path for path in BY_PATH if takes_cache_salt("vllm", path)} == computed
    assert not takes_cache_salt("sglang", "/v1/embeddings") and takes_cache_salt("sglang", CHAT)


@pytest.mark.parametrize(("kind", "salted"), [("vllm", True), ("sglang", False)])
async def test_an_engine_that_does_not_take_it_gets_none(tmp_path: Path, kind: str, salted: bool) -> None:
    odd = OddEngine(parts=[b'{"data":[]}'])
    body = {"model": "m", "input": "x"}
    async with (
        served(odd) as url,
        porch(tmp_path, url, deployment={"engine": {"kind": kind}}) as gateway,
        gateway.http() as http,
        http.post("/v1/embeddings", json=body) as answer,
    ):
        assert answer.status == 200
    assert ("cache_salt" in orjson.loads(odd.bodies[0])) is salted
    assert salted or odd.bodies[0] == json.dumps(body).encode()


async def cached_tokens(api: openai.AsyncOpenAI, **fields: Any) -> int:
    answer = await api.chat.completions.create(
        model="m", messages=chat(PROMPT)["messages"], max_tokens=2, extra_body=fields
    )
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


@pytest.mark.parametrize("mode", ["tenant", "off"])
async def test_a_neighbours_prompt_leaves_no_trace(tmp_path: Path, engines: list[Engine], mode: str) -> None:
    async with porch(tmp_path, engines[0].url, gateway={"cache_salt": mode}) as gateway:
        alice, bob = gateway.openai(f"alice-{mode}"), gateway.openai(f"bob-{mode}")
        own = {} if mode == "tenant" else {"cache_salt": "common"}
        assert await cached_tokens(alice, **own) == 0
        assert await cached_tokens(alice, **own) > 0
        assert (await cached_tokens(bob, **own) > 0) is (mode == "off")
        assert await cached_tokens(bob, **own) > 0


async def test_a_clients_own_salt_keeps_its_programs_apart(tmp_path: Path, engines: list[Engine]) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        api = gateway.openai("carol")
        assert await cached_tokens(api, cache_salt="one") == 0
        assert await cached_tokens(api, cache_salt="two") == 0
        assert await cached_tokens(api, cache_salt="one") > 0
