"""Keys and tenants through the command line, against a real SQLite store."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.config import load_config
from cluster.state import Store, hash_key


def keys(config_path: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["keys", *arguments, "-c", str(config_path)])
    return result.exit_code, result.stdout, result.stderr


def store_of(config_path: Path) -> Store:
    return Store(load_config(config_path).state.url)


def test_the_secret_is_printed_once_and_works_until_revoked(config_path: Path) -> None:
    code, output, _ = keys(config_path, "create", "--tenant", "team-x")
    secret = output.splitlines()[0]
    assert code == 0 and secret.startswith("sk-tribes-")
    store = store_of(config_path)
    key = store.find_key(hash_key(secret))
    assert key is not None and key.tenant == "team-x"
    code, listed, _ = keys(config_path, "list")
    assert code == 0 and key.key_id in listed and secret not in listed
    assert keys(config_path, "revoke", key.key_id)[0] == 0
    assert store.find_key(hash_key(secret)) is None
    assert key.key_id not in keys(config_path, "list")[1]
    assert "revoked" in keys(config_path, "list", "--all")[1]


def test_a_new_weight_keeps_the_rest_of_the_policy(config_path: Path) -> None:
    assert keys(config_path, "create", "--tenant", "team-b")[0] == 0
    policy = store_of(config_path).tenants()["team-b"]
    assert (policy["weight"], policy["default_tier"], policy["limits"]["max_queued"]) == (2, "flex", 9)
    assert keys(config_path, "create", "--tenant", "team-b", "--weight", "5", "--max-concurrent", "3")[0] == 0
    policy = store_of(config_path).tenants()["team-b"]
    assert (policy["weight"], policy["default_tier"]) == (5, "flex")
    assert (policy["limits"]["max_queued"], policy["limits"]["max_concurrent"]) == (9, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tenant", "a", "--weight", "0"), "weight"),
        (("--tenant", "a", "--weight", "nan"), "weight"),
        (("--tenant", "No Spaces"), "lower-case"),
    ],
)
def test_what_no_configuration_may_say_is_refused(config_path: Path, arguments: tuple[str, ...], said: str) -> None:
    code, _, error = keys(config_path, "create", *arguments)
    assert code == 1 and said in error
    store = store_of(config_path)
    store.create()
    assert not store.tenants().get("a") and not store.keys()


def test_an_unknown_id_names_the_cure(config_path: Path) -> None:
    code, _, error = keys(config_path, "revoke", "nope")
    assert code == 1 and "keys list" in error and "'nope'" in error


def test_without_keys_the_list_says_how_to_make_one(config_path: Path) -> None:
    assert "keys create" in keys(config_path, "list")[1]
