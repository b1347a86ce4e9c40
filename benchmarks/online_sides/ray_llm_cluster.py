"""ray.serve.llm on a cluster of its own, tuned: direct streaming behind HAProxy.

A deployment's vLLM is given to it with the very arguments and environment that it gets from this project, on a head of
Ray that is started exactly as this project's is. Owns: the Serve config, start and stop. Must not know: the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.gateway_sides.plain_serve import deploy_application
from benchmarks.load import Target, measure
from benchmarks.online_sides.ours import heed_sigterm
from cluster.config import TribesConfig
from cluster.engines import arguments, launch, vllm
from cluster.engines.guard import SharedMemoryLedger
from cluster.local import LocalClusterError, deploy, head
from cluster.local.isolate import isolated
from cluster.local.run import RunInfo
from cluster.models import PreparedModel, prepare_model

IMPORT_PATH = "ray.serve.llm:build_openai_app"
FLAGS = {
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    # What Ray's own published figures switch on: user code and routers on Serve's loop, buffered logs.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
"""Besides RAY_SERVE_ENABLE_HA_PROXY, which the head sets. All its processes read them, so the head gets them."""
UNLIMITED = 100_000
START_TIMEOUT_S, ANSWER_TIMEOUT_S, STOP_GRACE_S = 480.0, 60.0, 10.0
POLL_S = 0.5
NO_KEY = "unused"


@dataclass(frozen=True, slots=True)
class RayLLM:
    """It runs: where it answers, the process that all others come from, and what was deployed."""

    target: Target
    head_pid: int
    shown: Mapping[str, Any]


@contextlib.contextmanager
def ray_serve_llm(config: TribesConfig, folder: Path, say: Callable[[str], None]) -> Iterator[RayLLM]:
    """The one deployment of `config`; LocalClusterError when it does not start."""
    heed_sigterm()
    folder.mkdir(parents=True, exist_ok=True)
    config = isolated(config, folder)
    (deployment,) = config.deployments.values()
    prepared = prepare_model(deployment.model, config.models[deployment.model], config.paths, say)
    application = application_config(config, prepared, folder)
    target = Target(f"http://{config.gateway.host}:{config.gateway.port}", NO_KEY)
    say("starting Ray for ray.serve.llm")
    ledger = SharedMemoryLedger()
    with _environment(FLAGS):
        run = head.start_head(config)
    try:
        try:
            deploy_application(config, application)
            deploy.wait_running(config, START_TIMEOUT_S, say)
            asyncio.run(_wait_answering(target, deployment.model))
        except (RuntimeError, OSError) as error:
            raise LocalClusterError(f"ray.serve.llm did not start: {error}") from error
        yield RayLLM(target, run.pid, {"serve": shown(application, prepared, folder), "environment": FLAGS})
    finally:
        _stop(config, run, ledger)


def application_config(config: TribesConfig, prepared: PreparedModel, folder: Path) -> dict[str, Any]:
    """What `serve deploy` takes."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": config.gateway.host, "port": config.gateway.port},
        "applications": [
            {
                # The name under which cluster.local.deploy looks for an application.
                "name": deploy.APP,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {"llm_configs": [llm_config(config, prepared, folder)]},
                "logging_config": {"enable_access_log": False},
            }
        ],
    }


def shown(application: dict[str, Any], prepared: PreparedModel, folder: Path) -> Any:
    """The same without folders of this machine, for a report."""
    text = json.dumps(application).replace(prepared.path_or_id, "MODEL").replace(str(folder), "FOLDER")
    return json.loads(text)


def llm_config(config: TribesConfig, prepared: PreparedModel, folder: Path) -> dict[str, Any]:
    """The one deployment of `config` as ray.serve.llm's LLMConfig. Round robin is its default with direct streaming."""
    (deployment,) = config.deployments.values()
    env = {
        "VLLM_RPC_BASE_PATH": str(folder),  # sockets that a killed vLLM leaves go with the folder
        **launch.base_env(deployment.engine, prepared.path_or_id),
    }
    return {
        "model_loading_config": {"model_id": deployment.model, "model_source": prepared.path_or_id},
        "engine_kwargs": engine_kwargs(config, prepared),
        "accelerator_config": {"kind": "cpu"},
        "runtime_env": {"env_vars": env},
        "deployment_config": {
            "num_replicas": 1,
            "max_ongoing_requests": UNLIMITED,
            "max_constructor_retry_count": 1,  # by default what cannot start is tried twenty times
        },
        "experimental_configs": {"stream_batching_interval_ms": 0},
        # vLLM's own counters as in our engine's server, instead of Ray's, which cost more.
        "log_engine_metrics": False,
    }


def engine_kwargs(config: TribesConfig, prepared: PreparedModel) -> dict[str, Any]:
    """What this project would put on vLLM's command line, by the names of vLLM's Python fields."""
    (deployment,) = config.deployments.values()
    max_model_len = config.models[deployment.model].max_model_len
    defaults = {**vllm.DEFAULTS, "max-model-len": max_model_len, "revision": prepared.revision}
    args = arguments.merge(deployment.engine_args, defaults, vllm.OWNED)
    return {option.replace("-", "_"): value for option, value in args.items() if value is not None}


async def _wait_answering(target: Target, model: str) -> None:
    """Until a chat completion comes back: HAProxy hears of a replica a moment after Serve says that it runs."""
    last: Exception | None = None
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while True:
                try:
                    await measure(target, model, ["Hello"], 1, 4)
                    return
                except aiohttp.ClientError as error:
                    last = error
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise RuntimeError(f"no answer from {target.base_url} within {ANSWER_TIMEOUT_S:g} s: {last!r}") from last


def _stop(config: TribesConfig, run: RunInfo, ledger: SharedMemoryLedger) -> None:
    """The head's sweep finds processes by their environment, which vLLM's overwrite with their titles: so those that
    are there now are remembered, and what outlives the head is killed. Ray kills vLLM, which leaves its shared memory.
    """
    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(run.pid).children(recursive=True)
    ledger.note(process.pid for process in below)
    with contextlib.suppress(Exception):  # it may not have got so far; the head goes in any case
        deploy.shutdown(config, STOP_GRACE_S)
    head.stop_head(config)
    _, left = psutil.wait_procs(below, STOP_GRACE_S)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, STOP_GRACE_S)
    ledger.release()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """`values` in this process's environment, which a head inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
