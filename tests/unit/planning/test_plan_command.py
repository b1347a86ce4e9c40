"""`tribes plan`: tables, the JSON, and a configuration that the real loader takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.config import ConfigError, load_config
from cluster.planning import load_request, plan
from cluster.planning.emit import config_text
from tests.unit.planning.models import LLAMA_8B, LLAMA_70B, WORKLOAD, with_classes, write_workload

LENGTHS = [{"prompt_tokens": 1000, "output_tokens": 200}]
ALL = with_classes(
    online={"requests_per_s": 5, "lengths": LENGTHS, "slo": {"ttft_s": 1, "itl_s": 0.05}},
    semi_online={
        "requests_per_s": 2,
        "peak_requests_per_s": 40,
        "lengths": LENGTHS,
        "slo": {"ttft_s": 20},
        "cold_start_s": 60,
    },
    offline={"requests_per_s": 30, "lengths": LENGTHS},
)


def run(
    folder: Path, workload: dict[str, Any], *arguments: str, model: dict[str, Any] = LLAMA_8B
) -> tuple[int, str, str]:
    path = write_workload(folder, workload, model)
    options = ["--calibrations", str(folder / "none"), "--no-kernels"]
    result = CliRunner().invoke(app, ["plan", str(path), *options, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("model", [LLAMA_8B, LLAMA_70B])
@pytest.mark.parametrize("accelerator", ["H100", "A100-80G", "B200", "L40S", "RTX-PRO-6000"])
def test_the_configuration_loads_and_is_what_was_planned(tmp_path: Path, model, accelerator):
    workload = {**ALL, "usd_per_gpu_hour": {accelerator: 2.0}}
    out, figures = tmp_path / "out.yaml", tmp_path / "out.json"
    code, _, err = run(tmp_path, workload, "--out", str(out), "--json", str(figures), model=model)
    made = json.loads(figures.read_text())
    chosen = {item["request_class"]: item["chosen"] for item in made["classes"]}
    if not any(chosen.values()):
        pytest.fail(f"nothing on {accelerator}: {err}")
    config = load_config(out)
    for request_class, best in chosen.items():
        if best is None:
            continue
        found = next(d for d in config.deployments.values() if d.own_class == request_class)
        shape = best["shape"]
        assert found.resources.gpus == shape["tensor_parallel"] * shape["pipeline_parallel"]
        assert found.replicas.max == best["replicas"] and found.replicas.min == best["floor"]
        assert found.max_running == best["replica"]["slots"]
        assert found.engine_args.get("tensor-parallel-size", 1) == shape["tensor_parallel"]
        assert ("quantization" in found.engine_args) == (shape["quantisation"] == "fp8")
        pool = config.pools[found.pool]
        assert pool.accelerator_type == accelerator
        assert pool.usd_per_hour == 2.0
    assert code == (0 if all(chosen.values()) else 1)


def test_the_tables_say_what_was_chosen_and_why_not_the_rest(tmp_path: Path):
    hosted = {"elsewhere": {"input": 0.5, "output": 1.5}}
    code, out, _ = run(tmp_path, {**ALL, "hosted": hosted})
    assert code == 0
    assert "8.0 billion parameters" in out and "USD/h in all" in out
    for word in (
        "online",
        "semi_online",
        "offline",
        "chosen (roofline)",
        "price:",
        "elsewhere",
        "speculative decoding",
    ):
        assert word in out


def test_nothing_feasible_is_an_exit_code_and_the_reasons(tmp_path: Path):
    online = {"requests_per_s": 5, "lengths": LENGTHS, "slo": {"itl_s": 0.0001}}
    code, out, _ = run(tmp_path, with_classes(online=online))
    assert code == 1 and "nothing can serve it" in out and "between tokens" in out
    code, _, err = run(tmp_path, with_classes(online=online), "--out", str(tmp_path / "x.yaml"))
    assert code == 1 and "nothing to write" in err and not (tmp_path / "x.yaml").exists()


def test_errors_are_one_line(tmp_path: Path):
    code, _, err = run(tmp_path, with_classes(offline={"requests_per_s": 1, "trace": "none.csv"}))
    assert code == 1 and "none.csv" in err and "Traceback" not in err
    broken = {**WORKLOAD, "model": {**WORKLOAD["model"], "config": "elsewhere.json"}}
    code, _, err = run(tmp_path, broken)
    assert code == 1 and "elsewhere.json" in err


def test_a_source_is_needed_to_write_a_configuration(tmp_path: Path):
    model = {key: value for key, value in WORKLOAD["model"].items() if key != "source"}
    request = load_request(write_workload(tmp_path, {**WORKLOAD, "model": model}))
    with pytest.raises(ConfigError, match="say where the weights are"):
        config_text(plan(request, use_kernels=False), request)


def test_an_fp4_checkpoint_is_another_model_of_the_configuration(tmp_path: Path):
    fp4 = {"kind": "huggingface", "id": "nvidia/Llama-3.1-8B-Instruct-FP4"}
    workload = {
        **with_classes(offline={"requests_per_s": 400, "lengths": LENGTHS}),
        "model": {**WORKLOAD["model"], "fp4": fp4},
        "usd_per_gpu_hour": {"B200": 6.0},
    }
    out = tmp_path / "out.yaml"
    code, _, _ = run(tmp_path, workload, "--out", str(out))
    config = load_config(out)
    assert code == 0 and list(config.models) == ["llama-3.1-8b-fp4"]
    assert config.models["llama-3.1-8b-fp4"].source.id == fp4["id"]


def test_planning_is_light_to_import():
    probe = "import sys, cluster.planning, cluster.hardware; print(*{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "numpy", "ray", "pyarrow", "httpx", "aiconfigurator_core"} & set(out)
