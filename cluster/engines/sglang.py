"""Role: the SGLang adapter. Owns: SGLang's command line, environment and metric names (checked with sglang 0.5.23).

Must not know: processes, Ray. Needs no SGLang to be imported: the engine runs in the interpreter that the config names.

Booleans: most of SGLang's are flags without a negative form, so false means the flag is left out. For the few that are
on by default and have one, write the negative name: `no-NAME: true`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.engines import arguments, launch
from cluster.engines.metrics import EngineLoad, MetricNames, fetch_load

if TYPE_CHECKING:
    import aiohttp

    from cluster.config import DeploymentConfig

# `sglang serve` looks for a diffusion model first and then does the same; the module also exists in older releases.
MODULE: Final = "sglang.launch_server"
SECRETS_FILE: Final = "sglang.yaml"
DEFAULTS: Final[dict[str, Any]] = {
    "enable-metrics": True,
    "enable-cache-report": True,  # cached tokens in usage, which the bill needs
    "log-level": "warning",  # at info, SGLang writes a line for each prefill and each health check
    "log-level-http": "warning",
}
_PRIVATE: Final = "remove it: the server is private to its replica, and clients meet only the gateway"
_MODEL: Final = "name the model in `models` and in `deployments.NAME.model`"
OWNED: Final = {
    "model": _MODEL,
    "model-path": _MODEL,
    "served-model-name": "clients use the key of the model in `models`",
    "host": _PRIVATE,
    "port": _PRIVATE,
    "ssl-keyfile": _PRIVATE,
    "ssl-certfile": _PRIVATE,
    "api-key": "remove it: each start has a random key, and API keys of clients belong to tenants",
    "config": "write what the file says into engine.args",
}
PATHS: Final = {
    "/v1/chat/completions": "/v1/chat/completions",
    "/v1/completions": "/v1/completions",
    "/v1/responses": "/v1/responses",
    "/v1/messages": "/v1/messages",
    "/v1/messages/count_tokens": "/v1/messages/count_tokens",
    "/v1/embeddings": "/v1/embeddings",
    "/v1/rerank": "/v1/rerank",
    "/v1/score": "/v1/score",
    "/v1/classify": "/v1/classify",  # its /classify is another call, for reward models
    "/tokenize": "/v1/tokenize",
    "/detokenize": "/v1/detokenize",
}
"""Where SGLang has what clients of Tribes find at the path before the colon. Some only for models made for it."""
SALTED_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Where a request's `cache_salt` separates its cached prefixes from those of other salts. The others know none."""
METRICS: Final = MetricNames(
    running="sglang:num_running_reqs",
    waiting=("sglang:num_queue_reqs", "sglang:num_grammar_queue_reqs"),
    kv_usage="sglang:token_usage",
    prompt_tokens="sglang:prompt_tokens_total",
    generation_tokens="sglang:generation_tokens_total",
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
    defaults = {**DEFAULTS, "context-length": max_model_len, "revision": revision}
    args = arguments.merge(deployment.engine_args, defaults, OWNED)
    address = {"model-path": str(model_path), "served-model-name": model_name, "host": host, "port": port}
    # SGLang reads no key from the environment, and argv is there for every user of the node: hence a file of our own.
    secrets = {"config": f"{launch.RUN_DIR}/{SECRETS_FILE}"}
    # Worker processes share their metrics through files; inherited, the folder would mix those of several engines.
    env = {"PROMETHEUS_MULTIPROC_DIR": launch.RUN_DIR, **launch.base_env(engine, model_path)}
    return launch.LaunchSpec(
        argv=(*launch.command(engine, MODULE), *arguments.to_argv({**address, **secrets, **args}, negated_flags=False)),
        env=env,
        host=host,
        port=port,
        api_key=api_key,
        model_path=str(model_path),
        served_model_name=model_name,
        start_timeout_s=engine.start_timeout_s,
        files={SECRETS_FILE: f"api-key: {json.dumps(api_key)}\n"},
    )


async def read_load(session: aiohttp.ClientSession, base_url: str, api_key: str) -> EngineLoad:
    return await fetch_load(session, base_url, api_key, METRICS)
