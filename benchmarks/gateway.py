"""What does a gateway add to the engine? This project's doors beside the other ways to put one before a model.

A scripted engine answers at once in 20 chunks (`gateway_sides/engine.py`); in one case at 200 tokens a second. Doors:
ours behind Serve and HAProxy (capacity free, and two tenants waiting), our own listener, a plain FastAPI deployment on
Ray Serve (as shipped, and with HAProxy), LiteLLM's proxy, vllm-router, sglang-router. ray.serve.llm runs no engine but
a real one, so it is none of the doors here.

A round takes the groups of doors one after the other, each started alone, warmed up, and stopped before the next: two
Ray clusters at once would disturb each other on a small machine even when idle. Rounds begin with another group each
time. In its turn every case is measured at the engine alone and then at each door: what a door adds is the difference.
Closed loops of 1, 16 and 64; open loops (Poisson) of 100 and 300 requests a second, left out for doors that were seen
not to keep up. CPU seconds are those of all processes of a side, engine and load generator apart.

`python -m benchmarks.gateway --json FILE [--quick] [--rounds N] [--side NAME ...] [--case NAME ...]`; sides and cases
that are not measured again are kept from FILE.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.gateway_sides import ours, peers
from benchmarks.gateway_sides.cases import CASES, SATURATED, rotated
from benchmarks.gateway_sides.engine import MODULE
from benchmarks.gateway_sides.load import Door
from benchmarks.gateway_sides.plain_serve import HAPROXY, SHIPPED, plain_serve
from benchmarks.gateway_sides.turn import DIRECT, Turn, chosen_cases
from benchmarks.gateway_sides.up import Up, process, wait_answering
from benchmarks.gateway_sides.verdict import judge
from benchmarks.report import Report
from cluster.engines import free_port
from cluster.local.auth import enable_token_auth

ROUNDS, QUICK_ROUNDS = 5, 2
# What is compared stands side by side.
GROUPS: dict[str, tuple[str, ...]] = {
    "tribes": (ours.SERVE_DOOR, ours.OWN_DOOR, ours.CONTENDED),
    HAPROXY: (HAPROXY,),
    "vllm_router": ("vllm_router",),
    "litellm": ("litellm",),
    "sglang_router": ("sglang_router",),
    SHIPPED: (SHIPPED,),
}
SIDES = tuple(side for sides in GROUPS.values() for side in sides)
ENGINE_MODEL = "scripted"
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Two rounds of shorter loads.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help=f"{ROUNDS} when not given.")] = None,
    side: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(SIDES)}.")] = None,
    case: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(CASES)}.")] = None,
) -> None:
    sides, cases = _known("side", side, SIDES), _known("case", case, tuple(CASES))
    enable_token_auth()
    peers.build_environments(sides, console.log)
    report = Report("gateway", "python -m benchmarks.gateway " + " ".join(sys.argv[1:]), _described(cases, quick))
    report.more_versions = {peer.package: peer.version for name, peer in peers.PEERS.items() if name in sides}
    if (side or case) and json_path.exists():
        keep_others(report, json.loads(json_path.read_text()), sides, cases)
    with tempfile.TemporaryDirectory(prefix="tribes-gateway-") as folder, _engine(Path(folder)) as engine:
        for number in range(rounds or (QUICK_ROUNDS if quick else ROUNDS)):
            for group in rotated([g for g, doors in GROUPS.items() if set(doors) & set(sides)], number):
                _turn(report, number, group, [s for s in GROUPS[group] if s in sides], cases, quick, engine, folder)
                judge(report)
                report.write(json_path)  # what is measured is kept, whatever happens to the next group
    for name, ratio in report.ratios.items():
        shown = f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g})"
        console.print(f"{shown} {report.bars.get(name, '')}")


def _turn(
    report: Report,
    number: int,
    group: str,
    sides: list[str],
    cases: tuple[str, ...],
    quick: bool,
    engine: Door,
    folder: str,
) -> None:
    place = Path(folder) / f"{group}-{number}"
    place.mkdir()
    started_s = time.monotonic()
    with _started(group, engine, place) as up:
        console.log(f"round {number} {group}: up after {time.monotonic() - started_s:.0f} s")
        report.config[group] = dict(up.config)
        Turn(number, group, engine, up, sides, chosen_cases(cases, quick), report, place, console.log).run()
    console.log(f"round {number} {group}: {time.monotonic() - started_s:.0f} s in all")


def _started(group: str, engine: Door, folder: Path) -> AbstractContextManager[Up]:
    def quietly(line: str) -> None:
        """Progress of a start, which is the same in every round."""

    if group == "tribes":
        return ours.tribes(folder, quietly)
    if group in (SHIPPED, HAPROXY):
        return plain_serve(group, engine, folder, quietly)
    start = {"litellm": peers.litellm, "vllm_router": peers.vllm_router, "sglang_router": peers.sglang_router}
    return start[group](engine, folder)


@contextlib.contextmanager
def _engine(folder: Path) -> Iterator[Door]:
    """The engine of every door but ours, whose replica starts one of its own: the same program."""
    port, key = free_port("127.0.0.1"), secrets.token_hex(24)
    log = folder / "engine.log"
    flags = ["--port", str(port), "--api-key", key, "--served-model-name", ENGINE_MODEL]
    with process([sys.executable, "-m", MODULE, *flags], {}, log) as pid:
        door = Door(f"http://127.0.0.1:{port}", (key,), ENGINE_MODEL)
        wait_answering(door, pid, log)
        yield door


def keep_others(report: Report, before: dict[str, Any], sides: tuple[str, ...], cases: tuple[str, ...]) -> None:
    """Runs that are not measured again stay: what was measured at another time may stand in one file."""
    groups = {group for group, doors in GROUPS.items() if set(doors) & set(sides)}
    measured = {*cases, "memory", *([SATURATED] if {"c16", "c64"} & set(cases) else [])}

    def is_new(run: dict[str, Any]) -> bool:
        if run["case"] not in measured:
            return False
        return run["group"] in groups if run["side"] == DIRECT else run["side"] in sides

    report.runs += [run for run in before["runs"] if not is_new(run)]
    report.config = {**before["config"], **report.config}
    report.more_versions = {**_peers_of(before), **report.more_versions}
    report.command = f"{before['command']}; {report.command}"


def _peers_of(result: dict[str, Any]) -> dict[str, str]:
    names = {peer.package for peer in peers.PEERS.values()}
    return {name: version for name, version in result["versions"].items() if name in names}


def _described(cases: tuple[str, ...], quick: bool) -> dict[str, Any]:
    """What all sides share."""
    loads = {
        case.name: {"seconds": case.seconds, "concurrency": case.concurrency, "rate_per_s": case.rate_per_s}
        for case in chosen_cases(cases, quick)
    }
    engine = f"{MODULE}: one process, uvloop, httptools, TCP_NODELAY, 20 chunks"
    client = "one process, uvloop, raw protocol, keep-alive, TCP_NODELAY, TCP_QUICKACK"
    return {"engine": engine, "client": client, "cases": loads}


def _known(what: str, given: list[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [name for name in given or () if name not in known]
    if wrong:
        raise typer.BadParameter(f"no {what} {', '.join(wrong)}; there are {', '.join(known)}", param_hint=f"--{what}")
    return tuple(name for name in known if not given or name in given)


if __name__ == "__main__":
    typer.run(main)
