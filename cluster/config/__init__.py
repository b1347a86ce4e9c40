"""The one typed configuration file: sections, loading, errors, JSON schema.

Role: everything an operator can set, checked before anything starts. Owns: the schema and its messages.
Must not know: Ray, engines, HTTP. Importing this package costs well under half a second.
"""

from cluster.config.base import Section
from cluster.config.deployments import DeploymentConfig, EngineConfig, PoolConfig, ReplicasConfig, ResourcesConfig
from cluster.config.errors import ConfigError, Problem, unknown_reference
from cluster.config.load import load_config
from cluster.config.models import S3, HuggingFace, LocalFolder, ModelConfig, ModelSource, PackageGGUF
from cluster.config.regions import PeerConfig, RegionConfig
from cluster.config.root import TribesConfig, config_schema
from cluster.config.scheduling import ClassConfig, SchedulingConfig
from cluster.config.services import (
    CacheSalt,
    GatewayConfig,
    OfflineConfig,
    OwnDoorConfig,
    PathsConfig,
    RayConfig,
    StateConfig,
)
from cluster.config.tenants import LimitsConfig, TenantConfig
from cluster.config.upstreams import (
    ANY_UPSTREAM,
    SecretRef,
    TenantUpstreamConfig,
    TokenPrices,
    UpstreamConfig,
    UpstreamUse,
)

__all__ = [
    "ANY_UPSTREAM",
    "S3",
    "CacheSalt",
    "ClassConfig",
    "ConfigError",
    "DeploymentConfig",
    "EngineConfig",
    "GatewayConfig",
    "HuggingFace",
    "LimitsConfig",
    "LocalFolder",
    "ModelConfig",
    "ModelSource",
    "OfflineConfig",
    "OwnDoorConfig",
    "PackageGGUF",
    "PathsConfig",
    "PeerConfig",
    "PoolConfig",
    "Problem",
    "RayConfig",
    "RegionConfig",
    "ReplicasConfig",
    "ResourcesConfig",
    "SchedulingConfig",
    "SecretRef",
    "Section",
    "StateConfig",
    "TenantConfig",
    "TenantUpstreamConfig",
    "TokenPrices",
    "TribesConfig",
    "UpstreamConfig",
    "UpstreamUse",
    "config_schema",
    "load_config",
    "unknown_reference",
]
