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

from batch_jobs.engines.base import VLLM_ENGINE
from batch_jobs.errors import JobFailed, JobRefused
from batch_jobs.input.spec import Task
from batch_jobs.job import EXIT_STOPPED, Job
from batch_jobs.request import JobRequest

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})

ROWS, PROMPTS, SAMPLING, RUN = "Rows", "Prompts", "Parameters of every row (a row's `params` column wins)", "Run"


class OutputFormat(StrEnum):
    """Forms of a committed part."""

    JSONL = "jsonl"
    PARQUET = "parquet"


def _option(panel: str, *names: str, help: str, **more: object) -> object:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)  # type: ignore[arg-type]


@app.command()
def generate(
    inputs: Annotated[
        list[str],
        _option(ROWS, "--input", help="JSONL, Parquet, CSV, OpenAI batch JSONL: file, folder, glob, URL. Repeatable."),
    ],
    output: Annotated[str, _option(ROWS, help="Folder or URL for the answers. A rerun with the same one continues.")],
    config: Annotated[str, _option(RUN, help="Cluster config.")] = "configs/local.yaml",
    model: Annotated[str | None, _option(RUN, help="Model id; needed when several have offline deployments.")] = None,
    pool: Annotated[
        list[str] | None, _option(RUN, help="Offline deployment to use. Repeatable; default: all that have the model.")
    ] = None,
    task: Annotated[Task, _option(PROMPTS, help="What to compute for each row.")] = Task.GENERATE,
    prompt: Annotated[
        list[str] | None,
        _option(
            PROMPTS,
            help="Jinja2 template over the row's columns, or @FILE; NAME=TEMPLATE when there are several. Default: the "
            "row's own `prompt`, `messages` or `prompts` column.",
        ),
    ] = None,
    system: Annotated[
        str | None, _option(PROMPTS, help="Template of a system message, or @FILE. Implies --chat.")
    ] = None,
    chat: Annotated[bool, _option(PROMPTS, help="Send text prompts as a chat's user message.")] = False,
    tools: Annotated[str | None, _option(PROMPTS, help="Tool definitions: JSON or @FILE.")] = None,
    max_tokens: Annotated[
        int | None, _option(SAMPLING, min=1, help="Longest answer; default: up to the context.")
    ] = None,
    temperature: Annotated[float | None, _option(SAMPLING, min=0, help="Default: the model's own.")] = None,
    top_p: Annotated[float | None, _option(SAMPLING, min=0, max=1, help="Default: the model's own.")] = None,
    seed: Annotated[int | None, _option(SAMPLING, help="Seed of every row's sampling.")] = None,
    params: Annotated[
        list[str] | None, _option(SAMPLING, help="Any other fields of the OpenAI request body: JSON object or @FILE.")
    ] = None,
    json_schema: Annotated[
        str | None, _option(SAMPLING, help="Answers follow this JSON schema: JSON or @FILE.")
    ] = None,
    regex: Annotated[str | None, _option(SAMPLING, help="Answers match this expression.")] = None,
    choice: Annotated[list[str] | None, _option(SAMPLING, help="Answers are one of these. Repeatable.")] = None,
    output_format: Annotated[
        OutputFormat | None,
        _option(ROWS, "--format", help="Form of the answers; default: Parquet for Parquet, else JSONL."),
    ] = None,
    preserve_order: Annotated[
        bool, _option(ROWS, help="When all rows are done, write the answers once more in the input's order.")
    ] = False,
    limit: Annotated[int | None, _option(ROWS, min=1, help="Only the first N rows.")] = None,
    order: Annotated[
        bool, _option(RUN, "--order/--no-order", help="Run rows in the order that suits the engines, or as they come.")
    ] = True,
    dedupe: Annotated[
        bool, _option(RUN, "--dedupe/--no-dedupe", help="Compute identical deterministic requests once.")
    ] = True,
    dry_run: Annotated[
        bool, _option(RUN, help="Run a sample on one engine of each pool and predict time and cost; keeps nothing.")
    ] = False,
    sample_rows: Annotated[int, _option(RUN, min=1, help="Rows of a dry run.")] = 256,
    tenant: Annotated[
        str | None,
        _option(
            RUN, help="Who is billed: usage and engines go to the cluster's ledger (`tribes usage`). Default: nobody."
        ),
    ] = None,
    book_lives: Annotated[
        bool,
        _option(
            RUN,
            "--book-lives",
            help="Without --tenant: write what the engines cost to the cluster's ledger, and leave the tokens to "
            "whoever reads the output.",
        ),
    ] = False,
    engine_logs: Annotated[bool, _option(RUN, help="Show the engines' output here; Ray keeps it anyway.")] = False,
    engine_class: Annotated[str, typer.Option(hidden=True, help="Engine to run, as module:Class.")] = VLLM_ENGINE,
) -> None:
    """Answer every row of the input once. Kill it anywhere; the same command finishes the rest."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    request = JobRequest(
        inputs=tuple(inputs),
        output=output,
        config_path=config,
        model=model,
        pools=tuple(pool or ()),
        task=task,
        options={
            "prompts": prompt or (),
            "system": system,
            "chat": chat,
            "params": params or (),
            "tools": tools,
            "json_schema": json_schema,
            "regex": regex,
            "choices": choice or (),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        },
        format=output_format.value if output_format else None,
        limit=limit,
        preserve_order=preserve_order,
        ordered=order,
        dedupe=dedupe,
        dry_run=sample_rows if dry_run else None,
        tenant=tenant,
        book_lives=book_lives,
        engine_logs=engine_logs,
        engine_class=engine_class,
        command=tuple(sys.argv[1:]),
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
