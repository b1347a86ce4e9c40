"""A fit finds the step model that a run was made with, and predicts requests it was not fitted on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cluster.simulation import Engine, Request, StepModel
from cluster.simulation.fitting import fit_step_model, predict
from cluster.simulation.recording import Recorded, accuracy, load_recording
from cluster.simulation.workload import TraceError

TRUE = StepModel(0.02, 1.2e-4, 2.5e-4, 1.5e-7)
GUESS = StepModel(0.05, 1e-3, 1e-4, 1e-6)


def run(engine: Engine, count: int, rate: float, seed: int) -> list[Recorded]:
    rng = random.Random(seed)
    at_s, asked = 0.0, []
    for _ in range(count):
        asked.append(Recorded(at_s, rng.randint(50, 1500), rng.randint(50, 400), 0.0, 0.0))
        at_s += rng.expovariate(rate)
    served = predict(asked, engine)
    return [Recorded(r.arrived_s, r.prompt_tokens, r.output_tokens, r.first_token_s, r.finished_s) for r in served]


def test_finds_the_model_that_made_the_run() -> None:
    engine = Engine(TRUE, kv_tokens=200_000, max_num_seqs=32)
    recorded = run(engine, 120, 4.0, 1)
    fitted = fit_step_model(recorded, Engine(GUESS, kv_tokens=200_000, max_num_seqs=32))
    got = fitted.engine.step
    assert got.base_s == pytest.approx(TRUE.base_s, rel=0.05)
    assert got.prefill_s_a_token == pytest.approx(TRUE.prefill_s_a_token, rel=0.1)
    assert fitted.residual < 0.02


def test_predicts_what_it_was_not_fitted_on() -> None:
    engine = Engine(TRUE, kv_tokens=200_000, max_num_seqs=32)
    recorded = run(engine, 120, 4.0, 2)
    by_end = sorted(range(120), key=lambda place: recorded[place].finished_s)
    fitted = fit_step_model(recorded, Engine(GUESS, kv_tokens=200_000, max_num_seqs=32), by_end[:60])
    found = accuracy(recorded, predict(recorded, fitted.engine), by_end[60:])
    assert found.requests == 60 and fitted.requests == 60
    for metric in (found.e2e, found.ttft, found.tpot):
        assert abs(metric.mean) < 0.05


def test_errors_are_of_the_counted_requests() -> None:
    observed = [Recorded(0.0, 10, 11, 1.0, 2.0), Recorded(0.0, 10, 11, 1.0, 3.0)]
    predicted = []
    for number, end_s in enumerate((99.0, 4.0)):
        request = Request(number, 0.0, 10, 11)
        request.first_token_s, request.finished_s = 1.5, end_s
        predicted.append(request)
    found = accuracy(observed, predicted, [1])
    assert found.requests == 1
    assert found.ttft.mean == pytest.approx(0.5)
    assert found.e2e.mean == pytest.approx(1 / 3)
    assert found.tpot.mean == pytest.approx(0.25 / 0.2 - 1)


def test_reads_vllms_names_and_our_own(tmp_path: Path) -> None:
    lines = [
        {"queued_ts": 5.0, "input_toks": 3, "output_toks": 2, "first_token_ts": 6.0, "last_token_ts": 7.0},
        {"arrived_s": 4.0, "prompt_tokens": 1, "output_tokens": 1, "first_token_s": 4.5, "finished_s": 4.5},
    ]
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    assert load_recording(path) == [Recorded(0.0, 1, 1, 0.5, 0.5), Recorded(1.0, 3, 2, 2.0, 3.0)]
    path.write_text('{"arrived_s": 1}\n')
    with pytest.raises(TraceError, match=r"line 1.*prompt_tokens"):
        load_recording(path)


def test_a_fit_on_too_few_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        fit_step_model([Recorded(0.0, 1, 2, 1.0, 2.0)], Engine(GUESS))
