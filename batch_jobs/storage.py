"""A folder of whole objects on a local disk or behind a pyarrow.fs URL (s3://, gs://, ...).

Role: the few file operations a job's output needs, with their guarantees stated.
Owns: durability (local writes are synced before they get their name) and atomicity (`move`, `create_exclusive`).
Must not know: what the objects mean.

Guarantees: on a POSIX file system `move` is rename(2): the target appears whole or not at all, and fails when the
source folder has been discarded. On an object store `write` is a single put and `move` a server-side copy, then a
delete. pyarrow has no conditional put (a request header of one is ignored: the second writer wins), so
`create_exclusive` is a check and a put there; whoever needs to be the only one reads its object back after a pause.
Buckets are never created: a bucket that does not exist is a mistake in the location.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

MAX_THREADS = 16
"""Requests that `map` has under way at an object store; pyarrow's S3 client opens up to 25 connections."""
_WRITE_BUFFER_BYTES = 1 << 20

T = TypeVar("T")


def open_filesystem(location: str) -> tuple[FileSystem, str]:
    """(file system, path inside it) of a local path or a URL that pyarrow.fs knows."""
    from pyarrow import fs

    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    filesystem, path = fs.FileSystem.from_uri(location)
    return filesystem, path


def shown(location: str) -> str:
    """A location without its secrets (the keys of an S3 URL), for messages."""
    if "://" not in location:
        return location
    url = urlsplit(location)
    return urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))


def _single_puts(location: str) -> str:
    """S3 objects of up to 5 MiB as one request instead of the three of a multipart upload."""
    if not location.startswith("s3://") or "allow_delayed_open" in location:
        return location
    return f"{location}{'&' if '?' in location else '?'}allow_delayed_open=true"


class Storage:
    """One folder. Picklable: actors get a copy and see the same objects."""

    def __init__(self, location: str) -> None:
        from pyarrow import fs

        self._fs, self._root = open_filesystem(_single_puts(location))
        self.location = location if "://" in location else self._root  # means the same in every process
        self.is_local = isinstance(self._fs, fs.LocalFileSystem)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @property
    def shown(self) -> str:
        """The location as messages and logs may have it."""
        return shown(self.location)

    def below(self, folder: str) -> Storage:
        """The storage of a sub-folder."""
        path, mark, query = self.location.partition("?")
        return Storage(f"{path.rstrip('/')}/{folder}{mark}{query}")

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

    @contextlib.contextmanager
    def open_writer(self, name: str) -> Iterator[IO[bytes]]:
        """A stream into an object of any size, which gets its name when the block ends, and not if it raises.

        On object stores (a multipart upload) the name appears when the stream is closed, and pyarrow cannot abandon
        one: after an exception the object is there for a moment and then deleted. A killed process leaves nothing.
        """
        if self.is_local:
            with self._local_writer(self._path(name)) as stream:
                yield stream
            return
        remote: Any = self._fs.open_output_stream(self._path(name))
        try:
            yield remote
        except BaseException:
            with contextlib.suppress(OSError):
                remote.close()
            with contextlib.suppress(OSError):
                self.delete(name)
            raise
        remote.close()

    @staticmethod
    @contextlib.contextmanager
    def _local_writer(path: str) -> Iterator[IO[bytes]]:
        temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("xb", buffering=_WRITE_BUFFER_BYTES) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

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
            return
        try:
            self._fs.move(self._path(source), self._path(target))
        except OSError as error:
            if self.exists(source):
                raise
            raise FileNotFoundError(f"{source} is not in {self.shown}") from error

    def read(self, name: str) -> bytes:
        with self._fs.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def open_input(self, name: str) -> Any:
        """A pyarrow file for reading anywhere in an object."""
        return self._fs.open_input_file(self._path(name))

    def map(self, function: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
        """`function` of every name, in order; on object stores some names at once, ahead of the reader."""
        if self.is_local:
            yield from map(function, names)
            return
        with ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="storage") as pool:
            ahead: deque[Future[T]] = deque()
            try:
                for name in names:
                    ahead.append(pool.submit(function, name))
                    if len(ahead) >= 2 * MAX_THREADS:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def exists(self, name: str) -> bool:
        from pyarrow import fs

        return bool(self._fs.get_file_info(self._path(name)).type != fs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the objects directly in the folder."""
        return sorted(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Bytes of the objects directly in the folder; on S3 one request for a thousand of them."""
        from pyarrow import fs

        selector = fs.FileSelector(self._root, allow_not_found=True)
        infos = self._fs.get_file_info(selector)
        return {info.base_name: info.size or 0 for info in infos if info.type == fs.FileType.File}

    def delete(self, name: str) -> None:
        """Delete an object; one that is gone already is fine."""
        try:
            self._fs.delete_file(self._path(name))
        except FileNotFoundError:
            return

    def remove_empty(self, name: str) -> None:
        """Remove a sub-folder that holds nothing. Object stores have no folders."""
        if self.is_local:
            with contextlib.suppress(OSError):
                Path(self._path(name)).rmdir()

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
