"""From a configuration to the policies' own objects: for the dispatcher, and for the simulation of what it does.

Owns: that translation, as `cluster.scheduling` knows no configuration. Must not know: Ray, engines, time.
"""

from __future__ import annotations

from cluster.config import DeploymentConfig, TribesConfig
from cluster.scheduling import (
    ClassPolicy,
    QueuePolicy,
    RequestQueue,
    RoutingPolicy,
    ScalingBounds,
    ServiceWeights,
    TenantLimits,
    TenantPolicy,
)
from cluster.vocabulary import RequestClass


def request_queue(config: TribesConfig, model: str) -> RequestQueue:
    """The queue of one model, with the configured tenants."""
    queue = RequestQueue(class_policies(config, model), service_weights(config), policy=queue_policy(config))
    for name, tenant in config.tenants.items():
        queue.set_tenant(name, TenantPolicy(tenant.weight, TenantLimits(**tenant.limits.model_dump())), 0.0)
    return queue


def service_weights(config: TribesConfig) -> ServiceWeights:
    return ServiceWeights(config.scheduling.input_weight, config.scheduling.output_weight)


def class_policies(config: TribesConfig, model: str) -> dict[RequestClass, ClassPolicy]:
    """Of the classes that some served deployment of the model takes; the others are refused at once."""
    served = {c for d in config.serving().values() if d.model == model for c in d.serves}
    return {c: ClassPolicy(**p.model_dump()) for c, p in config.scheduling.classes.items() if c in served}


def queue_policy(config: TribesConfig) -> QueuePolicy:
    scheduling = config.scheduling
    return QueuePolicy(
        max_queued=scheduling.max_queued,
        raised_share=scheduling.raised_share,
        deadline_margin_s=scheduling.deadline_margin_s,
        fairness=scheduling.fairness,
        locality_quantum_tokens=scheduling.locality_quantum_tokens,
        routing=RoutingPolicy(stay_s=scheduling.routing.stay_s, load_factor=scheduling.routing.load_factor),
    )


def scaling_bounds(deployment: DeploymentConfig) -> ScalingBounds:
    return ScalingBounds(
        min_replicas=deployment.replicas.min,
        max_replicas=deployment.replicas.max,
        slots_per_replica=deployment.max_running,
        wait_target_s=deployment.replicas.wait_target_s,
        idle_timeout_s=deployment.replicas.idle_timeout_s,
    )
