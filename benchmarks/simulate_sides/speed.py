"""How long very many replicas take to simulate, and how much memory; in a process of its own: nothing else counts.

Load: the lengths of the Azure trace's requests, over and over, with Poisson arrivals. Counted: the simulation and its
summary; drawing the load is told apart. `fleet` has no queue: requests are spread evenly. `live` has the dispatcher's
queue, placement and autoscaler.

`python -m benchmarks.simulate_sides.speed MODE REPLICAS SECONDS REQUESTS_PER_S TRACE` prints one JSON object.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.simulation import ENGINES, Request
from cluster.simulation.fleet import run_fleet
from cluster.simulation.workload import Trace, load_trace

ENGINE = "llama-3.1-8b-h100-tp2"
SLOTS = 64
SEED = 0
CHILD_TIMEOUT_S = 900


def measured(mode: str, replicas: int, seconds: float, requests_per_s: float, trace: Path) -> dict[str, Any]:
    """In a child process."""
    words = [mode, str(replicas), str(seconds), str(requests_per_s), str(trace)]
    command = [sys.executable, "-m", "benchmarks.simulate_sides.speed", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def load(trace: Path, seconds: float, requests_per_s: float) -> Trace:
    lengths = [(r.prompt_tokens, r.output_tokens) for r in load_trace(trace).requests]
    rng = random.Random(SEED)
    rng.shuffle(lengths)
    requests: list[Request] = []
    at_s = rng.expovariate(requests_per_s)
    while at_s < seconds:
        prompt, output = lengths[len(requests) % len(lengths)]
        requests.append(Request(len(requests), at_s, prompt, output))
        at_s += rng.expovariate(requests_per_s)
    return Trace(requests, None)


def fleet(replicas: int, made: Trace) -> dict[str, Any]:
    from cluster.simulation import summary
    from cluster.simulation.settings import DEFAULT_SLO
    from cluster.vocabulary import RequestClass

    models = run_fleet(made.requests, ENGINES[ENGINE], replicas)
    simulated_s = max(r.finished_s for r in made.requests)
    found = summary.group("online", made.requests, DEFAULT_SLO[RequestClass.ONLINE], simulated_s)
    return {
        "finished": found.finished,
        "attainment": found.attainment,
        "simulated_s": simulated_s,
        "utilisation": sum(m.busy_s for m in models) / simulated_s / replicas,
        "steps": sum(m.steps for m in models),
    }


def live(replicas: int, made: Trace) -> dict[str, Any]:
    from cluster.config import TribesConfig
    from cluster.simulation.settings import EngineSettings, Settings
    from cluster.simulation.simulate import simulate

    deployment = {
        "model": "m",
        "serves": ["online"],
        "engine": {"kind": "vllm"},
        "replicas": {"min": replicas, "max": replicas},
        "max_running": SLOTS,
    }
    config = TribesConfig.model_validate(
        {"models": {"m": {"source": {"kind": "huggingface", "id": "org/m"}}}, "deployments": {"d": deployment}}
    )
    result = simulate(config, Settings(engines={"*": EngineSettings(profile=ENGINE)}), made, seed=SEED)
    online = result.classes["online"]
    return {
        "finished": online.finished,
        "attainment": online.attainment,
        "simulated_s": result.seconds,
        "utilisation": result.deployments["d"].utilisation,
    }


def main(mode: str, replicas: str, seconds: str, requests_per_s: str, trace: str) -> None:
    began_s = time.perf_counter()
    made = load(Path(trace), float(seconds), float(requests_per_s))
    drawn_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    cpu_s = time.process_time()
    figures = {"fleet": fleet, "live": live}[mode](int(replicas), made)
    figures["seconds"], figures["cpu_s"] = time.perf_counter() - began_s, time.process_time() - cpu_s
    figures["drawing_s"] = drawn_s
    figures["requests"] = len(made.requests)
    figures["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(figures))


def described() -> dict[str, Any]:
    engine = ENGINES[ENGINE]
    return {"engine": ENGINE, "limits": asdict(engine), "slots_live": SLOTS}


if __name__ == "__main__":
    main(*sys.argv[1:])
