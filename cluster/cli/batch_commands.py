"""`tribes batch`: offline jobs. Owns: options and exit code. Must not know: the Jobs API, what a job does."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.options import DEFAULT_CONFIG, ConfigOption, load
from cluster.cli.screen import console

app = typer.Typer(no_args_is_help=True, help="Offline jobs.")


@app.callback()
def batch() -> None:
    """Offline jobs."""


@app.command("submit", context_settings={"allow_extra_args": True})
def submit(
    context: typer.Context,
    source: Annotated[str, typer.Option("--input", help="JSONL, Parquet or CSV: a file, folder, glob or URL.")],
    output: Annotated[str, typer.Option(help="Folder or URL for the answers. The same folder again continues.")],
    config: ConfigOption = DEFAULT_CONFIG,
    model: Annotated[str | None, typer.Option(help="Model id; needed when several have offline deployments.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer of a row.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the log and exit with the job's exit code.")] = True,
) -> None:
    """Answer every row of the input in a Ray job. More options of `batch_jobs.generate` may follow after `--`."""
    loaded = load(config)
    assert loaded.source_path is not None
    from cluster.cli.jobs import JobsClient, entrypoint

    command = entrypoint(loaded.source_path, source, output, model=model, max_tokens=max_tokens, extra=context.args)
    screen = console()
    jobs = JobsClient(loaded)
    job_id = jobs.submit(command)
    screen.print(f"job {job_id}: {command}", markup=False, soft_wrap=True)
    if not wait:
        screen.print("see `tribes status`, or the job's page in the Ray dashboard", markup=False)
        return
    try:
        code = jobs.follow(job_id, lambda line: screen.print(line, markup=False, soft_wrap=True))
    except KeyboardInterrupt:
        screen.print(f"\nthe job goes on; stop it with `ray job stop {job_id}` and continue with the same command")
        raise
    raise typer.Exit(code)
