"""Does n-gram speculation pay on the CPU engine, where, and does it change the text?

Two vLLM servers, alike but for the lever `speculation: {kind: ngram}`, both up for the whole run, asked
in turn: the one that is not asked waits. `python -m benchmarks.speculation --json FILE [--quick]`
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.load import Target
from benchmarks.report import Report
from benchmarks.speculation_sides.counters import read_counters
from benchmarks.speculation_sides.prompts import Kind, prompts
from benchmarks.speculation_sides.streams import Stream, figures, streams
from cluster.config import DeploymentConfig, TribesConfig, load_config
from cluster.engines import EngineServer, LaunchSpec, build_spec, new_api_key
from cluster.models import PreparedModel, prepare_model
from cluster.presets import PresetConfig

BASE, NGRAM = "base", "ngram"
KINDS: tuple[Kind, ...] = ("repetitive", "free")
PAIRS, QUICK_PAIRS = 6, 3
REQUESTS = {1: 3, 8: 16}
"""Concurrency -> requests a run."""
TOKENS, QUICK_TOKENS = 96, 48
STOP_GRACE_S = 10.0
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Three pairs instead of six, shorter answers.")] = False,
    drafted: Annotated[int, typer.Option(min=1, max=16, help="Tokens drafted a step.")] = 4,
    config_path: Annotated[Path, typer.Option("--config")] = Path("configs/local.yaml"),
) -> None:
    config = load_config(config_path)
    name, deployment = next((n, d) for n, d in config.serving().items() if d.engine.kind == "vllm")
    model = prepare_model(deployment.model, config.models[deployment.model], config.paths, console.log)
    sides = {BASE: deployment, NGRAM: with_ngram(deployment, drafted)}
    tokens = QUICK_TOKENS if quick else TOKENS
    report = Report("speculation", "python -m benchmarks.speculation " + " ".join(sys.argv[1:]), {"tokens": tokens})
    for side, item in sides.items():
        report.config[side] = {"deployment": name, "engine_args": item.engine_args, "env": item.engine.env}
    try:
        asyncio.run(_run(config, sides, model, report, QUICK_PAIRS if quick else PAIRS, tokens))
    finally:
        if report.runs:
            report.write(json_path)  # what is measured is kept, also when a later run fails
    for figure, ratio in report.ratios.items():
        console.print(f"{figure}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g})")


def with_ngram(deployment: DeploymentConfig, drafted: int) -> DeploymentConfig:
    """The same deployment with the lever on."""
    preset = PresetConfig.model_validate({"speculation": {"kind": "ngram", "tokens": drafted}})
    engine = deployment.engine.model_copy(update={"preset": preset})
    return deployment.model_copy(update={"engine": engine})


async def _run(
    config: TribesConfig,
    sides: dict[str, DeploymentConfig],
    model: PreparedModel,
    report: Report,
    pairs: int,
    tokens: int,
) -> None:
    name = sides[BASE].model
    async with (
        _server(config, sides[BASE], model) as base,
        _server(config, sides[NGRAM], model) as ngram,
    ):
        targets = {BASE: base, NGRAM: ngram}
        for target in targets.values():
            await streams(target, name, prompts("repetitive", "warm-up", 8), 8, tokens)
        for pair in range(pairs):
            for kind in KINDS:
                for concurrency, requests in REQUESTS.items():
                    asked = prompts(kind, f"{pair}-{concurrency}", requests)
                    await _pair(report, targets, name, pair, kind, concurrency, asked, tokens)
    _ratios(report)


@asynccontextmanager
async def _server(config: TribesConfig, deployment: DeploymentConfig, model: PreparedModel) -> AsyncIterator[Target]:
    """An engine server as a replica starts it; gone with all its processes at the end."""
    key = new_api_key()

    def make_spec(port: int) -> LaunchSpec:
        return build_spec(
            deployment,
            deployment.model,
            model.path_or_id,
            "127.0.0.1",
            port,
            key,
            max_model_len=config.models[deployment.model].max_model_len,
            revision=model.revision,
        )

    server = EngineServer(make_spec, logging.getLogger("benchmarks.speculation"))
    try:
        await server.start()  # bounded by engine.start_timeout_s
        console.log(f"up after {server.started_in_s:.1f} s")
        yield Target(server.base_url, key)
    finally:
        await server.stop(STOP_GRACE_S)


async def _pair(
    report: Report,
    targets: dict[str, Target],
    model: str,
    pair: int,
    kind: Kind,
    concurrency: int,
    asked: list[str],
    tokens: int,
) -> None:
    """The same prompts to both sides; who goes first alternates, so that a drift of the machine favours neither."""
    texts: dict[str, list[str]] = {}
    measured: dict[str, dict[str, float]] = {}
    for side in (BASE, NGRAM) if pair % 2 == 0 else (NGRAM, BASE):
        before = await read_counters(targets[side])
        started_s = time.perf_counter()
        answers: list[Stream] = await streams(targets[side], model, asked, concurrency, tokens)
        elapsed_s = time.perf_counter() - started_s
        counted = (await read_counters(targets[side])).since(before)
        measured[side] = figures(answers, elapsed_s)
        measured[side] |= counted.figures(measured[side]["tokens"])
        texts[side] = [answer.text for answer in answers]
    same = sum(a == b for a, b in zip(texts[BASE], texts[NGRAM], strict=True)) / len(asked)
    for side, values in measured.items():
        report.add(pair, side, kind=kind, concurrency=concurrency, identical_texts=same, **values)
        console.log(f"pair {pair} {kind} c={concurrency} {side}: {_short(values)}, {same:.0%} of the texts equal")


def _ratios(report: Report) -> None:
    """The names without a concurrency are of one request at a time, where speculation is meant to pay."""
    for concurrency in REQUESTS:
        suffix = "" if concurrency == 1 else f"_c{concurrency}"
        for kind in KINDS:
            where: dict[str, Any] = {"kind": kind, "concurrency": concurrency}
            _compare(report, f"ngram_itl_{kind}{suffix}", "itl_mean_ms", where)
            _compare(report, f"ngram_tokens_per_s_{kind}{suffix}", "tokens_per_s", where)
            _compare(report, f"ngram_ttft_p50_{kind}{suffix}", "ttft_p50_ms", where)
            report.compare(f"acceptance_{kind}{suffix}", "acceptance", NGRAM, BASE, lambda ours, _: ours, **where)
            report.compare(
                f"identical_texts_{kind}{suffix}", "identical_texts", NGRAM, BASE, lambda ours, _: ours, **where
            )
    report.bar("ngram_itl_repetitive", "< 1", lambda got: got < 1)


def _compare(report: Report, name: str, metric: str, where: dict[str, Any]) -> None:
    report.compare(name, metric, NGRAM, BASE, lambda ours, base: ours / base, **where)


def _short(values: dict[str, float]) -> str:
    return (
        f"{values['tokens_per_s']:.1f} tokens/s, {values['itl_mean_ms']:.1f} ms a token, "
        f"acceptance {values['acceptance']:.2f}"
    )


if __name__ == "__main__":
    typer.run(main)
