"""`tribes explain`: the command line that a replica would use, and where each argument comes from."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.cli.explain_data import Explanation, explain
from cluster.config import load_config
from cluster.engines import build_spec

ROOT = Path(__file__).resolve().parents[3]
run = CliRunner().invoke


def write(folder: Path, engine: dict[str, Any], **deployment: Any) -> Path:
    item = {"model": "m", "serves": ["online"], "engine": engine, "resources": {"gpus": 1}, **deployment}
    config = {
        "models": {"m": {"source": {"kind": "huggingface", "id": "org/m", "revision": "r1"}, "max_model_len": 4096}},
        "deployments": {"d": item},
        "pools": {"default": {"accelerator_type": "H100"}},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def explained(folder: Path, engine: dict[str, Any], **deployment: Any) -> Explanation:
    return explain(load_config(write(folder, engine, **deployment)), "d")


def rows(item: Explanation) -> dict[str, tuple[str, str, str]]:
    return {row.argument: (row.value, row.source, row.why) for row in item.arguments}


def test_every_argument_has_its_origin(tmp_path: Path) -> None:
    preset = {"name": "low-latency-h100", "chunked_prefill": 1024}
    args = {"max-num-seqs": 8, "kv_cache_dtype": "auto", "enable-prompt-tokens-details": False}
    table = rows(explained(tmp_path, {"kind": "vllm", "preset": preset, "args": args}))
    assert table["--model"][:2] == ("org/m", "model") and table["--model"][2] == "models.m.source"
    assert table["--max-model-len"] == ("4096", "model", "models.m.max_model_len")
    assert table["--revision"][:2] == ("r1", "model")
    assert (table["--host"][:2], table["--port"][:2]) == (("HOST", "Tribes"), ("PORT", "Tribes"))
    assert table["--quantization"][:2] == ("fp8", "preset low-latency-h100")
    assert table["--quantization"][2].startswith("quantisation: eight bits a weight")
    assert table["--max-num-batched-tokens"][:2] == ("1024", "engine.preset")
    assert table["--max-num-seqs"] == ("8", "engine.args", "as the deployment says")
    assert table["--kv-cache-dtype"][:2] == ("auto", "engine.args")
    assert table["--kv-cache-dtype"][2] == "overrides kv_cache of preset low-latency-h100, which says fp8"
    assert table["--no-enable-prompt-tokens-details"][2] == "overrides what Tribes sets: true"
    assert table["--disable-uvicorn-access-log"][1] == "Tribes"
    assert table["(cuda_graphs: true)"][1] == "preset low-latency-h100"
    assert not any(why == "set by Tribes" for _, _, why in table.values())


def test_sglang_and_what_is_left_out(tmp_path: Path) -> None:
    args = {"enable-metrics": False, "quantization": None}
    table = rows(explained(tmp_path, {"kind": "sglang", "preset": "throughput-h100", "args": args}))
    assert table["--enable-metrics"] == ("(left out)", "engine.args", "overrides what Tribes sets: true")
    assert table["--quantization"][0] == "(left out)"
    assert table["--quantization"][2] == "overrides quantisation of preset throughput-h100, which says fp8"
    assert table["--enable-mixed-chunk"][:2] == ("", "preset throughput-h100")
    assert table["--chunked-prefill-size"][0] == "16384"
    assert not any(why == "set by Tribes" for _, _, why in table.values())


def test_one_key_of_a_lever_changed_by_args_names_both(tmp_path: Path) -> None:
    engine = {"kind": "vllm", "preset": {"speculation": "ngram"}, "args": {"speculative-config.prompt_lookup_max": 9}}
    value, source, why = rows(explained(tmp_path, engine))["--speculative-config"]
    assert json.loads(value)["prompt_lookup_max"] == 9
    assert source == "engine.preset, engine.args" and why.startswith("speculation: ")


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_the_command_is_the_replicas_own_but_for_placeholders(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, {"kind": kind, "preset": "low-latency-h100", "python": "/opt/e/bin/python"})
    config = load_config(path)
    shown = explain(config, "d")
    spec = build_spec(config.deployments["d"], "m", "org/m", "HOST", 0, "sk-real", max_model_len=4096, revision="r1")
    real = [word.replace("@RUN_DIR@", "RUN_FOLDER") for word in spec.argv]
    real[real.index("--port") + 1] = "PORT"
    assert shown.command == real and shown.command[0] == "/opt/e/bin/python"


def test_values_of_the_environment_are_not_shown(tmp_path: Path) -> None:
    shown = explained(tmp_path, {"kind": "vllm", "env": {"HF_TOKEN": "hf_secret"}})
    assert shown.environment == ["HF_TOKEN", "VLLM_API_KEY=KEY"]
    assert "hf_secret" not in run(app, ["explain", str(tmp_path / "config.yaml")]).output


def test_an_engine_inside_a_job_has_no_command_but_arguments(tmp_path: Path) -> None:
    shown = explained(tmp_path, {"kind": "vllm", "preset": "throughput-h100"}, serves=["offline"])
    assert shown.command == [] and shown.engine == "vllm in the job"
    table = rows(shown)
    assert table["--disable-log-stats"][:2] == ("", "Tribes") and "--port" not in table
    assert table["--max-num-batched-tokens"][0] == "16384"


def test_warnings(tmp_path: Path) -> None:
    warned = explained(tmp_path, {"kind": "vllm", "preset": "low-latency-h100"}).warnings
    assert any("tribes quality" in line for line in warned)
    assert explained(tmp_path, {"kind": "vllm"}).warnings == []


def test_the_screen_shows_the_command_on_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, {"kind": "vllm", "preset": {"speculation": {"kind": "ngram", "tokens": 5}}})
    result = run(app, ["explain", str(path)])
    assert result.exit_code == 0, result.output
    (command,) = [line for line in result.output.splitlines() if "-m vllm.entrypoints" in line]
    words = shlex.split(command)
    config = json.loads(words[words.index("--speculative-config") + 1])
    assert config["num_speculative_tokens"] == 5
    assert "note: speculation: ngram pays for answers" in result.output


def test_json_and_one_deployment(tmp_path: Path) -> None:
    path = write(tmp_path, {"kind": "sglang", "preset": "low-latency-h100"})
    (item,) = json.loads(run(app, ["explain", str(path), "--deployment", "d", "--json"]).stdout)
    assert item["deployment"] == "d" and item["place"] == "H100" and "PORT" in item["command"]
    result = run(app, ["explain", str(path), "-d", "e"])
    assert result.exit_code == 1 and "unknown deployment 'e'" in result.stderr


def test_what_the_adapter_refuses_is_one_line(tmp_path: Path) -> None:
    result = run(app, ["explain", str(write(tmp_path, {"kind": "vllm", "args": {"port": 1}}))])
    assert result.exit_code == 1
    assert "deployments.d: engine.args.port" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["local", "h100", "heterogeneous"])
def test_committed_configurations_are_explained(name: str) -> None:
    result = run(app, ["explain", str(ROOT / "configs" / f"{name}.yaml")])
    assert result.exit_code == 0, result.output


def test_neither_ray_nor_an_engine_is_imported() -> None:
    check = (
        "import sys, cluster.cli.app as a\n"
        "try: a.app(['explain', 'configs/local.yaml'], prog_name='tribes')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'ray', 'torch', 'vllm', 'sglang'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
