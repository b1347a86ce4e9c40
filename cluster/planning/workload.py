"""Role: what is to be planned for: a model, prices, and for each class its rate, lengths and targets. Owns: the file.

Must not know: hardware, how anything is computed. Missing parts (where the model is, prices of accelerators and of
hosted APIs) can come from a configuration of a cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from cluster.config import ConfigError, ModelSource, Problem, Section, TokenPrices, TribesConfig
from cluster.config.base import ModelName, Name
from cluster.config.explain import explain
from cluster.config.source import parse
from cluster.planning.load import Bucket, Targets
from cluster.planning.trace import read_trace
from cluster.vocabulary import RequestClass

Rate = Annotated[float, Field(gt=0)]
Usd = Annotated[float, Field(ge=0)]


class SloConfig(Section):
    """What a class promises; null = nothing, and then only throughput counts."""

    ttft_s: float | None = Field(default=None, gt=0, description="Seconds until the first token.")
    itl_s: float | None = Field(default=None, gt=0, description="Mean seconds between tokens of an answer.")
    attainment: float = Field(default=0.95, gt=0, lt=1, description="Share of first tokens that must come in time.")


class LengthConfig(Section):
    """Requests of about one size."""

    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=1)
    share: float = Field(default=1, gt=0, description="Weight among the others.")


class WorkloadConfig(Section):
    """The requests of one class."""

    requests_per_s: Rate | None = Field(default=None, description="On average; null = the trace's own rate.")
    peak_requests_per_s: Rate | None = Field(default=None, description="While it lasts; null = no peaks.")
    lengths: list[LengthConfig] | None = Field(default=None, min_length=1)
    trace: Path | None = Field(
        default=None, description="CSV or JSONL with lengths, and arrivals; relative to this file."
    )
    cached_share: float = Field(default=0, ge=0, lt=1, description="Of prompt tokens, found in prefix caches.")
    slo: SloConfig = SloConfig()
    cold_start_s: float = Field(default=60, ge=0, description="semi_online: until a new replica serves.")

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.lengths is None) == (self.trace is None):
            raise ValueError("give one of the two: lengths, or trace")
        if self.trace is None and self.requests_per_s is None:
            raise ValueError("give requests_per_s, as there is no trace that tells it")
        if self.peak_requests_per_s and self.requests_per_s and self.peak_requests_per_s < self.requests_per_s:
            raise ValueError("peak_requests_per_s is below requests_per_s; raise it, or leave it out")
        return self


class PlannedModelConfig(Section):
    """The model, and where else it can be had."""

    name: ModelName
    source: ModelSource | None = Field(default=None, description="null = as the configuration (-c) has it.")
    config: Path | None = Field(default=None, description="Its config.json or folder; relative to this file.")
    max_model_len: int | None = Field(default=None, ge=1, description="null = the model's own.")
    fp8: ModelSource | None = Field(default=None, description="The same in FP8; null = quantised while loading.")
    fp4: ModelSource | None = Field(default=None, description="The same in FP4; null = FP4 is not considered.")


class PlanRequest(Section):
    """One model on the cheapest hardware for each class."""

    model: PlannedModelConfig
    classes: dict[RequestClass, WorkloadConfig] = Field(min_length=1)
    usd_per_gpu_hour: dict[str, Usd] = Field(default={}, description="By accelerator; those named are considered.")
    stock: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default={}, description="GPUs there are; absent = any number."
    )
    hosted: dict[Name, TokenPrices] = Field(default={}, description="USD per Mtok of APIs that have the model.")

    @model_validator(mode="after")
    def _online_has_targets(self) -> Self:
        online = self.classes.get(RequestClass.ONLINE)
        if online and online.slo.ttft_s is None and online.slo.itl_s is None:
            path = ("classes", RequestClass.ONLINE.value, "slo")
            raise ConfigError([Problem(path, "online needs a target: give slo.ttft_s, slo.itl_s, or both")])
        return self


def load_request(path: Path) -> PlanRequest:
    """Read a workload file. Raises ConfigError with every problem in it; relative paths become absolute."""
    try:
        document = parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem((), f"cannot be read: {error}")], path) from error
    if document.problems or not isinstance(document.data, dict):
        problems = list(document.problems) or [Problem((), "is not a mapping of keys; it needs model and classes")]
        raise ConfigError(problems, path)
    try:
        request = PlanRequest.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(explain(error, PlanRequest), path) from None
    return _absolute(request, path.absolute().parent)


def _absolute(request: PlanRequest, base: Path) -> PlanRequest:
    config = request.model.config
    model = request.model.model_copy(update={"config": base / config.expanduser()}) if config else request.model
    classes = {
        name: item.model_copy(update={"trace": base / item.trace.expanduser()}) if item.trace else item
        for name, item in request.classes.items()
    }
    return request.model_copy(update={"model": model, "classes": classes})


def completed(request: PlanRequest, config: TribesConfig | None) -> PlanRequest:
    """With what the configuration of a cluster knows and the request leaves open."""
    if config is None:
        return request
    model = request.model
    update: dict[str, object] = {}
    if model.source is None and model.name in config.models:
        known = config.models[model.name]
        length = model.max_model_len or known.max_model_len
        update["model"] = model.model_copy(update={"source": known.source, "max_model_len": length})
    if not request.usd_per_gpu_hour:
        update["usd_per_gpu_hour"] = _prices(config)
    rented = {name: item.usd_per_mtok for name, item in config.upstreams_of(model.name).items()}
    update["hosted"] = {**rented, **request.hosted}
    return request.model_copy(update=update)


def _prices(config: TribesConfig) -> dict[str, float]:
    """Per GPU; the least where several pools have one."""
    prices: dict[str, float] = {}
    for pool in config.pools.values():
        if pool.accelerator_type and pool.usd_per_hour:
            price = pool.usd_per_hour
            prices[pool.accelerator_type] = min(price, prices.get(pool.accelerator_type, price))
    return prices


def buckets_of(workload: WorkloadConfig) -> tuple[list[Bucket], float]:
    """The sizes of its requests with shares that add up to 1, and the mean rate."""
    if workload.trace is not None:
        sizes, traced_rate = read_trace(workload.trace)
        rate = workload.requests_per_s or traced_rate
        if not rate:
            raise ConfigError([Problem(("requests_per_s",), f"{workload.trace} tells no arrivals; give a rate")])
    else:
        sizes = [(item.share, float(item.prompt_tokens), float(item.output_tokens)) for item in workload.lengths or ()]
        rate = workload.requests_per_s or 0.0
    total = sum(share for share, _, _ in sizes)
    cached = workload.cached_share
    return [Bucket(share / total, prompt, output, cached * prompt) for share, prompt, output in sizes], rate


def targets_of(workload: WorkloadConfig) -> Targets:
    return Targets(workload.slo.ttft_s, workload.slo.itl_s, workload.slo.attainment)
