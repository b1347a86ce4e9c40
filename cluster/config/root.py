"""Role: the whole configuration. Owns: TribesConfig, its look-ups, and its JSON schema.

Must not know: YAML or files (load.py), nor who uses it. A TribesConfig is always consistent and its paths are absolute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from cluster.config.base import ModelName, Name, Section
from cluster.config.checks import cross_problems
from cluster.config.deployments import DeploymentConfig, PoolConfig
from cluster.config.errors import ConfigError
from cluster.config.models import ModelConfig
from cluster.config.regions import RegionConfig
from cluster.config.resolve import (
    resolve_deployment,
    resolve_files,
    resolve_model,
    resolve_paths,
    resolve_ray,
    resolve_region,
    resolve_state,
    resolve_upstream,
)
from cluster.config.scheduling import SchedulingConfig
from cluster.config.services import (
    BatchesConfig,
    FilesConfig,
    GatewayConfig,
    OfflineConfig,
    PathsConfig,
    RayConfig,
    StateConfig,
)
from cluster.config.tenants import TenantConfig
from cluster.config.upstreams import UpstreamConfig
from cluster.vocabulary import RequestClass


class TribesConfig(Section):
    """One Tribes cluster: what it serves, for whom, on which machines."""

    name: Name = "tribes"
    models: dict[ModelName, ModelConfig] = Field(min_length=1, description="By the model id that clients say.")
    deployments: dict[Name, DeploymentConfig] = Field(min_length=1, description="By deployment name.")
    pools: dict[Name, PoolConfig] = Field(default={"default": PoolConfig()}, min_length=1, description="By pool name.")
    tenants: dict[Name, TenantConfig] = Field(
        default={"default": TenantConfig()}, min_length=1, description="By tenant name."
    )
    scheduling: SchedulingConfig = SchedulingConfig()
    gateway: GatewayConfig = GatewayConfig()
    state: StateConfig = StateConfig()
    files: FilesConfig = FilesConfig()
    batches: BatchesConfig = BatchesConfig()
    paths: PathsConfig = PathsConfig()
    ray: RayConfig = RayConfig()
    offline: OfflineConfig = OfflineConfig()
    upstreams: dict[Name, UpstreamConfig] = Field(
        default={}, description="By upstream name; those that have a model are tried in this order."
    )
    region: RegionConfig | None = Field(default=None, description="null = this cluster is the only one.")
    # Where it was read from: set by load_config, carried in dumps, and never part of a file.
    source_path: SkipJsonSchema[Path | None] = None

    @model_validator(mode="after")
    def _check_and_resolve(self) -> Self:
        # exclude_unset: the checks see what was written, as they do in a file whose shape is wrong (see load.py).
        if problems := cross_problems(self.model_dump(mode="json", exclude_unset=True)):
            raise ConfigError(problems)
        base = self.source_path.parent if self.source_path else Path.cwd()
        paths = resolve_paths(self.paths, base)
        resolved = {
            "paths": paths,
            "state": resolve_state(self.state, paths.data, base),
            "files": resolve_files(self.files, paths.data, base),
            "ray": resolve_ray(self.ray, base),
            "region": resolve_region(self.region, base),
            "models": {name: resolve_model(model, base) for name, model in self.models.items()},
            "deployments": {name: resolve_deployment(item, base) for name, item in self.deployments.items()},
            "upstreams": {name: resolve_upstream(item, base) for name, item in self.upstreams.items()},
        }
        for field, value in resolved.items():
            object.__setattr__(self, field, value)  # still being built: frozen holds for everyone after this
        return self

    def deployments_of(self, model: str) -> dict[str, DeploymentConfig]:
        """Every deployment of the model, offline ones included."""
        return {name: item for name, item in self.deployments.items() if item.model == model}

    def serving(self) -> dict[str, DeploymentConfig]:
        """The deployments that run an engine server behind the gateway."""
        return {name: item for name, item in self.deployments.items() if not item.in_process}

    def looks_at_prefixes(self, model: str, request_class: RequestClass) -> bool:
        """Whether it matters what prompts begin with: not where there is one replica to go to, unless for the order."""
        if self.scheduling.fairness == "dlpm":
            return True
        able = (d for d in self.serving().values() if d.model == model and request_class in d.serves)
        return self.scheduling.routing.prefix and sum(d.replicas.max for d in able) > 1

    def served_models(self) -> list[str]:
        """Every model id that clients of the gateway may say."""
        deployed = {item.model for item in self.serving().values()}
        rented = {model: None for item in self.upstreams.values() for model in item.models}
        return [name for name in self.models if name in deployed] + [name for name in rented if name not in deployed]

    def upstreams_of(self, model: str) -> dict[str, UpstreamConfig]:
        """Who else may serve the model, in the order in which they are tried."""
        return {name: item for name, item in self.upstreams.items() if model in item.models}

    def only_upstream(self, model: str) -> bool:
        """No deployment behind the gateway serves the model, and an upstream does."""
        return bool(self.upstreams_of(model)) and all(item.model != model for item in self.serving().values())

    def guests_of(self, name: str) -> tuple[RequestClass, ...]:
        """Classes that live with this deployment: no served one of its model is theirs, and it is the first to take
        them. Their work must wake it where it is scaled to zero."""
        others = [item for item in self.deployments_of(self.deployments[name].model).values() if not item.in_process]
        homeless = set(self.deployments[name].serves) - {item.own_class for item in others}
        takers = {c: next(item for item in others if c in item.serves) for c in homeless}
        return tuple(sorted(c for c, item in takers.items() if item is self.deployments[name]))

    def offline_deployments(self, model: str) -> dict[str, DeploymentConfig]:
        """The deployments of the model that batch jobs run in their own processes."""
        return {name: item for name, item in self.deployments_of(model).items() if item.in_process}


def config_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors and other tools."""
    schema = TribesConfig.model_json_schema()
    for section in schema["properties"].values():
        if "patternProperties" in section:  # pydantic leaves names that fit no pattern open
            section["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
