"""`tribes batch submit`: which words are its own, which go to the job unread, and what becomes of paths."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.cli.batch_options import anchored, job_argv, option_values, output_of, resumed_argv, split_options
from cluster.cli.jobs import JobsClient


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """Commands and metadata that reached Ray."""
    seen: list[tuple[str, dict[str, str]]] = []

    def submit_job(*, entrypoint: str, metadata: dict[str, str]) -> str:
        seen.append((entrypoint, metadata))
        return f"raysubmit_{len(seen)}"

    def connect(self: JobsClient, config: object) -> None:
        self._client = SimpleNamespace(submit_job=submit_job)  # type: ignore[assignment]

    monkeypatch.setattr(JobsClient, "__init__", connect)
    return seen


def submit(config_path: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["batch", "submit", "--no-wait", *words, "-c", str(config_path)])


def test_all_other_options_reach_the_job_unread_and_in_order(
    config_path: Path, submitted: list[tuple[str, dict[str, str]]]
) -> None:
    others = ["--task", "embed", "--seed", "-5", "--limit=3", "--choice", "a", "--choice", "b", "--preserve-order"]
    others += ["--system", "- be concise", "--stop", "-xc", "--schema", '{"a": 1}', "-q"]
    result = submit(config_path, *others[:7], "--input", "/a", "--output", "/out", *others[7:], "--input=s3://b/c")
    assert result.exit_code == 0, result.output
    ((command, _),) = submitted
    argv = shlex.split(command)
    assert argv[1:3] == ["-m", "batch_jobs.generate"]
    assert option_values(argv, "--input") == ["/a", "s3://b/c"] and option_values(argv, "--output") == ["/out"]
    assert option_values(argv, "--config") == [str(config_path)]
    assert argv[-len(others) :] == others


def test_the_job_carries_what_it_is(config_path: Path, submitted: list[tuple[str, dict[str, str]]]) -> None:
    submit(config_path, "--input", "/a", "--output", "s3://bucket/out")
    submit(config_path, "--input", "/a", "--output", "/out", "--model", "other")
    assert [about for _, about in submitted] == [
        {"tribes.kind": "batch", "tribes.output": "s3://bucket/out", "tribes.model": "m"},
        {"tribes.kind": "batch", "tribes.output": "/out", "tribes.model": "other"},
    ]
    assert "--model" not in shlex.split(submitted[0][0])


@pytest.mark.parametrize("missing", ["--input", "--output"])
def test_what_is_needed_is_asked_for(config_path: Path, missing: str) -> None:
    given = [word for name in ("--input", "--output") if name != missing for word in (name, "/x")]
    result = submit(config_path, *given)
    assert result.exit_code == 2 and missing in result.output


def test_help_tells_of_other_options_and_of_paths() -> None:
    result = CliRunner().invoke(app, ["batch", "submit", "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    for part in ("python -m batch_jobs.generate --help", "@prompt.txt", "made absolute"):
        assert part in result.output, part


def test_paths_are_made_absolute_where_they_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").touch()
    argv = job_argv(["in/*.jsonl", "gs://b/x"], "out", Path("/c.yaml"), None, ["--template", "@p.txt"])
    assert option_values(argv, "--input") == [f"{tmp_path}/in/*.jsonl", "gs://b/x"]
    assert option_values(argv, "--output") == [f"{tmp_path}/out"] and argv[-1] == f"@{tmp_path}/p.txt"
    assert anchored("--template=@p.txt") == f"--template=@{tmp_path}/p.txt"
    assert anchored("--prompt=short=@p.txt") == f"--prompt=short=@{tmp_path}/p.txt"
    assert anchored("short=@p.txt") == f"short=@{tmp_path}/p.txt"
    for text in ("@anna says hi", "@s3://b/p.txt", "p.txt", "--template=p.txt", "@" + "long" * 5000):
        assert anchored(text) == text


def test_words_after_the_dashes_are_never_ours() -> None:
    ours, others = split_options(["--wait", "--", "--wait", "--input", "x"], {"--wait"}, {"--input"})
    assert (ours, others) == (["--wait"], ["--wait", "--input", "x"])


def test_the_output_of_a_foreign_command() -> None:
    assert output_of("python -m batch_jobs.generate --output=/x --input y") == "/x"
    assert output_of("python -m batch_jobs.generate --output s3://b/x") == "s3://b/x"
    assert output_of("python -m batch_jobs.generate --output x") is None  # relative to a folder unknown here
    assert output_of("unbalanced 'quote") is None


def test_a_recorded_command_starts_again_from_its_own_folder(tmp_path: Path) -> None:
    for name in ("in.jsonl", "p.txt"):
        (tmp_path / name).touch()
    words = ["--input", "in.jsonl", "--output=out", "--prompt", "@p.txt"]
    argv = resumed_argv(words, tmp_path, "/data/out", Path("/c.yaml"))
    assert argv[1:] == [
        "-m", "batch_jobs.generate", "--input", f"{tmp_path}/in.jsonl", "--output", "/data/out", "--prompt",
        f"@{tmp_path}/p.txt", "--config", "/c.yaml",
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl"):
        resumed_argv(["--input", "gone.jsonl"], tmp_path, "/data/out", Path("/c.yaml"))
