"""A folder of immutable objects. Owns: when an object is whole. Must not know: what it is for.

Guarantees: an object gets its name when its writer commits, whole. On a local disk that is fsync and rename(2), and an
abandoned writer leaves nothing. An object store shows an upload only once it is complete; pyarrow cannot abandon one,
so an abandoned writer completes it and deletes it. For that moment it is there under its name, which is why nobody may
read an object that no row of the state store names, and why no two writers may use one name: the one that gives up
would delete what the other made. A killed process leaves nothing (S3) or a `.tmp` file, which
`leftovers` names.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

CHUNK_BYTES = 1 << 20
_TEMPORARY = ".tmp"


class FileStore:
    """Objects below one folder. Names are relative paths, made by this program and never by clients."""

    def __init__(self, url: str) -> None:
        from pyarrow import fs

        self.url = url
        if "://" in url:
            self._fs, self._root = fs.FileSystem.from_uri(_single_puts(url))
            self._root = self._root.rstrip("/")
        else:
            self._fs, self._root = fs.LocalFileSystem(), str(Path(url).expanduser().absolute())
        self._is_local = isinstance(self._fs, fs.LocalFileSystem)

    def location(self, name: str) -> str:
        """Where another program finds an object: a path, or a URL that pyarrow.fs knows."""
        if "://" not in self.url:
            return self._path(name)
        path, mark, query = self.url.partition("?")
        return f"{path.rstrip('/')}/{name}{mark}{query}"

    def check(self) -> None:
        """Raises OSError if nothing can be written here. Buckets are never made: a missing one is a mistake."""
        probe = f"probe-{uuid.uuid4().hex}"
        self.put(probe, b"")
        self.delete(probe)

    def create(self, name: str) -> FileWriter:
        """A new object; one of the same name is replaced when the writer commits."""
        path = self._path(name)
        if self._is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            return _LocalWriter(path)
        return _ObjectWriter(self._fs, path)

    def put(self, name: str, data: bytes) -> None:
        with self.writing(name) as writer:
            writer.write(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[FileWriter]:
        """A writer that commits at the end of the block, and abandons the object if the block raises."""
        writer = self.create(name)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.commit()

    def open(self, name: str) -> Any:
        """A pyarrow file, for reading anywhere in it. Raises FileNotFoundError."""
        return self._fs.open_input_file(self._path(name))

    def size(self, name: str) -> int | None:
        """Bytes of an object; None when there is none."""
        from pyarrow import fs

        info = self._fs.get_file_info(self._path(name))
        return info.size if info.type == fs.FileType.File else None

    def delete(self, name: str) -> None:
        """One that is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._path(name))

    def delete_folder(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(self._path(name))

    def folders(self, name: str) -> list[str]:
        """Names of the folders directly in a folder."""
        from pyarrow import fs

        selector = fs.FileSelector(self._path(name), allow_not_found=True)
        return sorted(i.base_name for i in self._fs.get_file_info(selector) if i.type == fs.FileType.Directory)

    def leftovers(self, name: str, older_than_s: float) -> list[str]:
        """Objects directly in a folder that were written that long ago, torn ones included."""
        from pyarrow import fs

        selector = fs.FileSelector(self._path(name), allow_not_found=True)
        limit_s = time.time() - older_than_s
        files = [info for info in self._fs.get_file_info(selector) if info.type == fs.FileType.File]
        old = [info.base_name for info in files if info.mtime is not None and info.mtime.timestamp() < limit_s]
        return [str(PurePosixPath(name, base)) for base in old]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class FileWriter(ABC):
    """A stream into an object that is not there yet. Ends with `commit` or `abandon`."""

    def __init__(self, stream: IO[bytes] | Any) -> None:
        self._stream = stream
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self.size_bytes += len(data)

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def abandon(self) -> None: ...


class _LocalWriter(FileWriter):
    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
        super().__init__(self._temporary.open("xb", buffering=CHUNK_BYTES))

    def commit(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._temporary.replace(self._path)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # a full disk does not take what is still buffered, and need not
            self._stream.close()
        self._temporary.unlink(missing_ok=True)


class _ObjectWriter(FileWriter):
    def __init__(self, filesystem: Any, path: str) -> None:
        self._fs, self._path = filesystem, path
        super().__init__(filesystem.open_output_stream(path))

    def commit(self) -> None:
        self._stream.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            self._fs.delete_file(self._path)


def _single_puts(url: str) -> str:
    """S3 objects of up to 5 MiB as one request instead of the three of a multipart upload."""
    if not url.startswith("s3://") or "allow_delayed_open" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}allow_delayed_open=true"
