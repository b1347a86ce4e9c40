"""`tribes up` and `down` around a fake local cluster, and how progress looks."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.cli.screen import Progress
from cluster.config import TribesConfig
from cluster.local import LocalClusterError
from cluster.local.up import Started


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_up_says_what_it_does_and_how_to_go_on(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def up(config: TribesConfig, progress: Callable[[str], None]) -> Started:
        progress("starting [Ray]")
        return Started("http://127.0.0.1:8000/v1", "http://127.0.0.1:1", "sk-tribes-x", False)

    monkeypatch.setattr("cluster.local.up.up", up)
    code, output, _ = run("up", "-c", str(config_path))
    assert code == 0
    for part in ("starting [Ray]", "http://127.0.0.1:8000/v1", "sk-tribes-x", "curl", '"model": "m"', "tribes down"):
        assert part in output, part


def test_up_that_fails_is_red_lines_and_exit_code_1(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def up(config: TribesConfig, progress: Callable[[str], None]) -> Started:
        raise LocalClusterError("port 8000 (gateway.port) is taken: stop what listens there")

    monkeypatch.setattr("cluster.local.up.up", up)
    code, _, error = run("up", "-c", str(config_path))
    assert code == 1 and "gateway.port" in error and "Traceback" not in error


@pytest.mark.parametrize(("was_up", "said"), [(True, "fake is down"), (False, "nothing to stop")])
def test_down(config_path: Path, monkeypatch: pytest.MonkeyPatch, was_up: bool, said: str) -> None:
    graces: list[float] = []

    def down(config: TribesConfig, grace_s: float, progress: Callable[[str], None]) -> bool:
        graces.append(grace_s)
        return was_up

    monkeypatch.setattr("cluster.local.up.down", down)
    code, output, _ = run("down", "-c", str(config_path), "--grace-s", "5")
    assert code == 0 and said in output and graces == [5.0]


def test_a_long_step_is_repeated_in_a_log() -> None:
    text = io.StringIO()
    with Progress(Console(file=text, width=200), heartbeat_s=0.05) as progress:
        progress("loading")
        progress.update("loading 50 %")
        deadline = time.monotonic() + 10
        while "50 %" not in text.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert text.getvalue().splitlines()[0].endswith("s  loading")
    assert "loading 50 %" in text.getvalue()


def test_a_terminal_has_a_spinner_and_every_line() -> None:
    text = io.StringIO()
    with Progress(Console(file=text, width=100, force_terminal=True)) as progress:
        progress("one [bold]")
        progress("two")
    assert "one [bold]" in text.getvalue() and "two" in text.getvalue()
