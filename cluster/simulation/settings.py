"""What a simulation is told beside the configuration: engines, cold starts, failures, SLOs, drawn loads.

Owns: that file's schema (YAML), and which engine a deployment has in the end. Must not know: how it is simulated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import Field, ValidationError

from cluster.config import DeploymentConfig
from cluster.config.base import Section
from cluster.config.errors import format_path
from cluster.presets.spelling import option_name
from cluster.simulation.engine import ENGINES, Engine
from cluster.simulation.step_model import StepModel
from cluster.simulation.workload import Lengths, TenantLoad
from cluster.vocabulary import RequestClass

ANY: Final = "*"
_LIMITS: Final[dict[str, dict[str, str]]] = {
    "max_num_seqs": {"vllm": "max-num-seqs", "sglang": "max-running-requests"},
    "max_num_batched_tokens": {"vllm": "max-num-batched-tokens", "sglang": "chunked-prefill-size"},
    "kv_tokens": {"sglang": "max-total-tokens"},
}
"""Limits of an engine that its own arguments may name."""


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the key and the cure."""


class StepSettings(Section):
    """Seconds of a step: see `step_model`."""

    base_s: float = Field(ge=0)
    prefill_s_a_token: float = Field(ge=0)
    decode_s_a_request: float = Field(default=0, ge=0)
    decode_s_a_kv_token: float = Field(default=0, ge=0)


class Rung(Section):
    """One way to start a replica, and for how many at a time it is there (null = any number)."""

    name: str
    seconds: float = Field(ge=0)
    standby: int | None = Field(default=None, ge=1)


class EngineSettings(Section):
    """What a deployment's engine is; null = as the profile or the engine's arguments say."""

    profile: str | None = Field(default=None, description="A built-in engine, or a file of `tribes calibrate`.")
    step: StepSettings | None = None
    kv_tokens: int | None = Field(default=None, ge=1)
    block_tokens: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    prefix_caching: bool | None = None
    cold_starts: list[Rung] = Field(
        default=[Rung(name="cold", seconds=60)], min_length=1, description="Best first; the last has no standby."
    )
    mean_time_to_failure_s: float | None = Field(default=None, gt=0, description="Of one replica; null = never.")


class SloSettings(Section):
    """A request is good when it meets all of these."""

    ttft_s: float | None = Field(default=None, gt=0)
    tpot_s: float | None = Field(default=None, gt=0)
    e2e_s: float | None = Field(default=None, gt=0)


class LengthSettings(Section):
    mean: float = Field(ge=1)
    cv: float = Field(default=1, ge=0)
    most: int = Field(default=32_768, ge=1)


class LoadSettings(Section):
    """A drawn load: see `workload.synthetic`."""

    tenant: str = "default"
    requests_per_s: float = Field(gt=0)
    prompt_tokens: LengthSettings
    output_tokens: LengthSettings
    cv: float = Field(default=1, ge=0, description="Of the gaps: 1 = Poisson, more = bursts.")
    request_class: RequestClass = RequestClass.ONLINE
    from_s: float = Field(default=0, ge=0)
    until_s: float | None = Field(default=None, gt=0)

    def load(self) -> TenantLoad:
        given = self.model_dump(exclude={"prompt_tokens", "output_tokens", "until_s"})
        return TenantLoad(
            **given,
            prompt_tokens=Lengths(**self.prompt_tokens.model_dump()),
            output_tokens=Lengths(**self.output_tokens.model_dump()),
            until_s=math.inf if self.until_s is None else self.until_s,
        )


DEFAULT_SLO: Final = {
    RequestClass.ONLINE: SloSettings(ttft_s=2, tpot_s=0.1),
    RequestClass.SEMI_ONLINE: SloSettings(ttft_s=30, tpot_s=0.2),
    RequestClass.OFFLINE: SloSettings(e2e_s=86_400),
}


class Settings(Section):
    """One simulation."""

    engines: dict[str, EngineSettings] = Field(default={}, description="By deployment; * = all that are not named.")
    slo: dict[RequestClass, SloSettings] = Field(default={}, description="Classes left out keep their defaults.")
    loads: list[LoadSettings] = Field(default=[], description="Drawn loads; none where a trace is given.")
    max_output_tokens: int = Field(
        default=1024, ge=1, description="What requests say they may produce at most: the queue never knows the length."
    )

    def slo_of(self, request_class: RequestClass) -> SloSettings:
        return self.slo.get(request_class, DEFAULT_SLO[request_class])

    def of(self, deployment: str) -> EngineSettings:
        found = self.engines.get(deployment) or self.engines.get(ANY)
        if found is None:
            raise SettingsError(
                f"nothing says how fast the engine of deployment {deployment!r} is: name one of {', '.join(ENGINES)} "
                f"with --engine, or give `engines: {{{deployment}: {{step: ...}}}}` in --settings"
            )
        return found

    def engine(self, deployment: str, config: DeploymentConfig, block_tokens: int | None) -> Engine:
        """Given values win over the engine's arguments, those over the profile. `block_tokens`: of the trace's
        hashes, which the cache must count in."""
        given = self.of(deployment)
        if given.profile is None and given.step is None:
            raise SettingsError(f"engines.{deployment} needs a profile ({', '.join(ENGINES)}) or a step model")
        try:
            engine = _profile(given.profile) if given.profile else Engine(StepModel(1.0, 0.0, 0.0, 0.0))
            if given.step is not None:
                engine = replace(engine, step=StepModel(**given.step.model_dump()))
        except ValueError as error:
            raise SettingsError(f"engines.{deployment}: {error}") from error
        limits = _limits(config)
        for name in ("kv_tokens", "block_tokens", "max_num_seqs", "max_num_batched_tokens", "prefix_caching"):
            if getattr(given, name) is not None:
                limits[name] = getattr(given, name)
        if block_tokens is not None:
            limits["block_tokens"] = block_tokens
        return replace(engine, **limits)


def _profile(name: str) -> Engine:
    """Built in, or measured here: a file of `tribes calibrate`."""
    if name in ENGINES:
        return ENGINES[name]
    if not name.endswith(".json"):
        raise ValueError(f"there is no engine {name!r}; the engines are {', '.join(ENGINES)}, or name a calibration")
    try:
        data = json.loads(Path(name).read_text(encoding="utf-8"))
        engine = Engine(StepModel(**data["step"]))
        return replace(engine, kv_tokens=int(data["kv_tokens"])) if data.get("kv_tokens") else engine
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a calibration ({error}); `tribes calibrate` makes one") from error


def _limits(config: DeploymentConfig) -> dict[str, Any]:
    """What the engine's own arguments say."""
    args = {option_name(name): value for name, value in config.engine_args.items()}
    named = {key: options.get(config.engine.kind) for key, options in _LIMITS.items()}
    found = {key: int(args[option]) for key, option in named.items() if option and args.get(option) is not None}
    return {key: value for key, value in found.items() if value > 0}  # -1 = no limit, or the engine chooses


def load_settings(path: Path, deployments: Collection[str]) -> Settings:
    """Read and check a file; engines of other `deployments` are refused."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        settings = Settings.model_validate(data)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}; check the path given as --settings") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        problems = [f"{format_path(problem['loc'])}: {problem['msg']}" for problem in error.errors()]
        raise SettingsError(f"{path}: " + "; ".join(problems)) from error
    if unknown := set(settings.engines) - set(deployments) - {ANY}:
        raise SettingsError(
            f"{path}: engines.{min(unknown)} is no deployment; the deployments are {', '.join(deployments)}"
        )
    return settings
