"""What a job will run on, decided from the config alone.

Role: model and deployment choice, and the arguments that Ray and the engine get. Owns: the refusals a config can cause.
Must not know: input rows, the output folder; imports no Ray.

One pool for now: when several offline deployments have the model, the first in the config is used and a line says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_jobs.engines.base import EngineSettings, Sampling
from batch_jobs.errors import JobRefused
from cluster.config import ConfigError, DeploymentConfig, PoolConfig, TribesConfig, load_config

log = logging.getLogger(__name__)

_DEFAULT_MAX_NUM_SEQS = 256  # vLLM's own on most hardware; here it only sets how many rows wait before the engine
_LOCAL_SOURCES = ("package_gguf", "local", "s3")


@dataclass(frozen=True)
class Plan:
    """The choices of one job."""

    config: TribesConfig
    model: str
    deployment_name: str
    deployment: DeploymentConfig
    pool: PoolConfig

    @property
    def engine_args(self) -> dict[str, Any]:
        return {name.replace("-", "_"): value for name, value in self.deployment.engine.args.items()}

    @property
    def max_in_flight(self) -> int:
        """Rows inside one engine: twice what it runs at once, so that a finished row is replaced at once."""
        if self.config.offline.max_in_flight is not None:
            return self.config.offline.max_in_flight
        return 2 * int(self.engine_args.get("max_num_seqs") or _DEFAULT_MAX_NUM_SEQS)

    @property
    def max_engines(self) -> int:
        return self.deployment.replicas.max

    @property
    def min_engines(self) -> int:
        return max(1, self.deployment.replicas.min)

    def env(self) -> dict[str, str]:
        """Variables of the engine process. A model on disk must not wait for the hub to time out."""
        source = self.config.models[self.model].source
        offline = {"HF_HUB_OFFLINE": "1"} if source.kind in _LOCAL_SOURCES else {}
        return offline | self.deployment.engine.env

    def engine_settings(self, sampling: Sampling) -> EngineSettings:
        return EngineSettings(
            model=self.model,
            model_config=self.config.models[self.model].model_dump(mode="json"),
            paths=self.config.paths.model_dump(mode="json"),
            engine_args=self.engine_args,
            sampling=sampling,
        )

    def actor_options(self) -> dict[str, Any]:
        """Placement arguments of `map_batches`, only those that it names itself."""
        resources = self.deployment.resources
        options: dict[str, Any] = {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus or None,
            "memory": int(resources.memory_gib * 2**30) if resources.memory_gib else None,
            "resources": resources.custom or None,
            "label_selector": self.pool.labels or None,
            "accelerator_type": self.pool.accelerator_type,
            "runtime_env": {"env_vars": self.env()},
        }
        return {name: value for name, value in options.items() if value is not None}


def make_plan(config_path: str, model: str | None) -> Plan:
    """Raises JobRefused for a config that cannot run the job."""
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
    name, deployment = next(iter(offered[model].items()))
    if len(offered[model]) > 1:
        names = ", ".join(offered[model])
        log.info("several offline deployments have %s (%s); using the first: %s", model, names, name)
    _check_engine(name, deployment)
    return Plan(config, model, name, deployment, config.pools[deployment.pool])


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
