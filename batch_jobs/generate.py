"""Command line of offline jobs.

    ray job submit --working-dir . -- python -m batch_jobs.generate --input questions.jsonl --output answers/

Role: options in, exit code out. Owns: signals. Must not know: how a job runs.
Exit codes: 0 all rows committed, 1 the job failed half way, 2 refused before anything started, 130 stopped by a signal.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from batch_jobs.engines.base import VLLM_ENGINE, Sampling
from batch_jobs.errors import JobFailed, JobRefused
from batch_jobs.job import EXIT_STOPPED, Job, JobRequest

app = typer.Typer(add_completion=False)


class OutputFormat(StrEnum):
    """Forms of a committed part."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@app.command()
def generate(
    inputs: Annotated[
        list[str], typer.Option("--input", help="JSONL, Parquet or CSV: a file, folder, glob or URL. May be repeated.")
    ],
    output: Annotated[str, typer.Option(help="Folder or URL for the answers. A rerun with the same folder continues.")],
    config: Annotated[str, typer.Option(help="Cluster config.")] = "configs/local.yaml",
    model: Annotated[str | None, typer.Option(help="Model id; needed when several have offline deployments.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; default: up to the context.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Default: the model's own.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Default: the model's own.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every row's sampling.")] = None,
    output_format: Annotated[OutputFormat, typer.Option("--format", help="Form of the answers.")] = OutputFormat.JSONL,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    engine_logs: Annotated[bool, typer.Option(help="Show the engines' output here; Ray keeps it anyway.")] = False,
    engine_class: Annotated[str, typer.Option(hidden=True, help="Engine to run, as module:Class.")] = VLLM_ENGINE,
) -> None:
    """Answer every row of the input once. Kill it anywhere; the same command finishes the rest."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    request = JobRequest(
        inputs=tuple(inputs),
        output=output,
        config_path=config,
        model=model,
        sampling=Sampling(max_tokens, temperature, top_p, seed),
        format=output_format.value,
        limit=limit,
        engine_logs=engine_logs,
        engine_class=engine_class,
    )
    raise typer.Exit(run(request, Console()))


def run(request: JobRequest, console: Console) -> int:
    """Run a job to its exit code."""
    job = Job(request, console)
    handler = _StopHandler(job)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    try:
        return job.run()
    except JobRefused as error:
        console.print(f"refused: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    except JobFailed as error:
        console.print(f"failed: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped", highlight=False)
        return EXIT_STOPPED


class _StopHandler:
    """The first signal asks the job to stop; the second ends the process at once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._asked = False

    def __call__(self, number: int, frame: object) -> None:
        if self._asked:
            os._exit(EXIT_STOPPED)
        self._asked = True
        self._job.stop()


if __name__ == "__main__":
    app()
