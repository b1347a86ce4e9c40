"""What the demo found, as plain values. Owns: the shape of `artifacts/demo.json` and its statistics.

Must not know: HTTP, Ray, the screen. Times in seconds; None where nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from cluster.cli.api import Answer


@dataclass(slots=True)
class RequestResult:
    """One online or semi-online request as its client saw it; `error` instead of an answer when it failed."""

    tenant: str
    prompt: str
    answer: Answer | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The answer's text is kept, its single token gaps are not."""
        if self.answer is None:
            return {"tenant": self.tenant, "prompt": self.prompt, "error": self.error}
        seen = {name: value for name, value in asdict(self.answer).items() if name != "itl_s"}
        return {
            "tenant": self.tenant,
            "prompt": self.prompt,
            "error": None,
            **seen,
            "itl_p50_s": percentile(self.answer.itl_s, 50),
            "itl_p95_s": percentile(self.answer.itl_s, 95),
        }


@dataclass(slots=True)
class Sample:
    """The cluster at one moment of the burst; `t_s` counts from the burst's start."""

    t_s: float
    wanted: int
    """Replicas that the autoscaler asks for."""
    starting: int
    ready: int
    waiting: int
    running: int
    waiting_by_tenant: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class ClassSummary:
    """All requests of one class."""

    request_class: str
    served_by: str
    requests: int
    errors: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    wall_s: float
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    itl_p50_s: float | None = None
    queue_wait_p50_s: float | None = None
    queue_wait_max_s: float | None = None

    @property
    def output_tokens_per_s(self) -> float | None:
        return self.output_tokens / self.wall_s if self.wall_s > 0 else None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "output_tokens_per_s": self.output_tokens_per_s}


@dataclass(slots=True)
class Results:
    """Everything, in the order of the file."""

    versions: dict[str, str]
    machine: dict[str, Any]
    config: str
    started_at: str
    reused: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    offline: dict[str, Any] = field(default_factory=dict)
    chat: list[RequestResult] = field(default_factory=list)
    chat_model: str = ""
    burst: list[RequestResult] = field(default_factory=list)
    burst_wall_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    scale_up_s: float | None = None
    """From the burst's start to the first sample in which more replicas are wanted; None: there were enough."""
    cold_start_s: dict[str, float] = field(default_factory=dict)
    classes: list[ClassSummary] = field(default_factory=list)
    tenants: list[dict[str, Any]] = field(default_factory=list)
    costs: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, dict[str, str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "versions": self.versions,
            "machine": self.machine,
            "config": self.config,
            "started_at": self.started_at,
            "reused": self.reused,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "classes": [item.as_json() for item in self.classes],
            "tenants": self.tenants,
            "offline": self.offline,
            "chat": {"model": self.chat_model, "turns": [turn.as_json() for turn in self.chat]},
            "burst": {"wall_s": self.burst_wall_s, "requests": [request.as_json() for request in self.burst]},
            "replicas_over_time": [asdict(sample) for sample in self.samples],
            "scale_up_s": self.scale_up_s,
            "cold_start_s": self.cold_start_s,
            "costs": self.costs,
            "answers": self.answers,
        }


def scale_up_s(samples: Sequence[Sample]) -> float | None:
    """When the autoscaler first wanted more replicas than at the start."""
    return next((sample.t_s for sample in samples if sample.wanted > samples[0].wanted), None)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Nearest rank: the smallest value that at least `percent` of them do not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def summarise(request_class: str, served_by: str, requests: Sequence[RequestResult], wall_s: float) -> ClassSummary:
    """Requests of one class; `wall_s` is the time that its rate is told over."""
    answers = [request.answer for request in requests if request.answer is not None]
    ttft_s = [answer.ttft_s for answer in answers if answer.ttft_s is not None]
    waits_s = [answer.queue_wait_s for answer in answers if answer.queue_wait_s is not None]
    return ClassSummary(
        request_class,
        served_by,
        requests=len(requests),
        errors=len(requests) - len(answers),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        output_tokens=sum(answer.output_tokens for answer in answers),
        wall_s=wall_s,
        ttft_p50_s=_median(ttft_s),
        ttft_p95_s=percentile(ttft_s, 95),
        itl_p50_s=_median([gap for answer in answers for gap in answer.itl_s]),
        queue_wait_p50_s=_median(waits_s),
        queue_wait_max_s=max(waits_s, default=None),
    )


def summarise_offline(report: dict[str, Any]) -> ClassSummary:
    """The offline job's report.json in the same columns."""
    tokens = report["run"]["tokens"]
    return ClassSummary(
        "offline",
        " + ".join(pool["name"] for pool in report["pools"]),
        requests=report["rows"],
        errors=report["rows"] - report["ok"],
        prompt_tokens=tokens["input"],
        cached_tokens=tokens["cached_input"],
        output_tokens=tokens["output"],
        wall_s=report["run"]["seconds"],
    )


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None
