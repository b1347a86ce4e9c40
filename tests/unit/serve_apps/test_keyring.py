"""API keys: cached so that a request costs no query, revoked within seconds."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from cluster.state import KeyInfo, Store
from cluster.state.tables import TenantRow
from serve_apps.gateway import auth
from serve_apps.gateway.auth import KeyRing
from serve_apps.gateway.errors import ApiError
from tests.unit.serve_apps.servers import eventually


class CountingStore(Store):
    """Counts lookups, and can be slow or away."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.create()
        self.lookups = 0
        self.away = False
        self.gate = threading.Event()
        self.gate.set()

    def find_key(self, key_hash: str) -> KeyInfo | None:
        self.lookups += 1
        self.gate.wait(5)
        if self.away:
            raise OperationalError("SELECT", {}, Exception("the store is away"))
        return super().find_key(key_hash)


class Clock:
    """Stands for the time module in `auth`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(f"sqlite:///{tmp_path}/state.db")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


async def test_many_requests_cost_one_query(store: CountingStore, clock: Clock) -> None:
    _, key = store.create_key("t")
    ring, bearer = KeyRing(store), f"Bearer {key}".encode()
    callers = await asyncio.gather(*(ring.caller(bearer) for _ in range(50)))
    for _ in range(100):
        callers.append(await ring.caller(bearer))
    assert {c.tenant for c in callers} == {"t"} and store.lookups == 1


async def test_a_refresh_happens_beside_the_request(store: CountingStore, clock: Clock) -> None:
    _, key = store.create_key("t")
    ring, bearer = KeyRing(store), f"bearer {key} ".encode()
    await ring.caller(bearer)
    clock.now_s += auth.FRESH_S + 0.1
    store.gate.clear()  # the store would keep the request waiting
    async with asyncio.timeout(1):
        await asyncio.gather(*(ring.caller(bearer) for _ in range(20)))
    store.gate.set()
    await asyncio.sleep(0.1)
    await ring.caller(bearer)
    assert store.lookups == 2


async def test_a_key_revoked_long_ago_is_refused_at_once(store: CountingStore, clock: Clock) -> None:
    key_id, key = store.create_key("t")
    ring, bearer = KeyRing(store), f"Bearer {key}".encode()
    await ring.caller(bearer)
    store.revoke_key(key_id)
    clock.now_s += 5.1  # nobody used the key meanwhile
    with pytest.raises(ApiError) as caught:
        await ring.caller(bearer)
    assert caught.value.status == 401


async def test_a_busy_key_ends_within_seconds_of_being_revoked(store: CountingStore, clock: Clock) -> None:
    key_id, key = store.create_key("t")
    ring, bearer = KeyRing(store), f"Bearer {key}".encode()
    await ring.caller(bearer)
    store.revoke_key(key_id)
    with pytest.raises(ApiError):
        for _ in range(50):
            clock.now_s += 0.1
            await ring.caller(bearer)
            await asyncio.sleep(0.01)


async def test_a_store_that_is_away_harms_nobody_who_is_known(store: CountingStore, clock: Clock) -> None:
    _, key = store.create_key("t")
    ring, bearer = KeyRing(store), f"Bearer {key}".encode()
    await ring.caller(bearer)
    store.away = True
    for _ in range(5):
        clock.now_s += 10
        assert (await ring.caller(bearer)).tenant == "t"
    clock.now_s += auth.STALE_S
    for header in (bearer, b"Bearer sk-somebody-else"):
        with pytest.raises(ApiError) as caught:
            await ring.caller(header)
        assert caught.value.status == 503 and caught.value.retry_after_s


async def test_one_who_gives_up_does_not_take_the_others_along(store: CountingStore) -> None:
    _, key = store.create_key("t")
    ring, bearer = KeyRing(store), f"Bearer {key}".encode()
    store.gate.clear()
    first, second = (asyncio.create_task(ring.caller(bearer)) for _ in range(2))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.sleep(0.05)
    store.gate.set()
    assert (await second).tenant == "t" and store.lookups == 1


async def guess(ring: KeyRing, number: int = 0) -> int:
    with pytest.raises(ApiError) as caught:
        await ring.caller(f"Bearer sk-guess-{number}".encode())
    return caught.value.status


async def test_an_unknown_key_is_asked_for_once_a_second(store: CountingStore, clock: Clock) -> None:
    ring = KeyRing(store)
    assert [await guess(ring) for _ in range(50)] == [401] * 50 and store.lookups == 1
    clock.now_s += auth.UNKNOWN_S
    assert await guess(ring) == 401 and store.lookups == 2 and not ring._cache


async def test_a_key_works_a_second_after_it_was_made(store: CountingStore, clock: Clock) -> None:
    ring, secret = KeyRing(store), "sk-made-elsewhere"
    bearer = f"Bearer {secret}".encode()
    with pytest.raises(ApiError):
        await ring.caller(bearer)
    store.ensure_key(secret, "t")
    clock.now_s += auth.UNKNOWN_S
    assert (await ring.caller(bearer)).tenant == "t"


async def test_guesses_do_not_fill_the_memory(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_UNKNOWN", 5)
    ring = KeyRing(store)
    for number in range(20):
        await guess(ring, number)
    assert len(ring._unknown) == 5 and not ring._refreshing


async def test_a_flood_of_guesses_is_bounded_and_harms_nobody_who_is_known(
    store: CountingStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "STRANGERS_WAITING", 8)
    _, key = store.create_key("t")
    ring, bearer = KeyRing(store), f"Bearer {key}".encode()
    await ring.caller(bearer)
    store.gate.clear()
    flood = [asyncio.create_task(guess(ring, number)) for number in range(100)]
    await eventually(lambda: store.lookups == 1 + auth.STRANGERS_AT_ONCE)
    await asyncio.sleep(0.05)
    assert store.lookups == 1 + auth.STRANGERS_AT_ONCE
    clock.now_s += auth.TRUSTED_S + 0.1
    known = asyncio.create_task(ring.caller(bearer))  # needs the store, and does not queue behind the strangers
    await eventually(lambda: store.lookups == 2 + auth.STRANGERS_AT_ONCE)
    store.gate.set()
    assert (await known).tenant == "t"
    statuses = await asyncio.gather(*flood)
    assert statuses.count(401) == 8 and statuses.count(503) == 92
    assert store.lookups == 2 + 8


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer  ", b"Basic abc", b"\xff\xfe", b"sk-key"])
async def test_headers_without_a_key(store: CountingStore, header: bytes | None) -> None:
    with pytest.raises(ApiError) as caught:
        await KeyRing(store).caller(header)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert (b"www-authenticate", b"Bearer") in caught.value.headers and store.lookups == 0


async def test_a_look_up_reads_one_tenant(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add_tenants({f"t{number}": {} for number in range(20)})
    _, key = store.create_key("t")
    read: list[str] = []

    def note(row: TenantRow, _: object) -> None:
        read.append(row.name)

    event.listen(TenantRow, "load", note)
    try:
        await KeyRing(store).caller(f"Bearer {key}".encode())
    finally:
        event.remove(TenantRow, "load", note)
    assert read == ["t"]


async def test_a_callers_tier_is_the_tenants(store: CountingStore) -> None:
    store.put_tenant("t", {"default_tier": "flex"})
    _, key = store.create_key("t")
    assert (await KeyRing(store).caller(f"Bearer {key}".encode())).default_tier == "flex"
