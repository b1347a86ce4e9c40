"""The file store in a local folder and on an S3-compatible server: whole objects or none."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from cluster.files import FileStore

BUCKET = "files"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        fs.S3FileSystem(
            access_key="key", secret_key="secret", endpoint_override=f"{host}:{port}", scheme="http",
            region="us-east-1", allow_bucket_creation=True,
        ).create_dir(BUCKET)  # fmt: skip
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    if request.param == "local":
        return FileStore(str(tmp_path / "store"))
    endpoint = request.getfixturevalue("endpoint")
    query = f"endpoint_override={quote(endpoint, safe='')}&scheme=http&region=us-east-1"
    return FileStore(f"s3://key:secret@{BUCKET}/{uuid.uuid4().hex}?{query}")


def names(store: FileStore, folder: str = "") -> list[str]:
    return sorted(store.leftovers(folder, -60.0))


def test_an_object_appears_whole_when_it_is_committed(store: FileStore) -> None:
    writer = store.create("a.jsonl")
    for _ in range(7):
        writer.write(b"x" * (1 << 20))
    assert store.size("a.jsonl") is None
    writer.commit()
    assert store.size("a.jsonl") == writer.size_bytes == 7 << 20
    store.put("a.jsonl", b"again")
    with store.open("a.jsonl") as source:
        source.seek(2)
        assert source.read(2) == b"ai"
    store.delete("a.jsonl")
    store.delete("a.jsonl")
    assert store.size("a.jsonl") is None
    with pytest.raises(FileNotFoundError):
        store.open("a.jsonl")


def test_an_abandoned_object_leaves_nothing(store: FileStore) -> None:
    store.put("keep", b"1")
    with pytest.raises(ValueError, match="half way"), store.writing("torn") as writer:
        writer.write(b"x" * (6 << 20))
        raise ValueError("half way")
    assert names(store) == ["keep"]


def test_folders_are_listed_and_deleted_whole(store: FileStore) -> None:
    assert store.folders("batches") == [] and store.leftovers("batches", 0) == []
    store.put("batches/b1/0.jsonl", b"1")
    store.put("batches/b1/1.jsonl", b"2")
    store.put("batches/b2/0.jsonl", b"3")
    assert store.folders("batches") == ["b1", "b2"]
    store.delete_folder("batches/b1")
    store.delete_folder("batches/b1")
    assert store.folders("batches") == ["b2"] and store.size("batches/b1/0.jsonl") is None


def test_other_programs_find_an_object_by_its_location(store: FileStore) -> None:
    store.put("deep/a.jsonl", b"here")
    location = store.location("deep/a.jsonl")
    filesystem, path = fs.FileSystem.from_uri(location) if "://" in location else (fs.LocalFileSystem(), location)
    with filesystem.open_input_stream(path) as source:
        assert source.read() == b"here"


def test_a_store_is_checked_before_it_is_used(store: FileStore, endpoint: str) -> None:
    store.check()
    assert names(store) == []
    query = f"endpoint_override={quote(endpoint, safe='')}&scheme=http&region=us-east-1"
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        FileStore(f"s3://key:secret@nowhere/x?{query}").check()


def test_torn_files_of_a_killed_process_are_leftovers(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path))
    store.create("torn").write(b"half")  # never committed
    store.put("new", b"1")
    (torn,) = [name for name in names(store) if name.startswith("torn.")]
    os.utime(tmp_path / torn, (time.time() - 7200, time.time() - 7200))
    assert store.leftovers("", 3600) == [torn]
