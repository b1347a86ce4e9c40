"""validate, schema, help, and how errors look."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app

ROOT = Path(__file__).resolve().parents[3]
run = CliRunner().invoke
HEAVY = ("ray", "torch", "pandas", "httpx", "sqlalchemy", "pydantic", "yaml")


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    check = (
        "import sys, cluster.cli.app as a; "
        f"heavy = set({HEAVY!r}) & set(sys.modules); assert not heavy, heavy; a.app(['--help'], prog_name='tribes')"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("up", "down", "status", "keys", "chat", "batch", "validate", "schema", "explain", "quality", "demo"):
        assert f" {name} " in done.stdout


@pytest.mark.parametrize("name", ["local", "h100", "heterogeneous"])
def test_committed_configurations_are_valid(name: str) -> None:
    result = run(app, ["validate", str(ROOT / "configs" / f"{name}.yaml")])
    assert result.exit_code == 0, result.output
    assert "valid" in result.output and "semi_online" in result.output


def test_every_problem_is_shown_in_red_and_the_exit_code_is_1(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("models: {m: {source: {kind: local, path: x}}}\ndeployments: {d: {modle: m}}\nfoo: 1\n")
    result = run(app, ["validate", str(path)])
    assert result.exit_code == 1
    assert "did you mean model" in result.stderr and "foo" in result.stderr and "Traceback" not in result.stderr


def test_schema_is_the_committed_one() -> None:
    result = run(app, ["schema"])
    assert json.loads(result.stdout) == json.loads((ROOT / "configs" / "schema.json").read_text())


@pytest.mark.parametrize("command", [["status"], ["up"], ["down"], ["keys", "list"], ["demo"], ["chat"]])
def test_without_a_configuration_here_the_cure_is_named(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(app, command)
    assert result.exit_code == 1
    assert "configs/local.yaml" in result.stderr and "-c FILE" in result.stderr


def test_a_defect_keeps_its_traceback(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: object, since_h: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cluster.cli.status_data.collect", broken)
    assert isinstance(run(app, ["status", "-c", str(config_path)]).exception, ZeroDivisionError)


def test_a_refused_ray_token_is_one_line(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import AuthenticationError

    def refused(config: object, since_h: float) -> None:
        raise AuthenticationError("Unauthorized")

    monkeypatch.setattr("cluster.cli.status_data.collect", refused)
    result = run(app, ["status", "-c", str(config_path)])
    assert result.exit_code == 1 and "RAY_AUTH_TOKEN_PATH" in result.stderr


def test_an_interrupt_ends_with_130(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: object, since_h: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.cli.status_data.collect", interrupted)
    assert run(app, ["status", "-c", str(config_path)]).exit_code == 130


def test_usage_errors_are_typers_own(config_path: Path) -> None:
    result = run(app, ["status", "--nonsense"])
    assert result.exit_code == 2 and "--nonsense" in result.stderr
