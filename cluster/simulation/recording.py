"""A run of a real engine, request by request, and how well a simulated one agrees with it.

Owns: the format of recordings (JSONL: vLLM's timestamps, or our own names) and the errors of a prediction.
Must not know: how the prediction was made, nor what it was fitted on.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from cluster.simulation.request import Request
from cluster.simulation.workload import TraceError

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request; seconds since the first one came."""

    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    first_token_s: float
    finished_s: float

    def asked(self, number: int) -> Request:
        """What a simulation is given of it."""
        return Request(number, self.arrived_s, self.prompt_tokens, self.output_tokens)


@dataclass(frozen=True, slots=True)
class MetricError:
    """Predicted over observed, less one: of the mean, of percentiles, and per request in absolute terms."""

    observed_mean_s: float
    predicted_mean_s: float
    mean: float
    percentiles: dict[int, float]
    per_request: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors over `requests` requests of a recording."""

    requests: int
    e2e: MetricError
    ttft: MetricError
    tpot: MetricError


def load_recording(path: Path) -> list[Recorded]:
    """In the order of arrival."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}; check the path") from error
    found = []
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            found.append(_recorded(json.loads(line)))
        except (KeyError, ValueError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else error
            raise TraceError(
                f"{path}, line {number}: {what}; a recording has arrived_s, prompt_tokens, output_tokens, "
                "first_token_s, finished_s in each line, or vLLM's queued_ts, input_toks and so on"
            ) from error
    if not found:
        raise TraceError(f"{path} is empty")
    found.sort(key=lambda one: one.arrived_s)
    begin_s = found[0].arrived_s
    return [
        Recorded(
            one.arrived_s - begin_s,
            one.prompt_tokens,
            one.output_tokens,
            one.first_token_s - begin_s,
            one.finished_s - begin_s,
        )
        for one in found
    ]


def _recorded(row: dict[str, float]) -> Recorded:
    names = ("arrived_s", "prompt_tokens", "output_tokens", "first_token_s", "finished_s")
    if "queued_ts" in row:
        names = ("queued_ts", "input_toks", "output_toks", "first_token_ts", "last_token_ts")
    arrived, prompt, output, first, last = (row[name] for name in names)
    return Recorded(float(arrived), int(prompt), int(output), float(first), float(last))


def accuracy(observed: Sequence[Recorded], predicted: Sequence[Request], counted: Collection[int]) -> Accuracy:
    """Of the requests whose places are `counted`; both sequences are in the order of arrival."""
    pairs = [(observed[place], predicted[place]) for place in sorted(counted)]
    long = [(seen, made) for seen, made in pairs if seen.output_tokens > 1]
    return Accuracy(
        len(pairs),
        _error([(s.finished_s - s.arrived_s, p.e2e_s) for s, p in pairs]),
        _error([(s.first_token_s - s.arrived_s, p.ttft_s) for s, p in pairs]),
        _error([((s.finished_s - s.first_token_s) / (s.output_tokens - 1), p.tpot_s or 0.0) for s, p in long]),
    )


def _error(pairs: Sequence[tuple[float, float]]) -> MetricError:
    observed, predicted = sorted(o for o, _ in pairs), sorted(p for _, p in pairs)
    own, other = fmean(observed), fmean(predicted)
    places = {percent: min(len(pairs) - 1, len(pairs) * percent // 100) for percent in PERCENTILES}
    return MetricError(
        own,
        other,
        other / own - 1,
        {percent: predicted[place] / observed[place] - 1 for percent, place in places.items()},
        fmean(abs(p / o - 1) for o, p in pairs if o > 0),
    )
