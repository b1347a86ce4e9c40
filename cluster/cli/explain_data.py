"""What a deployment's engine is started with, and who said so. Owns: the origin of every argument.

Read off the very command line that a replica or a job would use, so it cannot differ from it. Starts nothing, fetches
no model. Must not know: the screen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cluster.cli.errors import UsageError
from cluster.engines import EngineConfigError, build_spec, launch, sglang, vllm
from cluster.engines.arguments import normalise
from cluster.presets import PRESETS, Engine, LeverArgument, Target, cautions, lever_arguments, silent

if TYPE_CHECKING:
    from cluster.config import DeploymentConfig, ModelConfig, TribesConfig

HOST, PORT, KEY, RUN_FOLDER, MODEL_FOLDER = "HOST", "PORT", "KEY", "RUN_FOLDER", "MODEL_FOLDER"
"""Placeholders for what differs at each start or on each node."""
_WHY: Final = {
    "model": "models.{model}.source",
    "model-path": "models.{model}.source",
    "revision": "models.{model}.source.revision",
    "max-model-len": "models.{model}.max_model_len",
    "context-length": "models.{model}.max_model_len",
    "served-model-name": "clients use the key of the model in `models`",
    "host": "the node's address, or loopback for a cluster on one machine",
    "port": "a free one, chosen at each start",
    "config": "holds the server's random key, which must not stand on a command line",
    "enable-prompt-tokens-details": "cached tokens in the usage, which the bill needs",
    "disable-uvicorn-access-log": "a line for every request would be the gateway's over again",
    "disable-log-stats": "the job reports its own figures",
    "enable-metrics": "the scheduler reads the load from /metrics",
    "enable-cache-report": "cached tokens in the usage, which the bill needs",
    "log-level": "at info, SGLang writes a line for every prefill and health check",
    "log-level-http": "a line for every request would be the gateway's over again",
}
_OF_MODEL: Final = ("model", "model-path", "revision", "max-model-len", "context-length")


@dataclass(frozen=True, slots=True)
class Row:
    """One argument, or one lever that needs none."""

    argument: str
    value: str
    source: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """One deployment."""

    deployment: str
    model: str
    engine: str
    place: str
    goal: str | None
    """Of the named preset."""
    command: list[str]
    """Empty for an engine inside a batch job, which is no command of its own."""
    arguments: list[Row] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    """Names alone: values may be secrets."""
    warnings: list[str] = field(default_factory=list)


def explain(config: TribesConfig, name: str) -> Explanation:
    """Raises UsageError where the adapter refuses what the configuration says."""
    deployment = config.deployments[name]
    try:
        program, words = _command(deployment, config.models[deployment.model])
    except EngineConfigError as error:
        raise UsageError(f"deployments.{name}: {error}") from error
    preset = deployment.engine.preset
    target = Target(
        Engine(deployment.engine.kind, deployment.max_running),
        deployment.resources.gpus,
        config.pools[deployment.pool].accelerator_type,
    )
    environment = sorted(deployment.engine.env)
    if deployment.engine.kind == "vllm" and not deployment.in_process:
        environment = sorted({*environment, f"{vllm.API_KEY_VARIABLE}={KEY}"})
    return Explanation(
        deployment=name,
        model=deployment.model,
        engine=f"{deployment.engine.kind} in the job" if deployment.in_process else deployment.engine.kind,
        place=target.place,
        goal=PRESETS[preset.name].goal if preset and preset.name else None,
        command=[] if deployment.in_process else [*program, *words],
        arguments=_rows(deployment, words),
        environment=environment,
        warnings=cautions(preset, deployment.engine.args, target) if preset else [],
    )


def _command(deployment: DeploymentConfig, model: ModelConfig) -> tuple[list[str], list[str]]:
    """(program, its arguments), with placeholders for what differs at each start."""
    source = model.source
    path = {"huggingface": getattr(source, "id", ""), "local": str(getattr(source, "path", ""))}.get(
        source.kind, MODEL_FOLDER
    )
    revision = getattr(source, "revision", None)
    if deployment.in_process:
        return [], vllm.job_argv(deployment.engine_args, deployment.model, path, model.max_model_len, revision)
    spec = build_spec(
        deployment, deployment.model, path, HOST, 0, KEY, max_model_len=model.max_model_len, revision=revision
    )
    module = vllm.MODULE if deployment.engine.kind == "vllm" else sglang.MODULE
    program = launch.command(deployment.engine, module)
    words = [word.replace(launch.RUN_DIR, RUN_FOLDER) for word in spec.argv[len(program) :]]
    words[words.index("--port") + 1] = PORT
    return program, words


def _rows(deployment: DeploymentConfig, words: Sequence[str]) -> list[Row]:
    """In the order of the command line; then levers without an argument, then arguments that were left out."""
    engine = Engine(deployment.engine.kind, deployment.max_running)
    preset = deployment.engine.preset
    levers = lever_arguments(preset, engine) if preset else {}
    given = normalise(deployment.engine.args)
    options = list(_options(words))
    rows = [
        Row(f"--{option}", " ".join(values), *_origin(option, given, levers, deployment)) for option, values in options
    ]
    for lever, value, source, why in silent(preset, engine) if preset else ():
        shown = getattr(value, "kind", str(value).lower() if isinstance(value, bool) else value)
        rows.append(Row(f"({lever}: {shown})", "", source, f"{why}; nothing to tell the engine"))
    said = {_bare(option, given, levers) for option, _ in options}
    for option, value in given.items():
        if option not in said and (value is None or value is False):
            why = _overrode(option, given, levers, deployment) or "the engine's own default holds"
            rows.append(Row(f"--{option}", "(left out)", "engine.args", why))
    return rows


def _options(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(option, values): a value never starts with a dash, since those are written `--option=value`."""
    option, values = "", list[str]()
    for word in words:
        if word.startswith("--"):
            if option:
                yield option, values
            option, has_value, value = word[2:].partition("=")
            values = [value] if has_value else []
        else:
            values.append(word)
    if option:
        yield option, values


