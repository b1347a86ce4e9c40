"""From what the user typed (file, folder, glob or URL) to the list of input files.

Role: find files and name them stably. Owns: which formats exist and the relative name that row ids start with.
Must not know: what is inside the files.
"""

from __future__ import annotations

import fnmatch
import io
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batch_jobs.errors import JobRefused
from batch_jobs.storage import open_filesystem, shown

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_CURES = {
    ".json": "A JSON document is read whole: write one object per line (jq -c '.[]') as .jsonl.",
    ".gz": "Compressed text cannot be read from the middle: decompress it, or write Parquet.",
    ".pkl": "A pickle runs code when it is read: write Parquet.",
    ".pickle": "A pickle runs code when it is read: write Parquet.",
}
_WILDCARDS = "*?["
_READ_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class InputFile:
    """One file to read. `name` is its path below the folder that all inputs share: the same wherever that folder is."""

    filesystem: FileSystem = field(compare=False)
    path: str
    name: str
    format: str
    size_bytes: int


def find_inputs(locations: Sequence[str]) -> list[InputFile]:
    """Every input file, ordered by name. Raises JobRefused for what is missing or cannot be read."""
    found: dict[tuple[str, str], tuple[FileSystem, FileInfo]] = {}
    for location in locations:
        for filesystem, info in _expand(location):
            found.setdefault((filesystem.type_name, info.path), (filesystem, info))
    paths = [path for _, path in found]
    base = posixpath.commonpath([posixpath.dirname(path) or "." for path in paths])
    files = [
        InputFile(filesystem, info.path, posixpath.relpath(info.path, base), _format(info.path), info.size or 0)
        for filesystem, info in found.values()
    ]
    return sorted(files, key=lambda file: file.name)


def open_lines(file: InputFile) -> io.BufferedReader:
    """A binary stream that iterates over lines."""
    return io.BufferedReader(file.filesystem.open_input_file(file.path), _READ_BUFFER_BYTES)


def _format(path: str) -> str:
    return FORMATS.get(posixpath.splitext(path)[1].lower(), "")


def _expand(location: str) -> list[tuple[FileSystem, FileInfo]]:
    """The files of one --input: themselves, a folder's or a glob's."""
    from pyarrow import fs

    try:
        filesystem, path = open_filesystem(location)
        if any(mark in path for mark in _WILDCARDS):
            infos = _glob(filesystem, path)
            if not infos:
                raise JobRefused(f"input {shown(location)}: no file matches. Check the pattern.")
        else:
            info = filesystem.get_file_info(path)
            if info.type == fs.FileType.NotFound:
                raise JobRefused(f"input {shown(location)}: no such file or folder. Check the path.")
            if info.type == fs.FileType.File:
                if not _format(path):
                    cure = _CURES.get(posixpath.splitext(path)[1].lower(), f"Use {', '.join(sorted(FORMATS))}.")
                    raise JobRefused(f"input {shown(location)}: unknown format. {cure}")
                return [(filesystem, info)]
            infos = [item for item in _files_below(filesystem, path) if _format(item.path)]
    except (OSError, ValueError) as error:
        raise JobRefused(f"input {shown(location)}: cannot be opened: {error}") from error
    readable = [item for item in infos if _format(item.path)]
    if not readable:
        raise JobRefused(f"input {shown(location)}: holds no {', '.join(sorted(FORMATS))} file.")
    return [(filesystem, item) for item in readable]


def _files_below(filesystem: FileSystem, folder: str) -> list[FileInfo]:
    """Files in a folder and below it; names that start with _ or . are bookkeeping of other tools."""
    from pyarrow import fs

    prefix = folder.rstrip("/") + "/"
    return [
        info
        for info in filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
        if info.type == fs.FileType.File
        and not any(part.startswith(("_", ".")) for part in info.path.removeprefix(prefix).split("/"))
    ]


def _glob(filesystem: FileSystem, pattern: str) -> list[FileInfo]:
    """Shell pattern; * stays within one folder and ** spans folders."""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if any(mark in part for mark in _WILDCARDS))
    candidates = _files_below(filesystem, "/".join(parts[:first]) or "/")
    return [info for info in candidates if _matches(info.path.split("/")[first:], parts[first:])]


def _matches(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return _matches(path, pattern[1:]) or bool(path and _matches(path[1:], pattern))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])
