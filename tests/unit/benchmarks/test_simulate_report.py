"""What the simulation benchmark writes: every ratio and bar, from small inputs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import simulate
from benchmarks.simulate_sides import closeness, speed
from cluster.simulation import Engine, StepModel
from cluster.simulation.fitting import predict
from cluster.simulation.recording import Recorded

TRUE = StepModel(0.02, 1e-4, 2e-4, 1e-7)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A trace, and recordings made by a simulated engine."""
    rows = [
        f"2023-11-16 18:15:{n // 10:02d}.{n % 10}000000,{100 + 37 * n % 900},{10 + 13 * n % 90}" for n in range(300)
    ]
    (tmp_path / simulate.AZURE_FILE).write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    folder = tmp_path / simulate.RECORDINGS_FOLDER
    folder.mkdir()
    rng = random.Random(1)
    asked = [Recorded(0.2 * n, rng.randint(50, 900), rng.randint(20, 200), 0.0, 0.0) for n in range(80)]
    for name in closeness.RECORDINGS:
        served = predict(asked, Engine(TRUE, kv_tokens=400_000, max_num_seqs=128))
        lines = [
            {
                "queued_ts": r.arrived_s,
                "input_toks": r.prompt_tokens,
                "output_toks": r.output_tokens,
                "first_token_ts": r.first_token_s,
                "last_token_ts": r.finished_s,
            }
            for r in served
        ]
        (folder / f"{name}_requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_every_bar_has_its_figure(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "SIZES", {"fleet": (4, 8.0), "live": (4, 8.0)})
    monkeypatch.setattr(simulate, "SECONDS", 20.0)
    simulate.main(tmp_path / "out.json", False, data)
    written = json.loads((tmp_path / "out.json").read_text())
    bars = {"seconds_1000_replicas", "memory_gib_1000_replicas", "e2e_error_max", "tpot_error_max", "ttft_error_max"}
    assert set(written["bars"]) == bars and all(bar["holds"] for bar in written["bars"].values())
    modes = [run["side"] for run in written["runs"] if "memory_gib" in run]
    assert modes == ["fleet", "live", "fleet", "fleet"]
    fleet, live = (next(run for run in written["runs"] if run["side"] == mode) for mode in ("fleet", "live"))
    assert fleet["finished"] == live["finished"] == fleet["requests"]
    assert fleet["utilisation"] == pytest.approx(live["utilisation"], rel=0.25)


def test_the_load_has_its_rate_and_the_traces_lengths(data: Path) -> None:
    made = speed.load(data / simulate.AZURE_FILE, 200.0, 10.0)
    assert len(made.requests) == pytest.approx(2000, rel=0.1)
    assert {r.output_tokens for r in made.requests} == {10 + 13 * n % 90 for n in range(300)}
