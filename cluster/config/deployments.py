"""Role: the `deployments` and `pools` sections. Owns: which engine runs which model for whom, where, and how often.

Must not know: the engines' own argument schemas (`args` pass through, presets are `cluster.presets`), nor Ray.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cluster.config.base import Name, Section
from cluster.presets import Engine, PresetOption, merged
from cluster.vocabulary import RequestClass


class EngineConfig(Section):
    """The engine of a deployment, what is turned on it, and its own arguments, which are passed through unread."""

    kind: Literal["vllm", "sglang"]
    python: str | None = Field(
        default=None,
        description="Interpreter that has the engine (vLLM and SGLang pin different torch builds); null = this one.",
    )
    preset: PresetOption = Field(
        default=None,
        description="A named preset, or levers: {name: low-latency-h100, tensor_parallel: 2}. `args` win over it.",
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="Without leading dashes: true = bare flag, list = repeated values, null = leave out.",
    )
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables added for the engine.")
    start_timeout_s: float = Field(default=600, gt=0, description="How long the engine may take until it is healthy.")
    entrypoint: list[str] | None = Field(
        default=None, min_length=1, description="Command that replaces the engine's own; the arguments follow it."
    )
    start: Literal["cold", "fork", "auto"] = Field(
        default="cold",
        description="fork = from a process on each node that has imported the engine (on CPUs), which takes "
        "memory but saves most of a start; auto = fork where the node has the memory. Both fall back to cold.",
    )


class ResourcesConfig(Section):
    """What one replica reserves on its Ray node."""

    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    memory_gib: float | None = Field(default=None, gt=0, description="Host memory; null = not reserved.")
    custom: dict[str, float] = Field(default_factory=dict, description="Ray custom resources.")


class ReplicasConfig(Section):
    """How many replicas run, and how fast that number follows the load."""

    min: int = Field(default=1, ge=0, description="0 = scale to zero when idle.")
    max: int = Field(default=1, ge=1)
    idle_timeout_s: float = Field(
        default=60,
        ge=0,
        description="Longest time that an idle replica above `min` is kept: the last one so long, others often less.",
    )
    wait_target_s: float = Field(
        default=5,
        gt=0,
        description="Replicas are added until what waits, in the queue or inside engines, would wait no longer.",
    )
    drain_timeout_s: float = Field(
        default=600, ge=0, description="How long a replica that stops may finish its requests."
    )


class DeploymentConfig(Section):
    """A model on an engine for one or more request classes."""

    model: str = Field(description="A key of `models`.")
    serves: list[RequestClass] = Field(
        min_length=1,
        description="The first is its own class; the others borrow idle slots. [offline] = run inside batch jobs.",
        json_schema_extra={"uniqueItems": True},
    )
    engine: EngineConfig
    pool: Name = Field(default="default", description="A key of `pools`.")
    resources: ResourcesConfig = ResourcesConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    max_running: int = Field(default=16, ge=1, description="Requests that one replica runs at once (its slots).")

    @property
    def own_class(self) -> RequestClass:
        """The class that this deployment exists for; the other classes it serves only borrow idle slots."""
        return self.serves[0]

    @property
    def engine_args(self) -> dict[str, Any]:
        """What the engine gets besides what Tribes sets: the preset's levers, and `engine.args` over them."""
        return merged(self.engine.preset, self.engine.args, Engine(self.engine.kind, self.max_running))

    @property
    def in_process(self) -> bool:
        """Whether batch jobs load the engine into their own processes, so that nothing is served."""
        return self.serves == [RequestClass.OFFLINE]


class PoolConfig(Section):
    """A group of like nodes: how to find them in Ray, and what they cost."""

    labels: dict[str, str] = Field(default_factory=dict, description="Ray node labels that must match.")
    accelerator_type: str | None = Field(default=None, description="As Ray names it: L4, A100, H100, ...")
    usd_per_hour: float = Field(
        default=0,
        ge=0,
        description="Price of one GPU with its share of the node for one hour; of one replica where that has no GPU.",
    )

    def replica_usd_per_hour(self, resources: ResourcesConfig) -> float:
        """What a replica costs that holds these."""
        return self.usd_per_hour * (resources.gpus or 1.0)
