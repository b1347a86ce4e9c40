"""`tribes quality` against a gateway whose models are known, and the real figures that must come out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.cli.errors import UsageError
from cluster.cli.quality_run import Side, side_of
from cluster.config import load_config
from tests.unit.cli.quality_model import answering

PROMPTS = ["odd one", "even two", "odd three", "even four"]


@pytest.fixture
def gateway() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    with answering() as running:
        yield running


def write_config(folder: Path, port: int) -> Path:
    names = ("base", "twin", "drift", "mute")
    config = {
        "models": {name: {"source": {"kind": "local", "path": str(folder)}} for name in names},
        "deployments": {name: {"model": name, "serves": ["online"], "engine": {"kind": "vllm"}} for name in names},
        "gateway": {"port": port},
        "paths": {"data": str(folder / "data")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def quality(folder: Path, port: int, *arguments: str, prompts: list[str] | None = None) -> tuple[int, str, str]:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": text, "prompt": text}) + "\n" for text in prompts or PROMPTS))
    config = write_config(folder, port)
    options = ["-c", str(config), "--key", "k", "--prompts", str(file)]
    result = CliRunner().invoke(app, ["quality", *arguments, *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_models_that_say_the_same_are_equal(tmp_path: Path, gateway: tuple[int, list[dict[str, Any]]]) -> None:
    code, out, _ = quality(tmp_path, gateway[0], "base", "twin", "--json")
    report = json.loads(out)
    assert code == 0 and report["holds"] and report["missed"] == []
    summary = report["summary"]
    assert summary["exact_match"] == summary["token_agreement"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert (summary["method"], summary["logprob_divergence"]["mean"]) == ("rescored", 0.0)
    assert (summary["diverged"], summary["first_divergence_median"]) == (0, None)
    assert all(request["temperature"] == 0 for request in gateway[1])


def test_a_drifting_model_is_found_with_the_right_figures(
    tmp_path: Path, gateway: tuple[int, list[dict[str, Any]]]
) -> None:
    code, out, _ = quality(tmp_path, gateway[0], "base", "drift", "--json")
    report = json.loads(out)
    summary = report["summary"]
    assert code == 3 and not report["holds"] and len(report["missed"]) == 2
    assert summary["exact_match"]["mean"] == 0.5  # the odd prompts differ
    assert summary["token_agreement"]["mean"] == pytest.approx((1 + 2 / 6) / 2)
    assert (summary["diverged"], summary["first_divergence_median"]) == (2, 2)
    assert summary["logprob_divergence"]["mean"] == pytest.approx(0.25)
    assert [item["prompt"] for item in report["prompts"]] == PROMPTS
    code, out, _ = quality(
        tmp_path, gateway[0], "base", "drift", "--min-token-agreement", "0.6", "--max-logprob-divergence", "0.3"
    )
    assert code == 0 and "holds: drift answers as base does" in out
    assert "about" in out  # where the texts part


def test_an_engine_without_echo_or_log_probs_is_compared_by_words(
    tmp_path: Path, gateway: tuple[int, list[dict[str, Any]]]
) -> None:
    code, out, _ = quality(tmp_path, gateway[0], "base", "mute", "--json")
    summary = json.loads(out)["summary"]
    assert code == 0
    assert (summary["unit"], summary["method"], summary["logprob_divergence"]) == ("word", "none", None)
    assert summary["token_agreement"]["mean"] == 1.0


def test_without_echo_the_likeliest_tokens_are_compared(
    tmp_path: Path, gateway: tuple[int, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any) -> None:
        return None

    monkeypatch.setattr("cluster.cli.quality_run.Asker.rescore", refused)
    _, out, _ = quality(tmp_path, gateway[0], "base", "drift", "--json", prompts=["even two"])
    summary = json.loads(out)["summary"]
    p, q = math.exp(-0.2), math.exp(-0.45)
    by_hand = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert summary["method"] == "top_k_kl"
    assert summary["logprob_divergence"]["mean"] == pytest.approx(by_hand)


def test_prompts_that_fail_are_listed_and_lose(tmp_path: Path, gateway: tuple[int, list[dict[str, Any]]]) -> None:
    code, out, _ = quality(tmp_path, gateway[0], "base", "twin", prompts=["even", "refuse this"])
    assert code == 3
    assert "not answered: refuse this: the API answered 429" in out and "1 of 2 prompts" in out
    code, _, err = quality(tmp_path, gateway[0], "base", "twin", prompts=["refuse"])
    assert code == 1 and "no prompt was answered by both" in err and "Traceback" not in err


def test_nobody_listening_is_one_line(tmp_path: Path) -> None:
    code, _, err = quality(tmp_path, 1, "base", "twin")
    assert code == 1 and "Is the cluster up?" in err and "Traceback" not in err


def test_a_bad_file_of_prompts_is_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, 1)
    result = CliRunner().invoke(app, ["quality", "base", "twin", "-c", str(config), "--prompts", str(config)])
    assert result.exit_code == 1 and "line 1" in result.stderr


def test_a_deployment_is_its_model_in_its_class_where_no_other_takes_it(tmp_path: Path) -> None:
    config = write_config(tmp_path, 1)
    data = yaml.safe_load(config.read_text())
    data["deployments"]["base-flex"] = {"model": "base", "serves": ["semi_online"], "engine": {"kind": "vllm"}}
    data["deployments"]["lender"] = {
        "model": "twin",
        "serves": ["semi_online", "online"],
        "engine": {"kind": "vllm"},
    }
    config.write_text(yaml.safe_dump(data))
    loaded = load_config(config)
    assert side_of(loaded, "base-flex") == Side("base-flex", "base", "flex")
    assert side_of(loaded, "base") == Side("base", "base", "auto")
    data["deployments"]["one"] = {"model": "twin", "serves": ["online"], "engine": {"kind": "vllm"}}
    config.write_text(yaml.safe_dump(data))
    with pytest.raises(UsageError, match="may also run on lender, twin"):
        side_of(load_config(config), "one")
    with pytest.raises(UsageError, match="unknown model or served deployment 'bse'; did you mean base"):
        side_of(loaded, "bse")
