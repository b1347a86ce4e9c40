"""What a job will run on, decided from the config alone.

Role: the model and the pools of a job, and the arguments that Ray and the engines get. Owns: the refusals a config can
cause. Must not know: input rows, the output folder; imports no Ray.

A pool of a job is one offline deployment of its model: nodes of one kind with an engine of their own (tensor
parallelism, quantisation, arguments). A job uses all of them at once unless some are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_jobs.engines.base import EngineSettings
from batch_jobs.errors import JobRefused
from cluster.config import ConfigError, DeploymentConfig, PoolConfig, TribesConfig, load_config

_DEFAULT_MAX_NUM_SEQS = 256  # vLLM's own on most hardware; only sizes the fleet, engines tell their real limit
_LOCAL_SOURCES = ("package_gguf", "local", "s3")


@dataclass(frozen=True)
class PoolPlan:
    """One pool of a job: where its engines run and what they get."""

    name: str
    """The deployment's name."""
    model: str
    deployment: DeploymentConfig
    pool: PoolConfig
    config: TribesConfig

    @property
    def engine_args(self) -> dict[str, Any]:
        return {name.replace("-", "_"): value for name, value in self.deployment.engine_args.items()}

    @property
    def rows_at_once(self) -> int:
        """Rows that one engine runs at once, as far as the config says."""
        return int(self.engine_args.get("max_num_seqs") or _DEFAULT_MAX_NUM_SEQS)

    @property
    def max_engines(self) -> int:
        return self.deployment.replicas.max

    @property
    def min_engines(self) -> int:
        return self.deployment.replicas.min

    @property
    def start_timeout_s(self) -> float:
        return self.deployment.engine.start_timeout_s

    def env(self) -> dict[str, str]:
        """Variables of the engine process. A model on disk must not wait for the hub to time out."""
        source = self.config.models[self.model].source
        offline = {"HF_HUB_OFFLINE": "1"} if source.kind in _LOCAL_SOURCES else {}
        return offline | self.deployment.engine.env

    def engine_settings(self) -> EngineSettings:
        return EngineSettings(
            model=self.model,
            model_config=self.config.models[self.model].model_dump(mode="json"),
            paths=self.config.paths.model_dump(mode="json"),
            engine_args=self.engine_args,
        )

    def resources(self) -> dict[str, float]:
        """What one engine reserves, in Ray's names."""
        needs = self.deployment.resources
        amounts = {"CPU": needs.cpus, "GPU": needs.gpus, **needs.custom}
        if needs.memory_gib:
            amounts["memory"] = needs.memory_gib * 2**30
        if self.pool.accelerator_type:
            amounts[f"accelerator_type:{self.pool.accelerator_type}"] = 0.001
        return {name: amount for name, amount in amounts.items() if amount}

    def actor_options(self) -> dict[str, Any]:
        """Placement arguments of a Ray actor, only those that it names itself."""
        needs = self.deployment.resources
        options: dict[str, Any] = {
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus or None,
            "memory": int(needs.memory_gib * 2**30) if needs.memory_gib else None,
            "resources": needs.custom or None,
            "label_selector": self.pool.labels or None,
            "accelerator_type": self.pool.accelerator_type,
            "runtime_env": {"env_vars": self.env()},
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """The choices of one job."""

    config: TribesConfig
    model: str
    pools: tuple[PoolPlan, ...]

    @property
    def max_engines(self) -> int:
        return sum(pool.max_engines for pool in self.pools)

    @property
    def prices(self) -> dict[str, float]:
        """USD per engine and hour, by pool."""
        return {pool.name: pool.pool.replica_usd_per_hour(pool.deployment.resources) for pool in self.pools}

    @property
    def adapters(self) -> tuple[str, ...]:
        """LoRA adapters that every pool offers: a row that names one must be able to run anywhere."""
        offered = [_adapter_names(pool.engine_args.get("lora_modules") or ()) for pool in self.pools]
        return tuple(name for name in offered[0] if all(name in names for names in offered))

    def as_json(self) -> dict[str, Any]:
        """For the report: what the job ran on."""
        return {
            "source": str(self.config.source_path),
            "pools": {
                pool.name: {
                    # Names alone: variables may hold tokens, and reports are passed around.
                    "deployment": pool.deployment.model_dump(mode="json", exclude={"engine": {"env"}})
                    | {"env": sorted(pool.deployment.engine.env)},
                    "pool": pool.pool.model_dump(mode="json"),
                }
                for pool in self.pools
            },
        }


def _adapter_names(modules: Iterable[Any]) -> list[str]:
    """vLLM takes `name=path` or an object with `name`; one or a list of them."""
    if isinstance(modules, str | Mapping):
        modules = [modules]
    return [module["name"] if isinstance(module, Mapping) else str(module).split("=", 1)[0] for module in modules]


def make_plan(config_path: str, model: str | None, pools: Sequence[str] = ()) -> Plan:
    """Raises JobRefused for a config that cannot run the job. `pools`: names of deployments; none = all that fit."""
    config = _load(config_path)
    offered = {name: config.offline_deployments(name) for name in config.models}
    model = model or _only_model(offered, config_path)
    if model not in config.models:
        raise JobRefused(f"unknown model {model!r}. {config_path} has: {', '.join(config.models) or 'none'}.")
    if not offered[model]:
        raise JobRefused(
            f"model {model!r} has no offline deployment. Add one to `deployments` in {config_path} with "
            f"`model: {model}` and `serves: [offline]`."
        )
    unknown = sorted(set(pools) - set(offered[model]))
    if unknown:
        raise JobRefused(
            f"no offline deployment {', '.join(unknown)} of model {model!r}. {config_path} has: "
            f"{', '.join(offered[model])}."
        )
    chosen = {name: deployment for name, deployment in offered[model].items() if not pools or name in pools}
    for name, deployment in chosen.items():
        _check_engine(name, deployment)
    return Plan(
        config,
        model,
        tuple(
            PoolPlan(name, model, deployment, config.pools[deployment.pool], config)
            for name, deployment in chosen.items()
        ),
    )


def _load(config_path: str) -> TribesConfig:
    if not Path(config_path).expanduser().is_file():
        raise JobRefused(f"config {config_path}: no such file. Name one with --config.")
    try:
        return load_config(config_path)
    except ConfigError as error:
        raise JobRefused(str(error)) from error


def _only_model(offered: Mapping[str, Mapping[str, DeploymentConfig]], config_path: str) -> str:
    models = [name for name, deployments in offered.items() if deployments]
    if len(models) == 1:
        return models[0]
    if not models:
        raise JobRefused(f"{config_path} has no offline deployment. Add one with `serves: [offline]`.")
    raise JobRefused(f"several models have offline deployments: {', '.join(models)}. Choose one with --model.")


def _check_engine(name: str, deployment: DeploymentConfig) -> None:
    """What the config's own checks leave open. (That an offline engine is vLLM they see to themselves.)"""
    if deployment.engine.python is not None:
        raise JobRefused(
            f"deployments.{name}.engine.python is set, but an offline engine runs inside the job's own interpreter. "
            "Remove it and submit the job from an environment that has vLLM."
        )
    if deployment.engine.entrypoint is not None:
        raise JobRefused(
            f"deployments.{name}.engine.entrypoint is set, but an offline engine is no command: it runs inside the "
            "job's own process. Remove it."
        )
