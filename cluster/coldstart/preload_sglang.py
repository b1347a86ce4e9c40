"""Role: what a fork host imports for SGLang on a CPU. Owns: that list, and how a forked SGLang starts its processes.

Loaded by `fork_host.py` in the interpreter that has SGLang. It may not compute: see `preload_vllm.py`. Nor may it load
`prometheus_client`, which decides when it is imported whether processes share their metrics through a folder; each
engine has a folder of its own. Must not know: requests, ports, replicas. Checked with sglang 0.5.23.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODULES = (
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.managers.tp_worker",
    "sglang.srt.model_executor.model_runner",
    "sglang.srt.model_loader.loader",
    "uvloop",
    "uvicorn.protocols.http.httptools_impl",
)


def preload(hints: Sequence[str]) -> None:
    """Everything that an engine imports until it serves; `hints` are folders of models."""
    for name in MODULES:
        importlib.import_module(name)
    for folder in hints:
        _import_model(Path(folder))
    if "prometheus_client" in sys.modules:
        sys.exit("fork host: this release of SGLang imports prometheus_client early: no fork here")
    _fork_instead_of_spawn()


def probe() -> None:
    """Work that OpenMP shares out among threads."""
    import torch

    (torch.ones(512, 512) @ torch.ones(512, 512)).exp().sum().item()


def _import_model(folder: Path) -> None:
    """The classes of the model, its configuration and its tokenizer."""
    from sglang.srt.models.registry import ModelRegistry
    from transformers import AutoConfig, AutoTokenizer

    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        ModelRegistry.resolve_model_cls(config.get("architectures", ()))
        AutoConfig.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        print(f"fork host: the model's classes are not preloaded: {error}", flush=True)


def _fork_instead_of_spawn() -> None:
    """SGLang's launcher insists on `spawn` for scheduler and detokenizer, which would import everything once more."""
    choose = multiprocessing.set_start_method

    def fork(method: str | None, force: bool = False) -> None:
        choose("fork", force=force)

    vars(multiprocessing)["set_start_method"] = fork
