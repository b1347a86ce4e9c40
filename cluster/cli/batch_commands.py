"""`tribes batch`: offline jobs. Owns: options and exit code. Must not know: the Jobs API, what a job does."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.batch_options import PassThrough
from cluster.cli.options import DEFAULT_CONFIG, ConfigOption, load
from cluster.cli.screen import console

if TYPE_CHECKING:
    from cluster.cli.batch_registry import Submission
    from cluster.cli.jobs import JobsClient
    from cluster.config import TribesConfig

app = typer.Typer(no_args_is_help=True, help="Offline jobs.")

FOLLOW_S = 2.0
FOLLOW_LOG_S = 10.0
"""In a terminal the line is drawn anew; a log gets another one this often."""

Target = Annotated[
    str, typer.Argument(metavar="JOB|OUTPUT", help="Job id, the beginning of one, or output folder/URL.")
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log and exit with the job's exit code.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Plain data for other programs.")]


@app.callback()
def batch() -> None:
    """Offline jobs."""


@app.command(
    "submit",
    cls=PassThrough,
    context_settings={"allow_extra_args": True},
    options_metavar="[OPTIONS] [OPTIONS of batch_jobs.generate]",
    epilog="The job's own options: python -m batch_jobs.generate --help",
)
def submit(
    context: typer.Context,
    inputs: Annotated[
        list[str], typer.Option("--input", help="JSONL, Parquet or CSV: a file, folder, glob or URL. May be repeated.")
    ],
    output: Annotated[str, typer.Option(help="Folder or URL for the answers. The same folder again continues.")],
    config: ConfigOption = DEFAULT_CONFIG,
    model: Annotated[str | None, typer.Option(help="Model id; needed when several have offline deployments.")] = None,
    wait: WaitOption = True,
) -> None:
    """Answer every row of the input in a Ray job.

    All options that are not listed here go to `python -m batch_jobs.generate` as they are, for example
    --max-tokens 64 --temperature 0.

    The job runs in another folder than this one. So --input, --output, --config and the file in a value like
    @prompt.txt are made absolute; write the paths in other options in full. They must be readable where the job
    runs: use URLs or a shared folder when that is another machine.
    """
    loaded = load(config)
    from cluster.cli.batch_control import submit as start
    from cluster.cli.jobs import JobsClient

    jobs = JobsClient(loaded)
    _after_start(jobs, start(loaded, jobs, inputs, output, model, context.args), wait)


@app.command("ls")
def ls(
    config: ConfigOption = DEFAULT_CONFIG,
    limit: Annotated[int, typer.Option(min=1, help="Only so many, the newest.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the jobs, also those from before the cluster was restarted."""
    loaded = load(config)
    from cluster.cli.batch_data import list_data

    found = list_data(loaded, limit)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from cluster.cli.batch_view import render_list

    render_list(console(), found)


@app.command("show")
def show(
    target: Target,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    follow: Annotated[bool, typer.Option(help="Until it ends; with --json a line each time.")] = False,
) -> None:
    """Show one job: settings, progress, pools, errors, report, where the answers are."""
    loaded = load(config)
    found = _show_data(loaded, target)
    if follow:
        found = _follow(loaded, target, found, as_json)
    if as_json:
        typer.echo(json.dumps(found, indent=None if follow else 2))
        return
    from cluster.cli.batch_view import render_job

    render_job(console(), found)


@app.command("cancel")
def cancel(target: Target, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Stop a job; what is finished is committed and kept, and `resume` does the rest.

    The job has RAY_JOB_STOP_WAIT_TIME_S of the Ray head for this: `tribes up` sets 30 s, Ray's own default is 3 s.
    """
    loaded = load(config)
    from cluster.cli.batch_control import cancel as stop

    screen = console()
    stop(loaded, target, lambda line: screen.print(line, markup=False, soft_wrap=True))


@app.command("resume")
def resume(target: Target, config: ConfigOption = DEFAULT_CONFIG, wait: WaitOption = True) -> None:
    """Submit a job that was stopped or lost again: only the rows that are missing are answered."""
    loaded = load(config)
    from cluster.cli.batch_control import resume as restart

    screen = console()
    jobs, started = restart(loaded, target, lambda line: screen.print(line, markup=False, soft_wrap=True))
    _after_start(jobs, started, wait)


def _after_start(jobs: JobsClient, started: Submission, wait: bool) -> None:
    """Say which job it is; follow it to its exit code."""
    screen = console()
    screen.print(f"job {started.id}: {started.command}", markup=False, soft_wrap=True)
    if not wait:
        screen.print(f"`tribes batch show {started.id} --follow` follows it", markup=False)
        return
    try:
        code = jobs.follow(started.id, lambda line: screen.print(line, markup=False, soft_wrap=True))
    except KeyboardInterrupt:
        screen.print(f"\nthe job goes on; `tribes batch cancel {started.id}` stops it and keeps what is finished")
        raise
    raise typer.Exit(code)


def _show_data(config: TribesConfig, target: str) -> dict[str, Any]:
    from cluster.cli.batch_data import find_job, known_jobs, show_data

    return show_data(config, find_job(known_jobs(config), target))


def _follow(config: TribesConfig, target: str, found: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Show the job again and again while it is at work; returns what is to be said at its end."""
    from rich.live import Live
    from rich.text import Text

    from cluster.cli.batch_view import progress_line

    screen = console()
    live = Live(console=screen, transient=True, auto_refresh=False) if screen.is_terminal and not as_json else None
    if live is not None:
        live.start()
    try:
        while found["status"] in ("pending", "running"):
            if as_json:
                typer.echo(json.dumps(found))
            elif live is not None:
                live.update(Text(progress_line(found)), refresh=True)
            else:
                screen.print(progress_line(found), markup=False, soft_wrap=True)
            time.sleep(FOLLOW_S if live is not None or as_json else FOLLOW_LOG_S)
            found = _show_data(config, found["id"] or target)
    finally:
        if live is not None:
            live.stop()
    return found