def _origin(
    option: str, given: Mapping[str, Any], levers: Mapping[str, LeverArgument], deployment: DeploymentConfig
) -> tuple[str, str]:
    """(who said so, why)."""
    bare = _bare(option, given, levers)
    if bare in given:
        return "engine.args", _overrode(bare, given, levers, deployment) or "as the deployment says"
    if bare in levers:
        lever = levers[bare]
        edited = [name for name in given if name.startswith(f"{bare}.")]
        source = f"{lever.source}, engine.args" if edited else lever.source
        return source, f"{lever.lever}: {lever.why}"
    why = _WHY.get(bare, "set by Tribes").format(model=deployment.model)
    return ("model" if bare in _OF_MODEL else "Tribes"), why


def _overrode(
    option: str, given: Mapping[str, Any], levers: Mapping[str, LeverArgument], deployment: DeploymentConfig
) -> str | None:
    """What an argument of the deployment took the place of."""
    if option in levers:
        lever = levers[option]
        return f"overrides {lever.lever} of {lever.source}, which says {_shown(lever.value)}"
    defaults = vllm.DEFAULTS if deployment.engine.kind == "vllm" else sglang.DEFAULTS
    if deployment.in_process:
        defaults = vllm.JOB_DEFAULTS
    if option in defaults and defaults[option] != given[option]:
        return f"overrides what Tribes sets: {_shown(defaults[option])}"
    return None


def _bare(option: str, given: Mapping[str, Any], levers: Mapping[str, LeverArgument]) -> str:
    """The name without the `no-` that false puts before it."""
    known = option in given or option in levers or not option.startswith("no-")
    return option if known else option.removeprefix("no-")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
