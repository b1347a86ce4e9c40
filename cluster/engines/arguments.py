"""Role: turn the `engine.args` of a deployment into an engine's command line.

Owns: the spelling (names, repeated values, JSON). Must not know: any engine's schema. A name that an engine does not
have is the engine's to refuse, so new engine parameters work the day the engine has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cluster.presets.spelling import option_name


class EngineConfigError(ValueError):
    """The configuration asks for something that an adapter cannot pass on. The message names the key and the cure."""


def normalise(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments under their option names; a name given twice is an error, since one of the two would be lost."""
    named: dict[str, Any] = {}
    for name, value in args.items():
        option = option_name(name)
        if not option:
            raise EngineConfigError(f"engine.args: {name!r} is not an argument name; write it without leading dashes")
        if option in named:
            raise EngineConfigError(f"engine.args.{option}: given twice, with dashes and underscores; keep one of them")
        named[option] = value
    return named


def merge(args: Mapping[str, Any], defaults: Mapping[str, Any], owned: Mapping[str, str]) -> dict[str, Any]:
    """The deployment's arguments over the adapter's defaults; `owned` maps what only the adapter sets to the cure."""
    named = normalise(args)
    for option, cure in owned.items():
        if named.get(option) is not None:
            raise EngineConfigError(f"engine.args.{option}: this is set by Tribes; {cure}")
    return {**{option: value for option, value in defaults.items() if option not in named}, **named}


def to_argv(args: Mapping[str, Any], *, negated_flags: bool) -> list[str]:
    """The command line: true = flag, list = repeated values, mapping (also inside a list) = JSON, null = left out.

    `negated_flags`: whether false is `--no-NAME` (engines whose booleans all have that form) or the flag's absence.
    """
    argv: list[str] = []
    for option, value in args.items():
        if value is None or (value is False and not negated_flags):
            continue
        if isinstance(value, bool):
            argv.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list | tuple):
            argv += [f"--{option}", *(_text(item) for item in value)]
        elif (text := _text(value)).startswith("-"):
            argv.append(f"--{option}={text}")  # two words would read as two options
        else:
            argv += [f"--{option}", text]
    return argv


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | list | tuple | Mapping):
        return json.dumps(value)
    return str(value)
