"""What the vLLM and SGLang adapters start, and that neither needs its engine or an HTTP library to be imported."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from cluster.config import DeploymentConfig
from cluster.config.deployments import ResourcesConfig
from cluster.engines import EngineConfigError, LaunchSpec, build_spec
from cluster.engines.launch import RUN_DIR, free_port, new_api_key

KEY = "0123456789abcdef"


def deployment(kind: str, **engine: Any) -> DeploymentConfig:
    return DeploymentConfig.model_validate({"model": "m", "serves": ["online"], "engine": {"kind": kind, **engine}})


def spec_of(kind: str, tmp_path: Any, **engine: Any) -> LaunchSpec:
    return build_spec(deployment(kind, **engine), "org/m", tmp_path, "127.0.0.1", 7001, KEY)


def value_after(spec: LaunchSpec, option: str) -> str:
    return spec.argv[spec.argv.index(option) + 1]


@pytest.mark.parametrize(
    ("kind", "module", "model_option"),
    [("vllm", "vllm.entrypoints.openai.api_server", "--model"), ("sglang", "sglang.launch_server", "--model-path")],
)
def test_the_command_line(kind, module, model_option, tmp_path):
    spec = spec_of(kind, tmp_path, args={"max_running": 3})
    assert spec.argv[:3] == (sys.executable, "-m", module)
    assert value_after(spec, model_option) == str(tmp_path)
    assert value_after(spec, "--served-model-name") == "org/m"
    assert (value_after(spec, "--host"), value_after(spec, "--port")) == ("127.0.0.1", "7001")
    assert value_after(spec, "--max-running") == "3"
    assert spec.base_url == "http://127.0.0.1:7001"


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_the_key_is_neither_in_argv_nor_in_the_repr(kind, tmp_path):
    spec = spec_of(kind, tmp_path)
    assert not any(KEY in part for part in spec.argv)
    assert KEY not in repr(spec)
    assert KEY in (*spec.env.values(), *"".join(spec.files.values()).split('"'))


def test_vllm_gets_its_key_from_the_environment_and_sglang_from_a_private_file(tmp_path):
    assert spec_of("vllm", tmp_path).env["VLLM_API_KEY"] == KEY
    sglang = spec_of("sglang", tmp_path)
    assert value_after(sglang, "--config") == f"{RUN_DIR}/sglang.yaml"
    assert sglang.files == {"sglang.yaml": f'api-key: "{KEY}"\n'}


def test_on_a_cpu_an_adapter_slot_stays_empty_for_requests_without_an_adapter(tmp_path):
    lora = {"enable_lora": True, "lora_modules": ["a=/a", "b=/b"]}
    for few in (lora, {**lora, "max_loras": 2}):
        with pytest.raises(EngineConfigError, match="set max_loras: 3"):
            spec_of("vllm", tmp_path, args=few)
    assert "--enable-lora" in spec_of("vllm", tmp_path, args={**lora, "max_loras": 3}).argv
    on_gpu = deployment("vllm", args=lora).model_copy(update={"resources": ResourcesConfig(gpus=1)})
    assert "--enable-lora" in build_spec(on_gpu, "org/m", tmp_path, "127.0.0.1", 7001, KEY).argv


def test_defaults_give_way_to_the_deployment(tmp_path):
    assert "--enable-prompt-tokens-details" in spec_of("vllm", tmp_path).argv
    assert "--enable-force-include-usage" not in spec_of("vllm", tmp_path).argv
    vllm = spec_of("vllm", tmp_path, args={"enable_prompt_tokens_details": False})
    assert "--no-enable-prompt-tokens-details" in vllm.argv and "--enable-prompt-tokens-details" not in vllm.argv
    sglang = spec_of("sglang", tmp_path, args={"log-level": "info", "enable-metrics": False})
    assert value_after(sglang, "--log-level") == "info"
    assert "--enable-metrics" not in sglang.argv and "--enable-cache-report" in sglang.argv


@pytest.mark.parametrize(("kind", "option"), [("vllm", "--max-model-len"), ("sglang", "--context-length")])
def test_the_models_length_is_passed_unless_the_deployment_says_otherwise(kind, option, tmp_path):
    place = (tmp_path, "127.0.0.1", 1, KEY)
    assert value_after(build_spec(deployment(kind), "m", *place, max_model_len=512), option) == "512"
    own = deployment(kind, args={option.lstrip("-"): 256})
    assert build_spec(own, "m", *place, max_model_len=512).argv.count(option) == 1
    assert value_after(build_spec(own, "m", *place, max_model_len=512), option) == "256"
    assert option not in build_spec(deployment(kind), "m", *place).argv


@pytest.mark.parametrize(
    ("kind", "name"),
    [("vllm", n) for n in ("model", "host", "port", "api-key", "served_model_name", "ssl-keyfile")]
    + [("sglang", n) for n in ("model", "model_path", "host", "port", "api_key", "served-model-name", "config")],
)
def test_what_the_adapter_owns_is_refused(kind, name, tmp_path):
    with pytest.raises(EngineConfigError, match=name.replace("_", "-")):
        spec_of(kind, tmp_path, args={name: "x"})


def test_a_key_in_the_environment_is_refused(tmp_path):
    with pytest.raises(EngineConfigError, match="VLLM_API_KEY"):
        spec_of("vllm", tmp_path, env={"VLLM_API_KEY": "mine"})


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_the_hub_is_off_only_for_a_local_folder_and_the_deployment_may_differ(kind, tmp_path):
    assert spec_of(kind, tmp_path).env["HF_HUB_OFFLINE"] == "1"
    assert spec_of(kind, tmp_path, env={"HF_HUB_OFFLINE": "0"}).env["HF_HUB_OFFLINE"] == "0"
    hub = build_spec(deployment(kind), "m", "org/model", "127.0.0.1", 1, KEY, revision="abc")
    assert "HF_HUB_OFFLINE" not in hub.env
    assert value_after(hub, "--revision") == "abc"


def test_interpreter_and_entrypoint(tmp_path):
    assert spec_of("vllm", tmp_path, python="/opt/vllm/bin/python").argv[0] == "/opt/vllm/bin/python"
    scripted = spec_of("vllm", tmp_path, python="/opt/p", entrypoint=["python", "-m", "tests.support.scripted_engine"])
    assert scripted.argv[:3] == ("/opt/p", "-m", "tests.support.scripted_engine")
    assert spec_of("vllm", tmp_path, entrypoint=["/bin/server"]).argv[0] == "/bin/server"


def test_nothing_about_cuda_is_set(tmp_path):
    for kind in ("vllm", "sglang"):
        spec = spec_of(kind, tmp_path)
        assert not [name for name in spec.env if "CUDA" in name]


def test_keys_are_random_and_safe_anywhere():
    assert new_api_key() != new_api_key()
    assert new_api_key().isalnum() and len(new_api_key()) >= 32


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_free_ports(host):
    assert 0 < free_port(host) < 65536


def test_importing_the_package_loads_neither_engines_nor_http_nor_ray():
    code = (
        "import sys, cluster.engines; print([m for m in ('torch','vllm','sglang','ray','aiohttp') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
