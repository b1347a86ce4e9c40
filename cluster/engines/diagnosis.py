"""Role: tell from an engine's last words why it did not start, and what helps. Owns: the table of known failures.

Must not know: processes, configuration classes. Pure: text in, verdict out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

KILLED_BY_SIGKILL: Final = 137


@dataclass(frozen=True, slots=True)
class Diagnosis:
    kind: str
    cure: str


def _known(pattern: str, kind: str, cure: str) -> tuple[re.Pattern[str], Diagnosis]:
    return re.compile(pattern, re.IGNORECASE), Diagnosis(kind, cure)


# The first entry that matches any line wins: causes stand before what they lead to.
KNOWN: Final = (
    _known(
        r"address already in use|errno 98\b|port \d+ is (already )?(in use|not available|unavailable)",
        "port_in_use",
        "another process took the port; start again, which picks another one",
    ),
    _known(
        r"guard: cannot start",
        "no_interpreter",
        "engine.python (or the head of engine.entrypoint) is not a program on this node; name one that exists there",
    ),
    _known(
        r"no module named '?(vllm|sglang)|error while finding module specification for '(vllm|sglang)",
        "engine_missing",
        "the interpreter has no such engine; install it there, or set engine.python to the interpreter that has it",
    ),
    _known(
        r"unrecognized arguments|the following arguments are required|ambiguous option",
        "unknown_argument",
        "engine.args holds a name that this release of the engine does not have; see the engine's --help",
    ),
    _known(
        r"error: argument |invalid choice|expected (one|at least one) argument|validation errors? for",
        "bad_argument",
        "engine.args holds a value that the engine refuses; the last lines name it",
    ),
    _known(
        r"no available memory for the cache|kv cache (memory|space)? ?is (too small|not enough|needed)"
        r"|larger than the (available kv cache memory|maximum number of tokens that can be stored)"
        r"|estimated maximum model length|not enough memory\. please try",
        "kv_cache_too_small",
        "the KV cache does not fit: lower the model's max_model_len, or give the cache more room (vLLM: "
        "gpu-memory-utilization, on CPUs env VLLM_CPU_KVCACHE_SPACE; SGLang: mem-fraction-static, max-total-tokens)",
    ),
    _known(
        r"out of memory|outofmemory|cannot allocate memory|can't allocate memory|\bMemoryError\b|std::bad_alloc",
        "out_of_memory",
        "memory ran out: use a smaller model or quantisation, more GPUs (tensor-parallel-size), a smaller KV cache, or "
        "fewer replicas per node (resources)",
    ),
    _known(
        r"does not appear to have a file named|repository not found|localentrynotfound|invalid repository id"
        r"|can't load the configuration of|we couldn't connect to|is not a (valid )?(local folder|model identifier)"
        r"|repo id must be in the form|unrecognized model in|safetensors_rust.safetensorerror|no model weights found",
        "model_not_found",
        "the model's folder is missing or incomplete on this node; see models.NAME.source, and fetch it again",
    ),
    _known(
        r"operator torchvision::nms does not exist|libcudart|libtorch_cuda|undefined symbol",
        "mixed_builds",
        "packages of different torch builds are mixed in the engine's environment; install it anew from requirements/",
    ),
    _known(
        r"no nvidia driver|failed to infer device type|no cuda gpus are available|cuda driver version is insufficient",
        "no_accelerator",
        "the engine found no accelerator it can use: set resources.gpus and the pool, or the engine's CPU arguments",
    ),
)
_KILLED: Final = Diagnosis(
    "killed",
    "the kernel killed it, most likely for memory: set resources.memory_gib and use a smaller model or KV cache",
)
UNKNOWN: Final = Diagnosis("unknown", "the last lines say why; run the command by hand to try a change")
TOO_SLOW: Final = Diagnosis("too_slow", "raise engine.start_timeout_s if the last lines show it still at work")


def diagnose(lines: Sequence[str], exit_code: int | None) -> Diagnosis | None:
    """The known failure that these lines show; None for one that is not known. `exit_code` None = still running."""
    for pattern, diagnosis in KNOWN:
        if any(pattern.search(line) for line in lines):
            return diagnosis
    return _KILLED if exit_code == KILLED_BY_SIGKILL else None
