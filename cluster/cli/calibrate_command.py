"""`tribes calibrate`: measure an engine's steps and keep them for `tribes plan`. Owns: options, the table.

Must not know: what is measured, or the fit.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from cluster.cli.errors import UsageError
from cluster.cli.screen import Progress, console, error_console, titled_table

if TYPE_CHECKING:
    from cluster.planning import Calibration
    from cluster.planning.fit import Sample
    from cluster.planning.measure import Effort

ENGINES: Final = ("vllm", "sglang")


def calibrate(
    url: Annotated[str, typer.Argument(help="The engine's own server, such as http://127.0.0.1:8001.")],
    model: Annotated[str, typer.Option(help="The model's id, the same there and in the workload of `tribes plan`.")],
    engine: Annotated[str, typer.Option(help="vllm or sglang.")],
    accelerator: Annotated[str, typer.Option(help="As Ray names it, or CPU.")] = "CPU",
    tensor_parallel: Annotated[int, typer.Option(min=1)] = 1,
    pipeline_parallel: Annotated[int, typer.Option(min=1)] = 1,
    quantisation: Annotated[str, typer.Option(help="none, fp8, fp8-stored, fp4-stored, int4-stored.")] = "none",
    fp8_cache: Annotated[bool, typer.Option(help="The engine's KV cache is in FP8.")] = False,
    key: Annotated[str | None, typer.Option(help="API key of the engine's server.")] = None,
    kv_tokens: Annotated[int | None, typer.Option(min=1, help="Its KV cache; default: what it tells.")] = None,
    prompts: Annotated[str, typer.Option(help="Lengths of prompts in tokens.")] = "64,256,1024",
    sequences: Annotated[str, typer.Option(help="Requests at once.")] = "1,4,16",
    output_tokens: Annotated[int, typer.Option(min=8)] = 32,
    folder: Annotated[Path | None, typer.Option(help="Where to keep it; default: the user's cache.")] = None,
) -> None:
    """Fit the step model of a running engine, with nobody else using it, and keep it for `tribes plan`."""
    from cluster.planning import Shape, calibrations_folder
    from cluster.planning.calibration import save
    from cluster.planning.fit import FitError, fit
    from cluster.planning.measure import Effort, MeasureError
    from cluster.planning.shape import QUANTISATIONS

    _one_of("--engine", engine, ENGINES)
    _one_of("--quantisation", quantisation, QUANTISATIONS)
    effort = Effort(_numbers("--prompts", prompts), _numbers("--sequences", sequences), output_tokens)
    shape = Shape(
        accelerator, cast(Any, engine), cast(Any, quantisation), tensor_parallel, pipeline_parallel, fp8_cache
    )
    try:
        samples, told_tokens = asyncio.run(_measure(url, key, model, effort))
        result = fit(samples)
    except (MeasureError, FitError) as error:
        raise UsageError(str(error)) from error
    made = _calibration(model, shape, result, len(samples), kv_tokens or told_tokens)
    path = save(made, folder or calibrations_folder())
    _show(made)
    console().print(f"kept: {path}", soft_wrap=True)


async def _measure(url: str, key: str | None, model: str, effort: Effort) -> tuple[list[Sample], int | None]:
    import httpx

    from cluster.cli.api import bearer, timeouts
    from cluster.planning.measure import REQUEST_TIMEOUT_S, EngineClient, measure

    base = url.rstrip("/").removesuffix("/v1")
    headers = bearer(key) if key else {}
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=timeouts(REQUEST_TIMEOUT_S)) as client:
        with Progress(error_console()) as progress:
            return await measure(EngineClient(client, model), effort, progress)


def _calibration(model: str, shape: Any, result: Any, samples: int, kv_tokens: int | None) -> Calibration:
    from datetime import UTC, datetime

    from cluster.demo.machine import machine, versions
    from cluster.planning import Calibration

    return Calibration(
        model=model,
        shape=shape,
        step=result.step,
        request_s=result.request_s,
        kv_tokens=kv_tokens,
        mean_error=result.mean_error,
        worst_error=result.worst_error,
        samples=samples,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        versions=versions(),
    )


def _show(made: Calibration) -> None:
    step = made.step
    table = titled_table(f"{made.model} on {made.shape.title}, {made.shape.engine}", "part", "value", right=("value",))
    rows = [
        ("a step", f"{step.base_s * 1e3:.3f} ms"),
        ("a token of a prompt", f"{step.prefill_s_a_token * 1e6:.1f} us"),
        ("a running sequence", f"{step.decode_s_a_request * 1e6:.1f} us"),
        ("a token in the cache", f"{step.decode_s_a_kv_token * 1e9:.1f} ns"),
        ("a request, once", f"{made.request_s * 1e3:.1f} ms"),
        ("KV cache", f"{made.kv_tokens:,} tokens" if made.kv_tokens else "not told"),
        ("error of the fit, mean and worst", f"{made.mean_error:.1%}, {made.worst_error:.1%}"),
    ]
    for row in rows:
        table.add_row(*row)
    console().print(table)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1:
        raise UsageError(f"{option} {text!r}: give whole numbers above 0 with commas between them, such as 64,256")
    return numbers


def _one_of(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UsageError(f"{option} {given!r}: use one of {', '.join(known)}")
