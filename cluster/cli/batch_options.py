"""From the words after `tribes batch submit` to the command line of the job, and back from a recorded command.

Owns: which options are ours, and what becomes of paths (the job runs in another folder than the one of who submits it).
Must not know: what the options of `batch_jobs.generate` mean: those that are not ours are passed on unread.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

MODULE = "batch_jobs.generate"
PATH_OPTIONS = ("--input", "--output", "--config")
_AT_FILE = re.compile(r"(?P<before>(--[\w-]+=)?([A-Za-z_]\w*=)?)@(?P<file>.+)", re.DOTALL)


class PassThrough(TyperCommand):
    """A command that takes its own options wherever they stand and leaves all other words, in order, in `ctx.args`.

    Click's `ignore_unknown_options` is not enough: it looks for short options inside words that start with a dash, so
    that the text in `--system "- be concise"` would set `-c`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags: set[str] = set(ctx.help_option_names)
        valued: set[str] = set()
        for option in self.params:
            names = {*option.opts, *option.secondary_opts}
            (flags if getattr(option, "is_flag", False) else valued).update(names)
        ours, others = split_options(args, flags, valued)
        super().parse_args(ctx, ours)
        ctx.args = others
        return others


def split_options(words: Iterable[str], flags: Collection[str], valued: Collection[str]) -> tuple[list[str], list[str]]:
    """(words of known options, all others). What follows `--` is never ours."""
    ours: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if word == "--":
            others += rest
        elif word in flags or (equals and name.startswith("--") and name in valued):
            ours.append(word)
        elif word in valued:
            ours += [word, *islice(rest, 1)]
        else:
            others.append(word)
    return ours, others


def absolute(location: str, base: Path | None = None) -> str:
    """A path against a folder (None: the current one); a URL as it is."""
    return location if "://" in location else str((base or Path.cwd()) / Path(location).expanduser())


def anchored(word: str, base: Path | None = None) -> str:
    """The same for the file in @FILE, NAME=@FILE or --option=@FILE, when it exists: other text may hold an @ too."""
    found = _AT_FILE.fullmatch(word)
    if found is None or "://" in found["file"]:
        return word
    path = absolute(found["file"], base)
    try:
        return f"{found['before']}@{path}" if Path(path).is_file() else word
    except (OSError, ValueError):  # a text longer than any path, or with a zero byte
        return word


def job_argv(inputs: Sequence[str], output: str, config: Path, model: str | None, extra: Sequence[str]) -> list[str]:
    """The interpreter goes by its name: a local head puts ours first on PATH."""
    argv = [Path(sys.executable).name, "-m", MODULE, "--config", str(config)]
    for source in inputs:
        argv += ["--input", absolute(source)]
    argv += ["--output", absolute(output)]
    if model is not None:
        argv += ["--model", model]
    return [*argv, *map(anchored, extra)]


def option_values(argv: Sequence[str], name: str) -> list[str]:
    """What an option was given, each time."""
    values = []
    for index, word in enumerate(argv):
        if word == name and index + 1 < len(argv):
            values.append(argv[index + 1])
        elif word.startswith(f"{name}="):
            values.append(word.partition("=")[2])
    return values


def output_of(command: str) -> str | None:
    """The output of somebody's `python -m batch_jobs.generate ...`; None when it cannot be told from here."""
    try:
        values = option_values(shlex.split(command), "--output")
    except ValueError:
        return None
    return values[-1] if values and ("://" in values[-1] or Path(values[-1]).is_absolute()) else None


def resumed_argv(words: Sequence[str], base: Path, output: str, config: Path) -> list[str]:
    """The command of a driver that was started by hand in the folder `base`, from the words after its module name.

    FileNotFoundError names an input or configuration that is not there (any more, or from this machine).
    """
    argv = [Path(sys.executable).name, "-m", MODULE]
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in PATH_OPTIONS:
            argv.append(anchored(word, base))
            continue
        value = value if equals else next(rest, "")
        argv += [name, output if name == "--output" else _present(absolute(value, base))]
    return argv if option_values(argv, "--config") else [*argv, "--config", str(config)]


def _present(location: str) -> str:
    if "://" not in location and not any(mark in location for mark in "*?[") and not Path(location).exists():
        raise FileNotFoundError(location)
    return location
