"""Role: from a preset to engine arguments. Owns: what wins over what, in one place for replicas, jobs and `explain`.

Order: the named preset, over it the levers written beside its name, over both `engine.args`. Must not know: any
particular lever or engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cluster.presets.batching import CHUNKED_PREFILL, MIXED_BATCHING
from cluster.presets.kernels import ATTENTION, CUDA_GRAPHS, PREFIX_CACHING
from cluster.presets.lever import Args, Lever
from cluster.presets.named import PRESETS
from cluster.presets.parallel import TENSOR_PARALLEL
from cluster.presets.precision import KV_CACHE, QUANTISATION
from cluster.presets.shape import Levers, PresetConfig
from cluster.presets.speculation import SPECULATION
from cluster.presets.spelling import option_name
from cluster.presets.target import Engine, Target

LEVERS: Final = (
    TENSOR_PARALLEL,
    QUANTISATION,
    KV_CACHE,
    SPECULATION,
    CHUNKED_PREFILL,
    MIXED_BATCHING,
    CUDA_GRAPHS,
    PREFIX_CACHING,
    ATTENTION,
)


@dataclass(frozen=True, slots=True)
class LeverArgument:
    """One argument that a lever means, and where it comes from."""

    option: str
    value: Any
    lever: str
    source: str
    why: str


def chosen(preset: PresetConfig) -> Levers:
    """All levers that hold: those written in the deployment, else the named preset's."""
    named = PRESETS[preset.name].levers if preset.name else Levers()
    return named.model_copy(update={key: getattr(preset, key) for key in _written(preset)})


def lever_arguments(preset: PresetConfig, engine: Engine) -> dict[str, LeverArgument]:
    """By option. No two levers mean the same option."""
    levers = chosen(preset)
    return {
        option: LeverArgument(option, value, lever.key, source_of(preset, lever.key), lever.why(levers))
        for lever in _set(levers)
        for option, value in lever.arguments(levers, engine).items()
    }


def merged(preset: PresetConfig | None, args: Mapping[str, Any], engine: Engine) -> Args:
    """What the engine gets. `args` win; `head.key` changes one key of a lever's object and leaves the others."""
    if preset is None:
        return dict(args)
    result: Args = {option: argument.value for option, argument in lever_arguments(preset, engine).items()}
    for name, value in args.items():
        option = option_name(name)
        head, _, key = option.partition(".")
        if key and isinstance(result.get(head), Mapping):
            result[head] = {**result[head], key: value}
        else:
            result[option] = value
    return result


def obstacles(preset: PresetConfig, args: Mapping[str, Any], target: Target) -> Iterator[tuple[str, str]]:
    """(lever, why it cannot be used and the cure) for each. One whose arguments `args` replace is not used at all."""
    levers = chosen(preset)
    replaced = {option_name(name) for name in args}
    for lever in _set(levers):
        options = lever.arguments(levers, target.engine).keys()
        if options and options <= replaced:
            continue
        if problem := lever.obstacle(levers, target):
            yield lever.key, problem


def cautions(preset: PresetConfig, args: Mapping[str, Any], target: Target) -> list[str]:
    """What to know before using these levers there."""
    levers = chosen(preset)
    replaced = {option_name(name) for name in args}
    said = [] if target.on_cpu or target.generation else [_unchecked(target)]
    if preset.name and target.generation and target.generation != (made_for := PRESETS[preset.name].made_for):
        said.append(f"{preset.name} was made for {made_for.title if made_for else 'CPUs'}, not {target.place}")
    for lever in _set(levers):
        options = lever.arguments(levers, target.engine).keys()
        caution = None if options and options <= replaced else lever.caution(levers, target)
        said += [caution] if caution else []
    return said


def silent(preset: PresetConfig, engine: Engine) -> Iterator[tuple[str, Any, str, str]]:
    """(lever, value, source, why) of levers that the engine need not be told about."""
    levers = chosen(preset)
    for lever in _set(levers):
        if not lever.arguments(levers, engine):
            yield lever.key, getattr(levers, lever.key), source_of(preset, lever.key), lever.why(levers)


def source_of(preset: PresetConfig, key: str) -> str:
    """Who set the lever."""
    return "engine.preset" if key in _written(preset) else f"preset {preset.name}"


def _written(preset: PresetConfig) -> set[str]:
    return {lever.key for lever in LEVERS if getattr(preset, lever.key) is not None}


def _set(levers: Levers) -> Iterator[Lever]:
    return (lever for lever in LEVERS if getattr(levers, lever.key) is not None)


def _unchecked(target: Target) -> str:
    if target.accelerator_type is None:
        return "the pool names no accelerator_type: nobody checked that its GPUs can do this"
    return f"accelerator_type {target.accelerator_type} is not known here: nobody checked that it can do this"
