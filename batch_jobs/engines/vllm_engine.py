"""vLLM as the engine of an offline job: its own OpenAI app on an AsyncLLM, called inside this process.

Role: asks in, replies out. Owns: how vLLM is built and when it counts as dead. Must not know: Ray, files, tasks.
Imported only in engine processes.

Going through vLLM's app rather than AsyncLLM.generate costs a little time a row in this process (the model runs
in another) and gives what its server gives: every parameter, chat templates, tools, structured output, LoRA adapters,
embeddings, scores, classes, with its own checks and messages. Tokenising and detokenising happen in this process too,
never in the one that runs the model.

vLLM runs the model in child processes that do not notice the SIGKILL of their parent (measured: they stay for ever,
with the accelerator's memory); engine_actor.py puts the process under orphans.py for that.

Not public API: `make_arg_parser`, `build_app` and `init_app_state` (vLLM's own server and run-batch are made of them).
Tried with vLLM 0.32; tests/engine/test_offline.py breaks when they move.
"""

from __future__ import annotations

import inspect
import warnings
from argparse import Namespace
from types import SimpleNamespace
from typing import Any, NoReturn

from fastapi import FastAPI
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM

from batch_jobs.engines.asgi_call import call
from batch_jobs.engines.base import Ask, EngineDied, EngineLimits, EngineSettings, Reply
from cluster.engines.vllm import cpu_lora_problem, job_argv


class VllmEngine:
    """One AsyncLLM and the app on it."""

    def __init__(self, settings: EngineSettings) -> None:
        self._args = server_arguments(settings)
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(self._args))

    async def start(self) -> EngineLimits:
        tasks = await self._engine.get_supported_tasks()
        self._app: FastAPI = await _app(self._args, self._engine, tasks)
        config = self._engine.vllm_config
        blocks, block_tokens = config.cache_config.num_gpu_blocks, config.cache_config.block_size
        return EngineLimits(
            max_running=config.scheduler_config.max_num_seqs,
            kv_tokens=blocks * block_tokens if blocks and "generate" in tasks else None,
            max_model_len=config.model_config.max_model_len,
            paths=tuple(sorted({getattr(route, "path", "") for route in self._app.routes})),
        )

    async def ask(self, ask: Ask) -> Reply:
        try:
            reply = await call(self._app, ask)
        except Exception as error:
            if self._engine.errored:
                raise EngineDied(str(error)) from error
            return Reply(500, {"error": {"message": f"{type(error).__name__}: {error}", "type": "internal_error"}})
        if reply.status >= 500 and self._engine.errored:
            raise EngineDied(str(reply.body))
        return reply


async def _app(args: Namespace, engine: AsyncLLM, tasks: Any) -> FastAPI:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from vllm.entrypoints.launchers.api_server.app_state import init_app_state
            from vllm.entrypoints.launchers.app import build_app
        except ImportError:  # before 0.30 they were here
            from vllm.entrypoints.openai.api_server import build_app, init_app_state
    offered = {"supported_tasks": tasks, "model_config": engine.model_config}
    app = build_app(
        args, **{name: offered[name] for name in inspect.signature(build_app).parameters if name in offered}
    )
    app.state.server = SimpleNamespace(should_exit=False)  # what vLLM tells to end when its engine is dead
    await init_app_state(engine, app.state, args, tasks)
    served: FastAPI = app
    return served


def server_arguments(settings: EngineSettings) -> Namespace:
    """The arguments of vLLM's server, parsed by its own parser; the model is fetched or converted first."""
    from cluster.config import ModelConfig, PathsConfig
    from cluster.models import prepare_model

    config = ModelConfig.model_validate(settings.model_config)
    prepared = prepare_model(settings.model, config, PathsConfig.model_validate(settings.paths), print)
    argv = job_argv(settings.engine_args, settings.model, prepared.path_or_id, config.max_model_len, prepared.revision)
    parsed: Namespace = _parser().parse_args(argv)
    if current_platform.is_cpu():
        problem = cpu_lora_problem(parsed.enable_lora, len(parsed.lora_modules or ()), parsed.max_loras)
        if problem is not None:
            raise ValueError(f"vLLM does not take the engine's arguments: {problem}")
    return parsed


class _Parser(FlexibleArgumentParser):
    """One that raises: argparse would end the process with its message on a stderr that nobody reads."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"vLLM does not take the engine's arguments: {message}")


def _parser() -> FlexibleArgumentParser:
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # before 0.30
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    parser: FlexibleArgumentParser = make_arg_parser(_Parser())
    return parser
