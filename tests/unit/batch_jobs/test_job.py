"""Jobs that are refused, and jobs with nothing to do: in both cases no Ray and no engine."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from batch_jobs.errors import JobRefused
from batch_jobs.generate import app
from batch_jobs.input.rows import Row
from batch_jobs.job import Job
from batch_jobs.output.encoding import encode_part
from batch_jobs.output.parts import Result
from tests.support.offline_jobs import SCRIPTED, request, write_config, write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_config(tmp_path)
    return write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": ""}])


def finish(folder: Path) -> None:
    """Leave the output of a job whose rows are all committed."""
    rows = [
        (Row("a", {"prompt": "x"}), Result("X", "stop", prompt_tokens=3, output_tokens=2)),
        (Row("b", {"prompt": ""}), Result(error={"type": "missing_prompt", "message": "m"})),
    ]
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out" / "part-e-00000.jsonl").write_bytes(encode_part(rows, "jsonl", None))  # type: ignore[arg-type]


def run(folder: Path, source: Path, **options: Any) -> int:
    return Job(request(folder, source, **options), Console(file=sys.stderr)).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nope"}, r"unknown model 'nope'\. .* has: m, served-only"),
        ({"model": "served-only"}, r"no offline deployment\. Add one to `deployments`"),
        ({"config_path": "missing.yaml"}, "no such file"),
        ({"output": "/proc/nowhere"}, "cannot be written"),
    ],
)
def test_refusals_come_before_anything_starts(
    tmp_path: Path, source: Path, options: dict[str, Any], message: str
) -> None:
    began_s = time.monotonic()
    with pytest.raises(JobRefused, match=message):
        run(tmp_path, source, **options)
    assert time.monotonic() - began_s < 5
    assert list((tmp_path / "journal").iterdir()) == []


def test_missing_input(tmp_path: Path, source: Path) -> None:
    with pytest.raises(JobRefused, match="no such file or folder"):
        run(tmp_path, tmp_path / "none.jsonl")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sglang"}, "needs kind: vllm"),
        ({"python": "/usr/bin/python3"}, "engine.python is set"),
    ],
)
def test_engines_that_cannot_run_in_process(tmp_path: Path, source: Path, change: dict[str, str], message: str) -> None:
    import yaml

    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["deployments"]["batch"]["engine"] |= change
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(JobRefused, match=message):
        run(tmp_path, source)


def test_everything_committed_means_no_engine_and_the_missing_report_is_written(tmp_path: Path, source: Path) -> None:
    finish(tmp_path)
    assert run(tmp_path, source) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["rows"], report["ok"], report["errors"], report["complete"]) == (2, 1, {"missing_prompt": 1}, True)
    assert report["tokens"] == {"input": 3, "cached_input": 0, "output": 2} and report["run"]["rows"] == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"part-e-00000.jsonl", "_job.json", "_progress.json", "report.json", "report.html", "done.json"}
    assert run(tmp_path, source) == 0
    assert "ray" not in sys.modules or list((tmp_path / "journal").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"), [({"limit": 1}, "limit, rows, input differ"), ({"format": "parquet"}, "format differ")]
)
def test_an_output_of_another_job_is_refused(tmp_path: Path, source: Path, options: dict[str, Any], named: str) -> None:
    finish(tmp_path)
    run(tmp_path, source)
    with pytest.raises(JobRefused, match=f"belongs to another job: {named}"):
        run(tmp_path, source, **options)


def test_a_changed_input_is_refused(tmp_path: Path, source: Path) -> None:
    finish(tmp_path)
    run(tmp_path, source)
    source.write_text(source.read_text().replace('"x"', '"y"'))
    with pytest.raises(JobRefused, match="input differ"):
        run(tmp_path, source)


def test_command_line_says_why_and_exits_2(tmp_path: Path, source: Path) -> None:
    arguments = ["--input", str(source), "--output", str(tmp_path / "out"), "--config", str(tmp_path / "config.yaml")]
    result = CliRunner().invoke(app, [*arguments, "--model", "nope", "--engine-class", SCRIPTED])
    assert result.exit_code == 2
    assert "refused: unknown model 'nope'" in result.output


def test_the_refused_job_gives_its_lock_back(tmp_path: Path, source: Path) -> None:
    write_jsonl(source, [{"text": "x"}])
    with pytest.raises(JobRefused, match="no prompt, messages or prompts column"):
        run(tmp_path, source)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_submitted_job_needs_an_output_that_outlives_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "x"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(JobRefused, match="temporary copy of its working directory"):
        run(tmp_path, source, output="answers")
