"""Role: the plan of a request. Owns: the order of work, and what is in the result. Must not know: files, screens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.config import ConfigError, PathsConfig, Problem
from cluster.hardware import ACCELERATORS, UnknownAcceleratorError, accelerator
from cluster.planning.calibration import Calibration
from cluster.planning.counsel import counsel
from cluster.planning.facts import ModelFacts
from cluster.planning.hosted import compare
from cluster.planning.kernels import KernelTimes, kernel_times
from cluster.planning.mixed import mixed_fleet
from cluster.planning.model_files import CONFIG_NAME, find_config, read_facts
from cluster.planning.performance import Performance
from cluster.planning.results import ClassPlan, Plan
from cluster.planning.search import Demand, Market, best_per_accelerator, candidates
from cluster.planning.workload import PlanRequest, WorkloadConfig, buckets_of, targets_of
from cluster.vocabulary import RequestClass


def plan(
    request: PlanRequest,
    calibrations: Sequence[Calibration] = (),
    paths: PathsConfig | None = None,
    *,
    use_kernels: bool = True,
) -> Plan:
    """For each class the cheapest deployment. Raises ConfigError or ModelFactsError where something is missing."""
    facts, folder = _model(request, paths or PathsConfig())
    measured = [item for item in calibrations if item.model == request.model.name]
    _check_prices(request, measured)
    kernels = kernel_times(folder) if use_kernels and folder else None
    performance = Performance(request.model.name, facts, measured, kernels)
    market = Market(
        request.usd_per_gpu_hour,
        request.stock,
        fp8_checkpoint=request.model.fp8 is not None,
        fp4_checkpoint=request.model.fp4 is not None,
    )
    classes = tuple(
        _class_plan(RequestClass(name), request.classes[name], performance, market, request)
        for name in RequestClass
        if name in request.classes
    )
    return Plan(
        request.model.name, facts.parameters, facts.active_parameters, classes, tuple(_notes(kernels, use_kernels))
    )


def _class_plan(
    request_class: RequestClass,
    workload: WorkloadConfig,
    performance: Performance,
    market: Market,
    request: PlanRequest,
) -> ClassPlan:
    buckets, rate = buckets_of(workload)
    longest = max(b.prompt_tokens + b.output_tokens for b in buckets)
    limit = request.model.max_model_len or performance.facts.max_context
    if longest > limit:
        path = ("classes", request_class.value)
        text = f"requests of {longest:.0f} tokens are longer than the model's {limit}; raise model.max_model_len"
        raise ConfigError([Problem(path, text)])
    peak = max(rate, workload.peak_requests_per_s or rate)
    targets = targets_of(workload)
    demand = Demand(request_class, buckets, rate, peak, targets, workload.cold_start_s)
    found = candidates(performance, demand, market)
    chosen = found[0] if found and found[0].feasible else None
    # What a burst costs depends on its floor, which the program does not know.
    mixable = len(buckets) > 1 and request_class != RequestClass.SEMI_ONLINE
    mixed = mixed_fleet(best_per_accelerator(found), demand, market) if mixable else None
    return ClassPlan(
        request_class,
        rate,
        peak,
        tuple(buckets),
        targets,
        chosen,
        tuple(found[1:] if chosen else found),
        mixed,
        compare(chosen, buckets, rate, request.hosted) if chosen else (),
        tuple(counsel(request_class, chosen, found, performance.facts, mixed)) if chosen else (),
    )


def _model(request: PlanRequest, paths: PathsConfig) -> tuple[ModelFacts, Path | None]:
    """The model's sizes, and the folder of its config.json."""
    path = request.model.config
    if path is None:
        if request.model.source is None:
            text = "give source or config, or name the configuration that has the model with -c"
            raise ConfigError([Problem(("model",), text)])
        path = find_config(request.model.name, request.model.source, paths)
    file = path / CONFIG_NAME if path.is_dir() else path
    return read_facts(file), file.parent if file.name == CONFIG_NAME else None


def _check_prices(request: PlanRequest, calibrations: Sequence[Calibration]) -> None:
    if not request.usd_per_gpu_hour:
        known = ", ".join(ACCELERATORS)
        text = f"name the accelerators to consider with their prices, such as {{H100: 3.2}}; known: {known}"
        raise ConfigError([Problem(("usd_per_gpu_hour",), text)])
    measured = {item.shape.accelerator for item in calibrations}
    problems = []
    for name in [*request.usd_per_gpu_hour, *request.stock]:
        try:
            if name not in measured:
                accelerator(name, measured)
        except UnknownAcceleratorError as error:
            problems.append(Problem(("usd_per_gpu_hour", name), f"{error}; others need a calibration of this model"))
    if problems:
        raise ConfigError(problems)


def _notes(kernels: KernelTimes | None, wanted: bool) -> list[str]:
    if kernels is not None or not wanted:
        return []
    return ['aiconfigurator-core is not used: with `pip install "tribes[plan]"`, times of its measured kernels count']
