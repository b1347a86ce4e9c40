"""A configuration and a load in, a result out.

Owns: which requests go to which model, and the assembly of the result. Must not know: how anything is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from cluster.config import TribesConfig
from cluster.policies import service_weights
from cluster.simulation import summary
from cluster.simulation.cluster_run import ClusterRun
from cluster.simulation.engine import Engine
from cluster.simulation.fleet import no_garbage_collection
from cluster.simulation.pool import ReplicaPool
from cluster.simulation.request import Request
from cluster.simulation.results import SimulationResult
from cluster.simulation.settings import Settings, SettingsError
from cluster.simulation.workload import Trace, draw

TOO_LONG = "context_length_exceeded"


def drawn(settings: Settings, seconds: float, seed: int) -> Trace:
    """The settings' own loads."""
    if not settings.loads:
        raise SettingsError("nothing to simulate: give --trace FILE, or `loads` in --settings")
    try:
        return draw([load.load() for load in settings.loads], seconds, seed)
    except ValueError as error:
        raise SettingsError(f"loads: {error}") from error


def repeated(trace: Trace, seconds: float) -> Trace:
    """The trace again and again until `seconds` are full, or cut there. Rounds share no prompts."""
    if trace.seconds >= seconds:
        return Trace([r for r in trace.requests if r.arrived_s < seconds], trace.block_tokens)
    # A round lasts as long as the trace and one mean gap more.
    period_s = trace.seconds * (1 + 1 / max(1, len(trace.requests) - 1)) or 1.0
    most = 1 + max((block for r in trace.requests for block in r.blocks), default=0)
    requests: list[Request] = []
    turn = 0
    while turn * period_s < seconds:
        for r in trace.requests:
            at_s = r.arrived_s + turn * period_s
            if at_s >= seconds:
                break
            blocks = tuple(block + turn * most for block in r.blocks)
            session = f"{r.session}.{turn}" if turn and r.session is not None else r.session
            number, tenant, request_class = len(requests), r.tenant, r.request_class
            requests.append(
                Request(number, at_s, r.prompt_tokens, r.output_tokens, tenant, request_class, blocks, session)
            )
        turn += 1
    return Trace(requests, trace.block_tokens)


def simulate(
    config: TribesConfig,
    settings: Settings,
    trace: Trace,
    *,
    model: str | None = None,
    seed: int = 0,
    name: str = "",
    progress: Callable[[int], None] | None = None,
) -> SimulationResult:
    """The live policies on simulated replicas. The trace's requests are copied, so that it can be simulated again.
    `progress` gets the number of requests that have ended."""
    model = _model(config, model)
    pools = _pools(config, settings, model, trace.block_tokens)
    requests = [_copy(request) for request in trace.requests]
    longest = min(pool.engine.blocks * pool.engine.block_tokens for pool in pools.values())
    for request in requests:
        if request.prompt_tokens + request.output_tokens > longest:
            request.refusal = TOO_LONG
    able = [request for request in requests if request.refusal is None]
    run = ClusterRun(config, model, able, pools, settings.max_output_tokens, seed, progress)
    with no_garbage_collection():
        run.run()
    return _result(config, settings, requests, run, name or config.name)


def _model(config: TribesConfig, model: str | None) -> str:
    deployed = sorted({d.model for d in config.serving().values()})
    if model is None and len(deployed) == 1:
        return deployed[0]
    if model not in deployed:
        what = "several models are deployed" if model is None else f"no deployment serves {model!r}"
        raise SettingsError(f"{what}: name one of {', '.join(deployed)} with --model")
    return model


def _pools(config: TribesConfig, settings: Settings, model: str, block_tokens: int | None) -> dict[str, ReplicaPool]:
    return {
        name: ReplicaPool(
            name,
            deployment,
            settings.engine(name, deployment, block_tokens),
            settings.of(name),
            config.pools[deployment.pool].replica_usd_per_hour(deployment.resources),
        )
        for name, deployment in config.serving().items()
        if deployment.model == model
    }


def _copy(r: Request) -> Request:
    return Request(
        r.number,
        r.arrived_s,
        r.prompt_tokens,
        r.output_tokens,
        r.tenant,
        r.request_class,
        r.blocks,
        r.session,
        r.priority,
    )


def _result(
    config: TribesConfig, settings: Settings, requests: Sequence[Request], run: ClusterRun, name: str
) -> SimulationResult:
    end_s = run.end_s
    weights = {tenant: item.weight for tenant, item in config.tenants.items()}
    by_class = summary.classes(requests)
    deployments = {pool.name: summary.deployment(pool, end_s) for pool in run.pools.values()}
    usd = sum(d.usd for d in deployments.values())
    tokens = sum(r.prompt_tokens + r.output_tokens for r in requests if r.finished)
    unfair = {c: summary.unfairness(members, service_weights(config), weights) for c, members in by_class.items()}
    return SimulationResult(
        name=name,
        seconds=end_s,
        requests=len(requests),
        engines={pool.name: _described(pool.engine) for pool in run.pools.values()},
        classes={c.value: summary.group(c.value, m, settings.slo_of(c), end_s) for c, m in by_class.items()},
        tenants={
            c.value: {
                tenant: summary.group(tenant, own, settings.slo_of(c), end_s)
                for tenant, own in summary.tenants(members).items()
            }
            for c, members in by_class.items()
        },
        fairness={c.value: found for c, found in unfair.items() if found is not None},
        deployments=deployments,
        rates=summary.rates(requests, settings, end_s),
        usd=usd,
        usd_per_mtok=usd / tokens * 1e6 if tokens else None,
    )


def _described(engine: Engine) -> dict[str, float]:
    described = asdict(engine)
    return {**described.pop("step"), **described}
