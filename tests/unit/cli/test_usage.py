"""`tribes usage` against a real SQLite store."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.config import load_config
from cluster.state import Store
from tests.unit.state.records import record


def usage(config_path: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["usage", "-c", str(config_path), *arguments])
    return result.exit_code, result.stdout, result.stderr


def as_json(config_path: Path, *arguments: str) -> dict[str, Any]:
    code, output, error = usage(config_path, *arguments, "--json")
    assert code == 0, error
    found: dict[str, Any] = json.loads(output)
    return found


@pytest.fixture
def used(config_path: Path) -> Path:
    """An hour of one replica: a quarter of its service went to `default`, the rest to `team-b`."""
    store = Store(load_config(config_path).state.url)
    store.create()
    now_s = time.time()
    store.touch_replica("fast/1", "m", "fast", 3.6, now_s - 1000, now_s - 1)
    common = {"deployment": "fast", "finished_at_s": now_s - 2}
    store.add_usage(
        [
            record(1, tenant="default", **common),
            record(2, tenant="team-b", output_tokens=27, **common),
            record(3, tenant="team-b", deployment="fast", finished_at_s=now_s - 40 * 86400),
        ]
    )
    store.close()
    return config_path


def test_a_line_per_tenant_and_their_total(used: Path) -> None:
    code, output, _ = usage(used)
    rows = {line.split()[1]: line.split() for line in output.splitlines() if line.startswith("│")}
    assert code == 0 and set(rows) == {"default", "team-b", "total"}
    cells = [cell for cell in rows["default"][3:] if cell != "│"]
    assert cells == ["1", "10", "4", "7", "249.8", "0.24975", "14691.1765"]
    assert rows["total"][3] == "2" and "749.2" in rows["team-b"]


def test_json_has_the_same_numbers_under_the_name_of_the_grouping(used: Path) -> None:
    found = as_json(used, "--by", "model")
    assert [(line["tenant"], line["model"], line["output_tokens"]) for line in found["data"]] == [
        ("default", "m", 7), ("team-b", "m", 27),
    ]  # fmt: skip
    assert found["total"]["usd"] == pytest.approx(0.999) and found["total"]["replica_seconds"] == pytest.approx(999)
    assert found["until"] - found["since"] == pytest.approx(30 * 86400)


def test_one_tenant_and_a_longer_time(used: Path) -> None:
    (line,) = as_json(used, "--tenant", "team-b", "--since", "60d")["data"]
    assert (line["tenant"], line["requests"], line["output_tokens"]) == ("team-b", 2, 34)
    days = as_json(used, "--tenant", "team-b", "--since", "60d", "--by", "day")["data"]
    assert [line["requests"] for line in days] == [1, 1]
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert days[1]["day"] in (today, time.strftime("%Y-%m-%d", time.gmtime(time.time() - 3600)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tenant", "nobody"), "the tenants are default, team-b"),
        (("--since", "yesterday"), "--since: 'yesterday' is no point in time"),
        (("--since", "today", "--until", "2020-01-01"), "not before"),
    ],
)
def test_what_cannot_be_asked_names_the_cure(used: Path, arguments: tuple[str, ...], said: str) -> None:
    code, _, error = usage(used, *arguments)
    assert code == 1 and said in error


def test_a_store_of_newer_code_is_one_line(used: Path) -> None:
    engine = create_engine(load_config(used).state.url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    code, _, error = usage(used)
    assert code == 1 and "9999" in error and "Traceback" not in error


def test_nothing_used_is_said(config_path: Path) -> None:
    code, output, _ = usage(config_path, "--since", "today")
    assert code == 0 and "nothing was used" in output
