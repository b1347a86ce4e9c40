"""A folder of whole objects on a local disk or behind a pyarrow.fs URL (s3://, gs://, ...).

Role: the few file operations a job's output needs, with their guarantees stated.
Owns: durability (local writes are synced before they get their name) and atomicity (`move`, `create_exclusive`).
Must not know: what the objects mean.

Guarantees: on a POSIX file system `move` is rename(2): the target appears whole or not at all, and fails when the
source folder has been discarded. On an object store `write` is a single put and `move` a server-side copy, then a
delete.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def open_filesystem(location: str) -> tuple[FileSystem, str]:
    """(file system, path inside it) of a local path or a URL that pyarrow.fs knows."""
    from pyarrow import fs

    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    filesystem, path = fs.FileSystem.from_uri(location)
    return filesystem, path


class Storage:
    """One folder. Picklable: actors get a copy and see the same objects."""

    def __init__(self, location: str) -> None:
        from pyarrow import fs

        self._fs, self._root = open_filesystem(location)
        self.location = location if "://" in location else self._root  # means the same in every process
        self.is_local = isinstance(self._fs, fs.LocalFileSystem)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def make_folder(self, name: str = "") -> None:
        self._fs.create_dir(self._path(name), recursive=True)

    def write(self, name: str, data: bytes) -> None:
        """Put a whole object. Local: never leaves a torn file under `name`, and is on disk when this returns."""
        path = self._path(name)
        if not self.is_local:
            with self._fs.open_output_stream(path) as stream:
                stream.write(data)
            return
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        self._write_synced(temporary, data)
        Path(temporary).replace(path)

    @staticmethod
    def _write_synced(path: str, data: bytes) -> None:
        with Path(path).open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    def create_exclusive(self, name: str, data: bytes) -> bool:
        """Create an object unless it exists. Atomic with its content on a local disk; a check and a put elsewhere."""
        path = self._path(name)
        if not self.is_local:
            if self.exists(name):
                return False
            self.write(name, data)
            return True
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        self._write_synced(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            Path(temporary).unlink()
        return True

    def move(self, source: str, target: str) -> None:
        """Give an object its final name. Raises FileNotFoundError when the source is gone."""
        if self.is_local:
            Path(self._path(source)).rename(self._path(target))
        else:
            self._fs.move(self._path(source), self._path(target))

    def read(self, name: str) -> bytes:
        with self._fs.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def exists(self, name: str) -> bool:
        from pyarrow import fs

        return bool(self._fs.get_file_info(self._path(name)).type != fs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the objects directly in the folder."""
        from pyarrow import fs

        selector = fs.FileSelector(self._root, allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector) if info.type == fs.FileType.File)

    def delete(self, name: str) -> None:
        """Delete an object; one that is gone already is fine."""
        try:
            self._fs.delete_file(self._path(name))
        except FileNotFoundError:
            return

    def discard_folder(self, name: str) -> None:
        """Remove a sub-folder so that, on a local disk, no later `move` out of it can succeed.

        The rename comes first because it is atomic: a process still writing there finds its source gone.
        """
        path = self._path(name)
        if not self.is_local:
            if self.exists(name):
                self._fs.delete_dir(path)
            return
        doomed = f"{path}.{uuid.uuid4().hex[:8]}.discarded"
        try:
            Path(path).rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)
