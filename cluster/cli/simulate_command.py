"""`tribes simulate`: options, progress, tables. Owns: how a simulation is asked for and shown in a terminal.

Must not know: how it is simulated, how the page is drawn.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.errors import UsageError
from cluster.cli.screen import console, error_console, titled_table
from cluster.vocabulary import RequestClass

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.config import TribesConfig
    from cluster.simulation.results import GroupResult, SimulationResult
    from cluster.simulation.settings import Settings
    from cluster.simulation.workload import Trace

TENANTS_SHOWN = 12
FIGURES = (
    "requests",
    "refused",
    "good",
    "good/s",
    "wait p99",
    "TTFT p50",
    "TTFT p99",
    "TPOT p50",
    "E2E p50",
    "E2E p99",
)


def simulate(
    config: Annotated[Path, typer.Argument(help="Configuration file.")],
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Recorded requests: Azure or ServeGen CSV, Mooncake JSONL, `vllm bench serve` JSON, or JSONL with "
            "arrived_s, prompt_tokens, output_tokens. Without it the loads in --settings are drawn."
        ),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="YAML: engines by deployment, cold starts, failures, SLOs, drawn loads.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="A built-in engine, or a calibration file, for all.")] = None,
    compare: Annotated[list[Path] | None, typer.Option(help="Another configuration under the same load.")] = None,
    model: Annotated[str | None, typer.Option(help="Which, if several are deployed.")] = None,
    rate: Annotated[float, typer.Option(help="Times as fast as the trace was recorded.")] = 1.0,
    seconds: Annotated[float | None, typer.Option(help="Cut or repeat the trace; length of drawn loads.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many requests of the trace.")] = None,
    request_class: Annotated[
        RequestClass, typer.Option("--class", help="Of requests that name none.")
    ] = RequestClass.ONLINE,
    seed: Annotated[int, typer.Option(help="The same seed gives the same result.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots here.")] = None,
) -> None:
    """Run a load through the live queue, placement and autoscaler on simulated engines. Starts nothing."""
    from cluster.simulation.settings import SettingsError
    from cluster.simulation.workload import TraceError

    if seconds is not None and seconds <= 0:
        raise UsageError(f"--seconds must be above 0, got {seconds:g}")
    try:
        cases = _cases([config, *(compare or [])], settings, engine)
        load = _load(cases[0][2], trace, rate, seconds, limit, request_class, seed)
        results = [_run(name, loaded, given, load, model, seed) for name, loaded, given in cases]
    except (SettingsError, TraceError) as error:
        raise UsageError(str(error)) from error
    screen = console()
    for show in (_classes, _tenants, _deployments):
        show(screen, results)
    if json_path is not None:
        _write_json(json_path, results, trace, seed)
    if html is not None:
        from cluster.cli.simulate_page import page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(results), encoding="utf-8")


def _cases(
    paths: list[Path], settings_path: Path | None, engine: str | None
) -> list[tuple[str, TribesConfig, Settings]]:
    """Name, configuration and settings of each simulation."""
    from cluster.config import load_config
    from cluster.simulation.settings import ANY, EngineSettings, Settings, load_settings

    loaded = [load_config(path) for path in paths]
    settings = Settings()
    if settings_path is not None:
        settings = load_settings(settings_path, list(dict.fromkeys(name for c in loaded for name in c.deployments)))
    if engine is not None:
        given = settings.engines.get(ANY, EngineSettings()).model_copy(update={"profile": engine, "step": None})
        settings = settings.model_copy(update={"engines": {**settings.engines, ANY: given}})
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [(name, item, settings) for name, item in zip(names, loaded, strict=True)]


def _load(
    settings: Settings,
    path: Path | None,
    rate: float,
    seconds: float | None,
    limit: int | None,
    request_class: RequestClass,
    seed: int,
) -> Trace:
    from cluster.simulation.simulate import drawn, repeated
    from cluster.simulation.workload import load_trace

    if path is None:
        return drawn(settings, 600.0 if seconds is None else seconds, seed)
    trace = load_trace(path, rate=rate, limit=limit, request_class=request_class)
    return trace if seconds is None else repeated(trace, seconds)


def _run(
    name: str, config: TribesConfig, settings: Settings, trace: Trace, model: str | None, seed: int
) -> SimulationResult:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cluster.simulation.simulate import simulate as run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console(), transient=True) as bar:
        task = bar.add_task(name, total=len(trace.requests))
        every = max(1, len(trace.requests) // 200)

        def ended(count: int) -> None:
            if count % every == 0:
                bar.update(task, completed=count)

        return run(config, settings, trace, model=model, seed=seed, name=name, progress=ended)


def _write_json(path: Path, results: list[SimulationResult], trace: Path | None, seed: int) -> None:
    import json

    data = {"trace": trace.name if trace else None, "seed": seed, "simulations": [asdict(r) for r in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


# --- tables -----------------------------------------------------------------------------------------------------------


def _classes(screen: Console, results: list[SimulationResult]) -> None:
    table = titled_table("Classes (times in seconds)", "", "class", *FIGURES, right=FIGURES)
    for result in results:
        for item in result.classes.values():
            table.add_row(result.name, item.name, *_figures(item))
    screen.print(table)
    for result in results:
        for item in result.classes.values():
            if item.cached_tokens:
                screen.print(f"{result.name} {item.name}: {item.hit_rate:.1%} of the prompt tokens were cached")
    for result in results:
        for name, fair in result.fairness.items():
            screen.print(
                f"{result.name} {name}: Jain {fair.jain:.3f}, difference in service {fair.difference_max:.0f} at most, "
                f"{fair.difference_mean:.0f} on average (tokens/s)"
            )


def _tenants(screen: Console, results: list[SimulationResult]) -> None:
    for result in results:
        for name, tenants in result.tenants.items():
            if len(tenants) < 2:
                continue
            shown = sorted(tenants.values(), key=lambda item: -item.requests)[:TENANTS_SHOWN]
            title = f"{result.name}: {len(shown)} of {len(tenants)} tenants, {name}"
            table = titled_table(title, "tenant", *FIGURES, right=FIGURES)
            for item in shown:
                table.add_row(item.name, *_figures(item))
            screen.print(table)


def _deployments(screen: Console, results: list[SimulationResult]) -> None:
    columns = ("replicas at most", "replica hours", "utilisation", "cost", "preemptions", "failures")
    table = titled_table("Deployments", "", "deployment", *columns, "starts", right=columns)
    for result in results:
        for item in result.deployments.values():
            table.add_row(
                result.name,
                item.name,
                str(item.most_replicas),
                f"{item.replica_seconds / 3600:.2f}",
                f"{item.utilisation:.0%}",
                f"${item.usd:.2f}",
                str(item.preemptions),
                str(item.failures),
                ", ".join(f"{count} {rung}" for rung, count in item.starts.items()) or "-",
            )
    screen.print(table)
    for result in results:
        per_mtok = "" if result.usd_per_mtok is None else f", ${result.usd_per_mtok:.3g} per million tokens"
        screen.print(f"{result.name}: {result.seconds:.0f} s simulated, ${result.usd:.2f}{per_mtok}")


def _figures(item: GroupResult) -> list[str]:
    return [
        str(item.requests),
        str(sum(item.refused.values())),
        f"{item.attainment:.1%}",
        f"{item.goodput_per_s:.2f}",
        _seconds(item.wait.p99 if item.wait else None),
        _seconds(item.ttft.p50 if item.ttft else None),
        _seconds(item.ttft.p99 if item.ttft else None),
        _seconds(item.tpot.p50 if item.tpot else None),
        _seconds(item.e2e.p50 if item.e2e else None),
        _seconds(item.e2e.p99 if item.e2e else None),
    ]


def _seconds(seconds: float | None) -> str:
    """Three digits."""
    if seconds is None:
        return "-"
    return f"{seconds:.4f}" if seconds < 0.1 else f"{seconds:.2f}" if seconds < 100 else f"{seconds:.0f}"
