"""Role: from a trace of requests to a few sizes. Owns: how sizes are grouped. Must not know: formats of traces, which
the simulation reads, nor what the sizes are for.

Prompts are cut at their median and 90th percentile, and each part again by its outputs: nine groups at most, each with
its mean lengths, so that the long requests that decide about latency do not vanish in a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

Lengths = tuple[float, float]
"""(prompt tokens, output tokens)."""
Size = tuple[float, float, float]
"""(share, mean prompt tokens, mean output tokens)."""
_CUTS: Final = (0.5, 0.9, 1.0)


def read_trace(path: Path) -> tuple[list[Size], float | None]:
    """Groups of sizes, and requests a second (None where all arrive at once). Raises TraceError of the simulation."""
    from cluster.simulation.workload import load_trace

    trace = load_trace(path)
    lengths = [(float(r.prompt_tokens), float(r.output_tokens)) for r in trace.requests]
    return group(lengths), len(lengths) / trace.seconds if trace.seconds > 0 else None


def group(lengths: list[Lengths]) -> list[Size]:
    """Nine groups at most, shares adding up to 1."""
    groups = [part for column in _cut(lengths, lambda pair: pair[0]) for part in _cut(column, lambda pair: pair[1])]
    count = len(lengths)
    return [(len(p) / count, sum(a for a, _ in p) / len(p), sum(b for _, b in p) / len(p)) for p in groups]


def _cut(lengths: list[Lengths], key: Callable[[Lengths], float]) -> Iterator[list[Lengths]]:
    ordered, begin = sorted(lengths, key=key), 0
    for cut in _CUTS:
        end = round(cut * len(ordered))
        if end > begin:
            yield ordered[begin:end]
        begin = end
