"""How close simulations come to recorded runs of vLLM, and what was fitted on what.

Each recording is of one model on its own hardware, so no step model is carried from one to the other. In a recording
the step model is fitted on the requests that ended first, and the errors are those of the others (`held_out`); `all`
is fitted and judged on all of them. Of the others only arrivals and lengths are known to the fit. The engines' limits
come from the recordings' own files; where no KV cache size is noted (the second one), it was never full.

Owns: recordings, limits, splits. Must not know: how it is fitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.simulation import Engine, StepModel
from cluster.simulation.fitting import fit_step_model, predict
from cluster.simulation.recording import Accuracy, Recorded, accuracy, load_recording

GUESS = StepModel(0.03, 1e-4, 1e-4, 1e-7)
"""Where every fit begins."""
RECORDINGS = {
    "RTX4090_Llama-3.1-8B": Engine(GUESS, kv_tokens=41_408, max_num_seqs=256, max_num_batched_tokens=2048),
    "RTXPRO6000_Qwen3-32B": Engine(GUESS, kv_tokens=400_000, max_num_seqs=128, max_num_batched_tokens=2048),
}
FITTED_SHARE = 0.5
GATES = {"e2e": 0.10, "tpot": 0.05, "ttft": 0.20}
"""Of the errors of means."""


def runs(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(recording, fitted on what, figures)."""
    for name, engine in RECORDINGS.items():
        recorded = load_recording(folder / f"{name}_requests.jsonl")
        by_end = sorted(range(len(recorded)), key=lambda place: recorded[place].finished_s)
        half = round(FITTED_SHARE * len(by_end))
        yield name, "held_out", _figures(recorded, engine, by_end[:half], by_end[half:])
        yield name, "all", _figures(recorded, engine, by_end, by_end)


def _figures(recorded: list[Recorded], engine: Engine, on: list[int], judged: list[int]) -> dict[str, Any]:
    fitted = fit_step_model(recorded, engine, on)
    predicted = predict(recorded, fitted.engine)
    found = accuracy(recorded, predicted, judged)
    return {
        "fitted_requests": len(on),
        "judged_requests": len(judged),
        "residual": fitted.residual,
        "step": asdict(fitted.engine.step),
        "preemptions": sum(request.preemptions for request in predicted),
        **_errors(found),
    }


def _errors(found: Accuracy) -> dict[str, Any]:
    errors: dict[str, Any] = {}
    for metric in GATES:
        error = getattr(found, metric)
        errors[f"{metric}_error"] = error.mean
        errors[f"{metric}_observed_s"], errors[f"{metric}_predicted_s"] = error.observed_mean_s, error.predicted_mean_s
        errors[f"{metric}_per_request"] = error.per_request
        errors |= {f"{metric}_p{percent}_error": value for percent, value in error.percentiles.items()}
    return errors
