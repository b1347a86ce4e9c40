"""A calibration finds the constants of an engine whose constants are known; what it keeps is found again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.planning import Calibration, Shape, calibrations_folder
from cluster.planning.calibration import CalibrationError, matching, read, read_all, save
from cluster.planning.fit import FitError, Sample, fit
from cluster.planning.measure import Effort, EngineClient, MeasureError, Stream, cache_tokens, measure, steady
from cluster.simulation.step_model import StepModel
from tests.unit.planning.stepping_engine import BLOCK_TOKENS, BLOCKS, SteppingEngine
from tests.unit.serve_apps.servers import ENGINE_KEY, scripted_engine, served

TRUTH = StepModel(0.040, 100e-6, 4e-3, 6e-6)
REQUEST_S = 0.015
MADE = Calibration("m", Shape("CPU", "vllm"), TRUTH, REQUEST_S, 32_000, 0.01, 0.02, 30, "2026-01-01T00:00:00+00:00")


def synthetic(noise: float) -> list[Sample]:
    draw = random.Random(3)
    samples = []
    for prefill in (64, 256, 1024, 2048):
        seconds = REQUEST_S + TRUTH.step_s(prefill, 1, 0)
        samples.append(Sample(seconds * draw.uniform(1 - noise, 1 + noise), prefill, 1, 0, first_token=True))
    for count in (1, 4, 16, 64):
        for context in (100, 1000, 3000):
            seconds = TRUTH.step_s(0, count, count * context)
            samples += [
                Sample(seconds * draw.uniform(1 - noise, 1 + noise), 0, count, count * context) for _ in range(3)
            ]
    return samples


def near(step: StepModel, rel: float) -> bool:
    pairs = zip(
        (step.base_s, step.prefill_s_a_token, step.decode_s_a_request, step.decode_s_a_kv_token),
        (TRUTH.base_s, TRUTH.prefill_s_a_token, TRUTH.decode_s_a_request, TRUTH.decode_s_a_kv_token),
        strict=True,
    )
    return all(found == pytest.approx(true, rel=rel) for found, true in pairs)


def test_the_fit_is_exact_without_noise_and_close_with_it():
    exact = fit(synthetic(0.0))
    assert near(exact.step, 1e-6) and exact.request_s == pytest.approx(REQUEST_S) and exact.worst_error < 1e-6
    noisy = fit(synthetic(0.03))
    assert near(noisy.step, 0.08) and noisy.mean_error < 0.03


def test_what_costs_nothing_is_zero_and_never_below():
    flat = [replace(s, seconds=0.02 * random.Random(n).uniform(0.99, 1.01)) for n, s in enumerate(synthetic(0.0))]
    found = fit(flat).step
    assert found.base_s == pytest.approx(0.02, rel=0.02)
    assert found.prefill_s_a_token < 1e-6 and found.decode_s_a_kv_token < 1e-8


def test_samples_that_determine_nothing_are_refused():
    with pytest.raises(FitError, match="prompts of two lengths"):
        fit([s for s in synthetic(0.0) if not s.first_token])
    with pytest.raises(FitError, match="two numbers of sequences"):
        fit([s for s in synthetic(0.0) if s.first_token])


@contextlib.asynccontextmanager
async def stepping(engine: SteppingEngine) -> Any:
    loop = asyncio.create_task(engine.run())
    try:
        async with served(engine) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            yield client
    finally:
        loop.cancel()


async def test_the_constants_of_a_noisy_engine_are_found_through_its_api():
    async with stepping(SteppingEngine(TRUTH, noise=0.03, request_s=REQUEST_S)) as client:
        effort = Effort(prompt_tokens=(64, 512, 1024, 9999), sequences=(1, 4), output_tokens=8, repeats=3)
        samples, cache = await measure(EngineClient(client, "m"), effort)
    assert cache == BLOCKS * BLOCK_TOKENS
    found = fit(samples)
    # The event loop's own delays, a millisecond or two of each step, count as the engine's.
    assert near(found.step, 0.25), found
    assert found.mean_error < 0.1


async def test_runs_that_would_not_fit_into_the_cache_are_left_out():
    engine = SteppingEngine(StepModel(0.002, 0, 0, 0))
    async with stepping(engine) as client:
        effort = Effort(prompt_tokens=(64, 3000), sequences=(1, 16), output_tokens=8, repeats=1)
        samples, _ = await measure(EngineClient(client, "m"), effort)
    assert {s.sequences for s in samples if s.kv_tokens > 16 * 3000} == set()
    assert engine.requests == 1 + 2 + (1 + 1 + 16)  # warm-up; first tokens; steps but for 16 long ones


async def test_what_the_engine_says_against_it_is_told():
    async with stepping(SteppingEngine(TRUTH)) as client:
        with pytest.raises(MeasureError, match="no model 'other'; it serves m"):
            await measure(EngineClient(client, "other"), Effort())
        with pytest.raises(MeasureError, match="give two lengths below that"):
            await measure(EngineClient(client, "m"), Effort(prompt_tokens=(64, 5000)))


def test_the_size_of_the_cache_as_engines_tell_it():
    vllm = 'x 1\nvllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0\n'
    assert cache_tokens(vllm) == 1600
    assert cache_tokens('sglang:max_total_num_tokens{model_name="m"} 20000.0\n') == 20_000
    assert cache_tokens('vllm:cache_config_info{num_gpu_blocks="None"} 1.0\n') is None
    assert cache_tokens("") is None


def test_what_is_kept_is_found_for_exactly_that_shape(tmp_path: Path):
    path = save(MADE, tmp_path / "kept")
    assert read(path) == MADE
    assert save(replace(MADE, kv_tokens=1), tmp_path / "kept") == path  # the newer replaces it
    twin = replace(MADE, shape=replace(MADE.shape, engine="sglang"))
    assert save(twin, tmp_path / "kept") != path
    kept = read_all(tmp_path / "kept")
    assert {item.shape.engine for item in kept} == {"vllm", "sglang"} and len(kept) == 2
    assert matching(kept, "m", MADE.shape).kv_tokens == 1
    assert matching(kept, "m", replace(MADE.shape, tensor_parallel=2)) is None
    assert matching(kept, "other", MADE.shape) is None


def test_a_broken_file_is_named(tmp_path: Path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"x\.json is not a calibration"):
        read_all(tmp_path)


def test_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibrations_folder() == tmp_path / "tribes" / "calibrations"


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["calibrate", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_measures_and_keeps(tmp_path: Path):
    with scripted_engine("--ttft-ms", "20", "--itl-ms", "5") as engine:
        code, out, err = run(
            engine.url,
            *("--model", "m", "--engine", "vllm", "--key", ENGINE_KEY, "--kv-tokens", "9000"),
            *("--prompts", "64,256", "--sequences", "1,2", "--output-tokens", "12", "--folder", str(tmp_path)),
        )
    assert code == 0, err
    made = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert made["kv_tokens"] == 9000 and made["shape"]["accelerator"] == "CPU"
    step = made["step"]["base_s"] + made["step"]["decode_s_a_request"]
    assert 0.004 < step < 0.012  # 5 ms between tokens, and what this machine adds
    assert made["machine"]["cpus"] >= 1 and "a step" in out and "kept:" in out


def test_wrong_options_are_one_line():
    code, _, err = run("http://127.0.0.1:1", "--model", "m", "--engine", "vlm")
    assert code == 1 and "--engine 'vlm': use one of vllm, sglang" in err
    code, _, err = run("http://127.0.0.1:1", "--model", "m", "--engine", "vllm", "--prompts", "64,x")
    assert code == 1 and "--prompts '64,x'" in err
    code, _, err = run("http://127.0.0.1:1", "--model", "m", "--engine", "vllm")
    assert code == 1 and "nothing answers" in err and "Traceback" not in err


def test_events_of_one_step_that_are_seen_late_are_still_one_step():
    early = Stream(0.0, tuple(0.1 * n for n in range(1, 11)), 10)
    late = Stream(0.0, tuple(0.1 * n + 0.004 for n in range(1, 11)), 10)
    sample = steady([early, late], prompt_tokens=100)
    assert sample is not None
    assert sample.seconds == pytest.approx(0.1) and sample.sequences == 2
    assert sample.kv_tokens == pytest.approx(2 * 105.5, rel=0.01)
    pairs = Stream(0.0, tuple(0.2 * n for n in range(1, 6)), 10)  # two tokens an event
    assert steady([pairs], 100).seconds == pytest.approx(0.1)
    assert steady([early, Stream(0.0, (0.85, 0.95, 1.05), 3)], 100) is None  # together for too short
