"""A peer that says nonsense, or nothing: probing goes on, requests are not held up, and no tenant's fail."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.config import TribesConfig
from cluster.vocabulary import RequestClass
from serve_apps.gateway.regions.peer import PeerRefusedError, RegionPeer
from serve_apps.gateway.regions.router import Regions
from tests.unit.serve_apps.harness import CHAT, configuration
from tests.unit.serve_apps.servers import eventually, served
from tests.unit.serve_apps.test_regions import ONLINE, region

GOOD = {"models": {"m": {"online": {"others": 0.5, "tenants": {"a": 2.0}}}}}


class Far:
    """Answers probes with `said`, and nothing else."""

    def __init__(self) -> None:
        self.said: Any = GOOD
        self.status = 200
        self.probes = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] != "/tribes/region":
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        self.probes += 1
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": orjson.dumps(self.said)})


@contextlib.asynccontextmanager
async def seen_from_west(
    folder: Path, monkeypatch: pytest.MonkeyPatch, far: Far
) -> AsyncIterator[tuple[Regions, RegionPeer]]:
    monkeypatch.setenv("KEY_OF_EAST", "k")
    classes = {"online": {"max_wait_s": 0.1}}
    async with served(far) as url:
        sections = {"gateway": {"upstream_idle_timeout_s": 0.2}, "scheduling": {"classes": classes}}
        plain = configuration(folder, region=region("west", "east", url), **sections)
        regions = Regions(TribesConfig.model_validate(plain), {})
        await regions.start()
        try:
            yield regions, regions._peers["east"]
        finally:
            await regions.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        [],
        {"models": []},
        {"models": {"m": []}},
        {"models": {"m": {"online": 1}}},
        {"models": {"m": {"online": {"others": 0, "tenants": ["a"]}}}},
        {"models": {"m": {"online": {"others": 0, "tenants": {"a": None}}}}},
    ],
)
async def test_nonsense_is_no_answer_and_not_the_last_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonsense: Any
) -> None:
    far = Far()
    far.said = nonsense
    async with seen_from_west(tmp_path, monkeypatch, far) as (_, peer):
        await eventually(lambda: far.probes >= 2)
        assert not peer.healthy(time.monotonic()) and peer.distance(ONLINE, "a", time.monotonic()) is None
        far.said = GOOD
        await eventually(lambda: peer.healthy(time.monotonic()))
        distance = peer.distance(ONLINE, "a", time.monotonic())
        assert distance is not None and distance.expected_s == 2.0


async def test_a_peer_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After as long as a request may wait and an engine be silent, 0.3 s here; then the request can run here."""
    async with seen_from_west(tmp_path, monkeypatch, Far()) as (_, peer), asyncio.timeout(5):
        with pytest.raises(PeerRefusedError):
            async with peer.ask(CHAT, b"{}", {}, ONLINE, "default", True):
                pass


async def test_what_peers_are_told_is_always_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the last replica goes while the page is made: JSON has no word for never."""
    async with seen_from_west(tmp_path, monkeypatch, Far()) as (regions, _):
        ready = iter([True])

        async def serves(kind: Any) -> bool:
            return kind == ONLINE and next(ready, False)

        monkeypatch.setattr(regions, "_serves", serves)
        monkeypatch.setattr(regions, "_waiting", lambda model: {(RequestClass.ONLINE, "a"): time.time() - 1})
        told = orjson.loads(await regions.page())["models"]["m"]["online"]
    assert told["tenants"]["a"] == pytest.approx(1.0, abs=0.5)


def test_the_bound_of_silence_is_of_the_classes_that_leave(tmp_path: Path) -> None:
    plain = configuration(tmp_path, region=region("west", "east", "http://127.0.0.1:1"))
    assert Regions(TribesConfig.model_validate(plain), {})._silence_s == 30 + 600


async def test_a_key_that_may_not_ask_is_named_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    far = Far()
    far.status = 403
    async with seen_from_west(tmp_path, monkeypatch, far) as (_, peer):
        await eventually(lambda: far.probes >= 2)
        assert not peer.healthy(time.monotonic())
    assert caplog.text.count("`probe_key` must be a key of an operator there") == 1
