"""Role: split an engine's start into stages by the lines it writes. Owns: which line ends which stage, by engine. Pure.

A stage lasts from the end of the one before it to the first line that ends it. Engines do not say everything, so some
stages cannot be told apart; what a stage holds:

    vllm    process      asked -> the process runs (for a forked engine: the fork)
            import       interpreter, torch, vLLM and its server, arguments
            engine       configuration, the engine core's process and, unless forked, its imports once more
            weights      model class, weights
            compile      profile, KV cache, graphs; torch.compile where it is on
            warm_up      tokenizer, renderer, routes of the server
            routable     the server listens and answers health checks with our key
    sglang  (log-level info) the same, where `engine` is the scheduler's process up to the weights

Must not know: processes, clocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

Stage = tuple[str, re.Pattern[str]]


def _ends(name: str, pattern: str) -> Stage:
    return name, re.compile(pattern)


MARKS: Final[Mapping[str, Sequence[Stage]]] = {
    "vllm": (
        _ends("import", r"non-default args|vLLM API server version"),
        _ends("engine", r"Starting to load model"),
        _ends("weights", r"Model loading took|Loading weights took"),
        _ends("compile", r"init engine \("),
        _ends("warm_up", r"Starting vLLM server on|Application startup complete"),
    ),
    "sglang": (
        _ends("import", r"server_args="),
        _ends("engine", r"Load weight begin"),
        _ends("weights", r"Load weight end"),
        _ends("compile", r"max_total_num_tokens="),
        _ends("warm_up", r"The server is fired up"),
    ),
}


def split(kind: str, lines: Sequence[tuple[float, str]], process_s: float, routable_s: float) -> dict[str, float]:
    """Seconds by stage; they add up to `routable_s`. `lines` are (seconds since the start, text), in order.

    A stage whose line did not come is left out, and its time is in the next one.
    """
    stages = {"process": process_s}
    before = process_s
    rest = iter(lines)
    for name, pattern in MARKS[kind]:
        seen = list(rest)
        at = next((index for index, (_, text) in enumerate(seen) if pattern.search(text)), None)
        if at is not None:
            stages[name] = max(0.0, seen[at][0] - before)
            before = max(before, seen[at][0])
            seen = seen[at:]  # one line may end two stages
        rest = iter(seen)
    stages["routable"] = max(0.0, routable_s - before)
    return stages
