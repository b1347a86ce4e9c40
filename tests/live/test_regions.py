"""Two regions, each a Ray cluster of its own on this machine, with delayed lines between them.

The west has two lines to the east, a short one and a long one, under two names: so which region is nearer, and which is
healthy, can be told apart. Clients ask the west. Engines are scripted; gateways, queues, stores and Serve are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.config import TribesConfig
from serve_apps.gateway.ready_replicas import READY_FRESH_S
from tests.support.stack import REPO, Stack, free_ports, running
from tests.unit.serve_apps.wire import Wire, wire

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]
MODEL, DEPLOYMENT = "tiny", "tiny-online"
NEAR, FAR = "near", "far"
DELAYS_S = {NEAR: 0.05, FAR: 0.25}
"""Of every piece of data, each way."""
SLO_S = 1.5
SESSION_S = 8.0
START_S = 8.0
"""Until a west engine listens: long enough to see what happens while there is none."""
SLOTS = 2
WORDS = 12
CHAT = "/v1/chat/completions"
SWITCH_S = 20.0
"""For news of a change to have reached the west's gateway."""


def configuration(folder: Path, name: str, peers: dict[str, str], ports: list[int], **args: Any) -> TribesConfig:
    """One deployment with one replica. `peers`: addresses by name; their keys are files in `folder`."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"architectures": ["Scripted"]}))
    gateway, ray, dashboard = ports
    engine = {
        "kind": "vllm",
        "entrypoint": ["python", "-m", "tests.support.scripted_engine"],
        "env": {"PYTHONPATH": str(REPO)},
        "args": {"itl-ms": 5, **args},
    }
    return TribesConfig.model_validate(
        {
            "models": {MODEL: {"source": {"kind": "local", "path": str(model)}, "max_model_len": 2048}},
            "deployments": {
                DEPLOYMENT: {
                    "model": MODEL,
                    "serves": ["online"],
                    "engine": engine,
                    "max_running": SLOTS,
                    "resources": {"cpus": 0.1},
                }
            },
            "region": {
                "name": name,
                "ttft_slo_s": {"online": SLO_S},
                "peers": {
                    peer: {"base_url": f"{url}/v1", "probe_key": {"file": str(folder / f"{peer}.key")}}
                    for peer, url in peers.items()
                },
                "probe_interval_s": 0.5,
                "session_s": SESSION_S,
            },
            "gateway": {"port": gateway},
            "paths": {"data": str(folder / "data"), "models": str(folder / "models")},
            "ray": {"num_cpus": 4, "object_store_gib": 0.2, "port": ray, "dashboard_port": dashboard},
        }
    )


@dataclass
class World:
    """Both clusters, and the lines from west to east by name."""

    west: Stack
    east: Stack
    lines: dict[str, Wire]
    loop: asyncio.AbstractEventLoop
    """Of the lines."""

    def ask(self, session: str) -> str | None:
        """A stream, asked of the west and checked; under which name the region that served it is known there."""
        body = {**chat(session, WORDS), "x_script": {"tokens": WORDS}}
        url = f"{self.west.base_url}{CHAT}"
        answer = httpx.post(url, json=body, headers=self.west.headers(), timeout=60)
        assert answer.status_code == 200, answer.text
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        said = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
        assert "".join(said) == "".join(f" w{number}" for number in range(WORDS))
        return answer.headers.get("x-tribes-region")

    def peer(self, name: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.west.base_url}/tribes/status", headers=self.west.headers(), timeout=10)
        return next(peer for peer in answer.json()["region"]["peers"] if peer["region"] == name)

    def cut(self, name: str) -> None:
        self.loop.call_soon_threadsafe(self.lines[name].cut)
        self.west.wait(f"{name} is not healthy", lambda: not self.peer(name)["healthy"], SWITCH_S)

    def mend(self, name: str) -> None:
        self.lines[name].broken = False
        self.west.wait(f"{name} is healthy", lambda: self.peer(name)["healthy"], SWITCH_S)

    def new_sessions_at_home(self) -> None:
        names = (f"anybody-{number}" for number in itertools.count())
        self.west.wait("new sessions run at home", lambda: self.ask(next(names)) is None, SWITCH_S)

    @contextlib.contextmanager
    def west_full(self) -> Iterator[None]:
        """All slots of the west are taken, and somebody has waited there for longer than the SLO."""
        body = {**chat("long", 1500), "x_script": {"tokens": 1500, "itl_ms": 50}}
        url = f"{self.west.base_url}{CHAT}"
        with ThreadPoolExecutor(1) as pool:
            with httpx.Client(headers=self.west.headers(), timeout=60) as http, contextlib.ExitStack() as streams:
                for _ in range(SLOTS):
                    answer = streams.enter_context(http.stream("POST", url, json=body))
                    assert answer.status_code == 200 and "x-tribes-region" not in answer.headers
                waits = pool.submit(self.ask, "waits")
                self.west.wait("somebody waits", lambda: waiting(self.west) == 1, 10)
                time.sleep(SLO_S + 0.3)
                yield
            assert waits.result(SWITCH_S) is None, "who waits here already is not moved"


def chat(session: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "go"}]
    return {"model": MODEL, "messages": messages, "stream": True, "max_tokens": tokens, "prompt_cache_key": session}


def waiting(stack: Stack) -> int:
    return int(stack.status(MODEL)["classes"]["online"]["waiting"])


@contextlib.contextmanager
def delayed_lines() -> Iterator[tuple[dict[str, Wire], asyncio.AbstractEventLoop]]:
    """They run on a thread: tests and the start of a cluster block theirs."""
    loop, opened = asyncio.new_event_loop(), contextlib.AsyncExitStack()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def open_all() -> dict[str, Wire]:
        lines = {name: await opened.enter_async_context(wire()) for name in DELAYS_S}
        for name, line in lines.items():
            line.delay_s = DELAYS_S[name]
        return lines

    async def close_all() -> None:
        await opened.aclose()
        await asyncio.sleep(1)  # what was on its way ends

    try:
        yield asyncio.run_coroutine_threadsafe(open_all(), loop).result(10), loop
    finally:
        asyncio.run_coroutine_threadsafe(close_all(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, ports = tmp_path_factory.mktemp("regions"), free_ports(6)
    with delayed_lines() as (lines, loop):
        addresses = {name: line.url for name, line in lines.items()}
        slow_start = {"start-delay-ms": 1000 * START_S}
        west_config = configuration(folder / "west", "west", addresses, ports[:3], **slow_start)
        here = {"west": f"http://127.0.0.1:{west_config.gateway.port}"}
        east_config = configuration(folder / "east", "east", here, ports[3:])
        with running(east_config) as east, running(west_config) as west:
            east.store.ensure_key(west.started.api_key, "default")  # a client's key works in both
            for name, line in lines.items():
                (folder / "west" / f"{name}.key").write_text(east.started.api_key)
                line.target = east.base_url
            (folder / "east" / "west.key").write_text(west.started.api_key)
            built = World(west, east, lines, loop)
            for name in lines:
                west.wait(f"{name} is healthy", lambda name=name: built.peer(name)["healthy"], SWITCH_S)
            west.wait("the west is seen", lambda: west.replicas(MODEL, DEPLOYMENT), SWITCH_S)
            time.sleep(READY_FRESH_S + 0.5)  # by then each gateway knows its replica, and has told so
            yield built


def test_a_region_that_is_well_serves_its_own(world: World) -> None:
    assert [world.ask(f"calm-{number}") for number in range(5)] == [None] * 5
    assert world.peer(NEAR)["forwarded"] == world.peer(FAR)["forwarded"] == 0
    for name, delay_s in DELAYS_S.items():
        assert world.peer(name)["rtt_ms"] >= 2000 * delay_s


def test_engines_that_die_send_sessions_to_the_nearest_region_until_they_are_back(world: World) -> None:
    west, session = world.west, "moves"
    assert world.ask(session) is None
    (replica,) = west.replicas(MODEL, DEPLOYMENT)
    for process in psutil.Process(replica["pid"]).children(recursive=True):
        process.kill()
    west.wait("no replica", lambda: not west.replicas(MODEL, DEPLOYMENT), 10)
    time.sleep(READY_FRESH_S + 0.5)
    before_s = time.monotonic()
    assert world.ask(session) == NEAR
    assert time.monotonic() - before_s >= 2 * DELAYS_S[NEAR]
    assert [world.ask(f"new-{number}") for number in range(2)] == [NEAR, NEAR]

    def is_back() -> bool:
        assert world.ask(session) == NEAR
        return bool(west.replicas(MODEL, DEPLOYMENT))

    west.wait("a replica again", is_back, 60)
    world.new_sessions_at_home()
    assert world.ask(session) == NEAR, "a session stays with its cache"
    time.sleep(SESSION_S + 0.5)
    assert world.ask(session) is None
    assert world.east.store.usage_totals()[0]["tenant"] == "default"


def test_overload_spills_to_the_nearest_healthy_region_and_no_longer_than_it_lasts(world: World) -> None:
    world.new_sessions_at_home()
    with world.west_full():
        assert world.ask("spilled") == NEAR
        world.cut(NEAR)
        assert world.ask("spilled") == FAR, "its region is gone"
        assert world.ask("another") == FAR
        world.mend(NEAR)
        assert world.ask("one more") == NEAR
        assert world.ask("another") == FAR, "a session stays with its cache"
    world.new_sessions_at_home()
