"""Role: a model in an object store becomes a folder on this node.

Owns: listing, downloading and the check that every file arrived with its size. The folder's name carries the listing
(paths, sizes, times), so a changed model is another folder and no old file is ever mixed in. Must not know: engines,
Ray, which store it is (pyarrow's file systems do; credentials and region come from where AWS tools look for them).
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.models.ready_folder import GIB, ModelError, folder_name, ready_folder

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# Enough to fill a node's network with the large files of a sharded checkpoint; more only takes memory.
PARALLEL_FILES = 4
CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class RemoteFile:
    """One file below the model's folder."""

    path: str
    relative: PurePosixPath
    size_bytes: int
    changed_ns: int


def open_store(url: str) -> tuple[FileSystem, str]:
    """The file system of `url` and the path in it."""
    from pyarrow.fs import FileSystem

    filesystem, path = FileSystem.from_uri(url)
    return filesystem, path


def shown(url: str) -> str:
    """The URL without what may be secret: pyarrow takes keys before an @ and in the query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def download_model(
    name: str,
    url: str,
    cache: Path,
    progress: Callable[[str], None],
    opener: Callable[[str], tuple[FileSystem, str]] = open_store,
) -> Path:
    """The local copy of the model at `url`, downloaded unless the same listing was before."""
    try:
        filesystem, root = opener(url)
        files = list_files(filesystem, root.rstrip("/"))
    except (OSError, ValueError) as error:
        raise ModelError(store_failure(name, url, error)) from error
    if not any(file.relative == PurePosixPath("config.json") for file in files):
        raise ModelError(
            f"models.{name}.source.url: {shown(url)} holds {len(files)} files and no config.json. Give the folder "
            "that holds config.json and the weights (a Hugging Face snapshot)."
        )
    total_bytes = sum(file.size_bytes for file in files)

    def fill(folder: Path) -> None:
        progress(f"{name}: downloading {len(files)} files, {total_bytes / GIB:.2f} GiB, from {shown(url)}")
        started_s = time.monotonic()
        download_all(name, url, filesystem, files, folder, progress)
        progress(f"{name}: downloaded in {time.monotonic() - started_s:.0f} s")

    return ready_folder(cache / folder_name(name, fingerprint(url, files)), fill, total_bytes, progress)


def list_files(filesystem: FileSystem, root: str) -> list[RemoteFile]:
    from pyarrow.fs import FileSelector, FileType

    files = []
    for info in filesystem.get_file_info(FileSelector(root, recursive=True)):
        if info.type == FileType.File:
            relative = PurePosixPath(info.path).relative_to(root)
            files.append(RemoteFile(info.path, relative, info.size, info.mtime_ns or 0))
    return sorted(files, key=lambda file: file.path)


def fingerprint(url: str, files: list[RemoteFile]) -> str:
    listing = [shown(url).rstrip("/"), *(f"{file.relative}\t{file.size_bytes}\t{file.changed_ns}" for file in files)]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()


def download_all(
    name: str,
    url: str,
    filesystem: FileSystem,
    files: list[RemoteFile],
    folder: Path,
    progress: Callable[[str], None],
) -> None:
    """Every file, a few at a time; the first failure cancels those not begun."""
    with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="model-download") as pool:
        waiting = {pool.submit(download_file, filesystem, file, folder): file for file in files}
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                future.result()
                progress(f"{name}: {done}/{len(files)} {waiting[future].relative}")
        except OSError as error:
            pool.shutdown(wait=True, cancel_futures=True)
            raise ModelError(store_failure(name, url, error)) from error


def download_file(filesystem: FileSystem, file: RemoteFile, folder: Path) -> None:
    target = folder / file.relative
    target.parent.mkdir(parents=True, exist_ok=True)
    with filesystem.open_input_stream(file.path) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, CHUNK_BYTES)
    got_bytes = target.stat().st_size
    if got_bytes != file.size_bytes:
        raise OSError(f"{file.path} has {file.size_bytes} bytes in the listing and {got_bytes} arrived")


def store_failure(name: str, url: str, error: Exception) -> str:
    return (
        f"models.{name}.source.url: {shown(url)} cannot be read: {error}. Check that it exists and that this node may "
        "read it: credentials and region come from the usual AWS variables and files (AWS_ACCESS_KEY_ID, AWS_REGION, "
        "AWS_PROFILE, an instance role), another endpoint from AWS_ENDPOINT_URL."
    )
