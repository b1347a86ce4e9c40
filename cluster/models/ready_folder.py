"""Role: makes a model folder appear whole or not at all, once, however many processes ask for it at the same time.

Owns: the file lock, the unfinished folder and its rename. The lock is the kernel's (flock): it ends with its holder, so
a killed builder blocks nobody and the next one starts from an empty folder. Must not know: what fills the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

GIB = 1024**3


class ModelError(Exception):
    """A model cannot be made ready on this node; the message says what is wrong and what to do."""


def folder_name(model_name: str, fingerprint: str) -> str:
    """`<model>-<fingerprint>`, with characters of a model id that mean something in a path replaced."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model_name).strip('.-') or 'model'}-{fingerprint[:16]}"


def folder_problem(folder: Path) -> str | None:
    """What keeps `folder` from being a Hugging Face model, in words that follow its name; None if nothing seen."""
    if not folder.is_dir():
        return "is not a folder on this node" if folder.exists() else "does not exist on this node"
    if not (folder / "config.json").is_file():
        return "has no config.json"
    return None


def ready_folder(
    target: Path, fill: Callable[[Path], None], needed_bytes: int, progress: Callable[[str], None]
) -> Path:
    """`target`, filled by `fill(empty folder)` unless it is there already. What `fill` raises leaves nothing behind."""
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(target.parent / f".{target.name}.lock", progress):
            if not target.is_dir():
                fill_and_rename(target, fill, needed_bytes)
    except OSError as error:
        raise ModelError(
            f"cannot write {target}: {error.strerror or error}. Make that folder writable, or set paths.models to one "
            "that is."
        ) from error
    return target


def fill_and_rename(target: Path, fill: Callable[[Path], None], needed_bytes: int) -> None:
    """Called under the lock, so an unfinished folder found here belongs to nobody, or to a killed owner's child.

    Each attempt has a folder of its own: such a child must not write into the next attempt.
    """
    prefix = f".{target.name}.unfinished-"
    for left_over in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    free_bytes = shutil.disk_usage(target.parent).free
    if free_bytes < needed_bytes:
        raise ModelError(
            f"{target.parent} has {free_bytes / GIB:.1f} GiB free and this model takes {needed_bytes / GIB:.1f} GiB. "
            "Free some, or set paths.models to a larger disk."
        )
    unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    unfinished.chmod(0o755)
    try:
        fill(unfinished)
        problem = folder_problem(unfinished)
        if problem:
            raise ModelError(f"what was made for {target.name} {problem}: the source is not a complete model.")
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def exclusive(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold the file lock `path`. The file stays: removing it would let two holders in through two files."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that is preparing {path.name.strip('.').removesuffix('.lock')}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
