"""`tribes quality`: does B answer as A does? Owns: options, tables, exit status. Must not know: the formulas."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cluster.cli.chat_command import default_key
from cluster.cli.errors import UsageError
from cluster.cli.options import DEFAULT_CONFIG, ConfigOption, load
from cluster.cli.screen import Progress, console, error_console, titled_table

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.cli.quality_run import Comparison, Side
    from cluster.config import TribesConfig
    from cluster.quality import Prompt, Summary, Thresholds

LOST: Final = 3
"""Exit status when a threshold is not kept, or a prompt was not answered."""
SHOWN: Final = 5
ANSWER_TIMEOUT_S: Final = 600.0
METHODS: Final = {
    "rescored": "mean |log-prob| gap of A's tokens under B, in nats",
    "top_k_kl": "KL(A, B) over common likeliest tokens up to the first difference, in nats",
    "none": "the engines told no log-probabilities",
}


def quality(
    a: Annotated[str, typer.Argument(help="The base: a model, or a served deployment.")],
    b: Annotated[str, typer.Argument(help="What is compared with it, such as its quantised twin.")],
    config: ConfigOption = DEFAULT_CONFIG,
    key: Annotated[str | None, typer.Option(help="API key; default: the local default key.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSONL with `prompt` or `messages`; default: built in.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    top_logprobs: Annotated[int, typer.Option(min=0, max=20, help="0: do not ask for log-probabilities.")] = 5,
    concurrency: Annotated[int, typer.Option(min=1, help="Prompts at once; 1 keeps batches alike.")] = 1,
    min_exact_match: Annotated[float, typer.Option(min=0, max=1, help="Share of equal texts.")] = 0.5,
    min_token_agreement: Annotated[float, typer.Option(min=0, max=1, help="Share of leading tokens equal.")] = 0.8,
    max_logprob_divergence: Annotated[float, typer.Option(min=0, help="In nats.")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Compare the greedy answers of two models of a running cluster; exit code 3 where B differs too much."""
    from cluster.cli.quality_run import side_of
    from cluster.quality import BUILT_IN, PromptError, Thresholds, read_prompts, summarise

    loaded = load(config)
    sides = side_of(loaded, a), side_of(loaded, b)
    try:
        asked = read_prompts(prompts) if prompts else list(BUILT_IN)
    except PromptError as error:
        raise UsageError(str(error)) from error
    settings = {"max_tokens": max_tokens, "top_logprobs": top_logprobs, "concurrency": concurrency}
    found = asyncio.run(_compare(loaded, key or default_key(loaded), sides, asked, settings))
    if not found.differences:
        name, what = found.failures[0]
        raise UsageError(f"no prompt was answered by both; the first, {name}: {what}")
    thresholds = Thresholds(min_exact_match, min_token_agreement, max_logprob_divergence)
    summary = summarise(found.differences)
    missed = summary.missed(thresholds)
    if found.failures:
        missed.append(f"{len(found.failures)} of {len(asked)} prompts were not answered by both")
    if as_json:
        _print_json(sides, settings, summary, thresholds, missed, found)
    else:
        _show(sides, summary, thresholds, missed, found)
    if missed:
        raise typer.Exit(LOST)


async def _compare(
    config: TribesConfig, key: str, sides: tuple[Side, Side], prompts: list[Prompt], settings: dict[str, int]
) -> Comparison:
    import httpx

    from cluster.cli.api import api_url, timeouts
    from cluster.cli.quality_run import Asker, compare

    longest_wait_s = max(policy.max_wait_s for policy in config.scheduling.classes.values())
    limits = timeouts(longest_wait_s + ANSWER_TIMEOUT_S)
    async with httpx.AsyncClient(base_url=api_url(config), timeout=limits) as client:
        asker = Asker(client, key, settings["max_tokens"], settings["top_logprobs"])
        with Progress(error_console()) as progress:
            progress(f"asking {sides[0].name} and {sides[1].name} {len(prompts)} prompts")
            return await compare(
                asker,
                *sides,
                prompts,
                settings["concurrency"],
                lambda done: progress.update(f"{done} of {len(prompts)} prompts"),
            )


def _show(
    sides: tuple[Side, Side], summary: Summary, thresholds: Thresholds, missed: list[str], found: Comparison
) -> None:
    from rich.text import Text

    screen = console()
    screen.print(_figures(sides, summary, thresholds))
    if summary.diverged:
        screen.print(_worst(found))
    for name, what in found.failures:
        screen.print(Text(f"not answered: {name}: {what}", style="yellow"), soft_wrap=True)
    for line in missed:
        screen.print(Text(f"lost: {line}", style="red"), soft_wrap=True)
    if not missed:
        screen.print(Text(f"holds: {sides[1].name} answers as {sides[0].name} does, within the thresholds"))


def _figures(sides: tuple[Side, Side], summary: Summary, thresholds: Thresholds) -> Table:
    title = f"{sides[1].name} against {sides[0].name}, {summary.prompts} prompts"
    table = titled_table(title, "figure", "mean", "95 % interval", "needs", right=("mean",))
    unit = summary.unit
    rows = [
        ("equal texts", summary.exact_match, f">= {thresholds.min_exact_match:g}"),
        (f"leading {unit}s equal", summary.token_agreement, f">= {thresholds.min_token_agreement:g}"),
        (METHODS[summary.method], summary.logprob_divergence, f"<= {thresholds.max_logprob_divergence:g}"),
    ]
    for name, value, needs in rows:
        if value is None:
            table.add_row(name, "-", "-", "-")
        else:
            table.add_row(name, f"{value.mean:.4f}", f"{value.low:.4f} to {value.high:.4f}", needs)
    if summary.first_divergence_median is not None:
        where = f"{summary.first_divergence_median:g}"
        table.add_row(f"first different {unit}, median of {summary.diverged}", where, "-", "-")
    return table


def _worst(found: Comparison) -> Table:
    from rich.text import Text

    table = titled_table("Least alike", "prompt", "equal up to", "A", "B", right=("equal up to",))
    different = [d for d in found.differences if d.diverges_at is not None]
    for item in sorted(different, key=lambda d: d.agreement)[:SHOWN]:
        texts = (Text(_around(text, item.text_a, item.text_b)) for text in (item.text_a, item.text_b))
        table.add_row(Text(item.prompt), str(item.diverges_at), *texts)
    return table


def _around(text: str, a: str, b: str) -> str:
    """The place where the two texts part, on one line."""
    from cluster.quality.differences import leading_equal

    part = leading_equal(a, b)
    start = max(0, part - 20)
    shown = " ".join(text[start : part + 40].split())
    return f"{'…' if start else ''}{shown}{'…' if part + 40 < len(text) else ''}"


def _print_json(
    sides: tuple[Side, Side],
    settings: dict[str, int],
    summary: Summary,
    thresholds: Thresholds,
    missed: list[str],
    found: Comparison,
) -> None:
    import json

    report: dict[str, Any] = {
        "a": asdict(sides[0]),
        "b": asdict(sides[1]),
        "settings": settings,
        "thresholds": asdict(thresholds),
        "summary": asdict(summary),
        "holds": not missed,
        "missed": missed,
        "failures": [{"prompt": name, "error": what} for name, what in found.failures],
        "prompts": [asdict(item) for item in found.differences],
    }
    typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
