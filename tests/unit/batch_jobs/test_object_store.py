"""The same guarantees, as far as they go, on an S3-compatible server."""

from __future__ import annotations

import os
import pickle
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import orjson
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from batch_jobs.errors import JobRefused
from batch_jobs.input.id_set import IdSet
from batch_jobs.input.locations import find_inputs
from batch_jobs.input.rows import Row
from batch_jobs.output import lock as lock_module
from batch_jobs.output.assemble import Limits, assemble, drop_parts, is_assembled
from batch_jobs.output.committed import committed, read_committed
from batch_jobs.output.encoding import encode_part
from batch_jobs.output.lock import OutputLock
from batch_jobs.output.part_buffer import PartBuffer, PartSettings
from batch_jobs.output.parts import DONE_FILE, LOCK_FILE, PART_FORMATS, STAGING, Result, part_name, staged_name
from batch_jobs.storage import Storage, shown
from tests.unit.batch_jobs.test_assemble import check, fill

BUCKET = "results"
SECRET = "s3cr/et"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        store = fs.S3FileSystem(
            access_key="key", secret_key=SECRET, endpoint_override=f"{host}:{port}", scheme="http",
            region="us-east-1", allow_bucket_creation=True,
        )  # fmt: skip
        store.create_dir(BUCKET)
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def url(endpoint: str) -> str:
    return s3_url(endpoint, f"{BUCKET}/job {uuid.uuid4().hex}")


def s3_url(endpoint: str, path: str) -> str:
    query = f"endpoint_override={quote(endpoint, safe='')}&scheme=http&region=us-east-1"
    return f"s3://key:{quote(SECRET, safe='')}@{quote(path)}?{query}"


@pytest.fixture
def storage(url: str) -> Storage:
    storage = Storage(url)
    storage.make_folder()
    return storage


def test_objects_are_written_listed_moved_and_deleted(storage: Storage) -> None:
    assert storage.names() == [] and not storage.is_local
    storage.write("b", b"22")
    storage.write("ä +%", b"1")
    storage.write("_staging/run/c", b"333")
    assert storage.names() == ["b", "ä +%"] and storage.sizes() == {"b": 2, "ä +%": 1}
    storage.move("_staging/run/c", "c")
    assert storage.read("c") == b"333" and not storage.exists("_staging/run/c")
    storage.write("b", b"again")
    assert storage.read("b") == b"again"
    storage.delete("b")
    storage.delete("b")
    assert not storage.exists("b") and storage.names() == ["c", "ä +%"]
    with pytest.raises(FileNotFoundError):
        storage.read("b")
    with pytest.raises(FileNotFoundError):
        storage.move("_staging/run/c", "d")
    assert pickle.loads(pickle.dumps(storage)).names() == storage.names()
    assert Storage(storage.location.replace("?", "/?")).names() == storage.names(), "a slash at the end changes nothing"


def test_a_discarded_folder_is_empty(storage: Storage) -> None:
    storage.make_folder("_staging/run")
    storage.write("_staging/run/a", b"1")
    storage.write("keep", b"1")
    storage.discard_folder(STAGING)
    storage.discard_folder(STAGING)
    assert not storage.exists("_staging/run/a") and storage.names() == ["keep"]
    with pytest.raises(FileNotFoundError):
        storage.move("_staging/run/a", "a")


def test_create_exclusive_refuses_what_exists(storage: Storage) -> None:
    assert storage.create_exclusive("x", b"first")
    assert not storage.create_exclusive("x", b"second")
    assert storage.read("x") == b"first"


def test_pyarrow_still_has_no_conditional_put(storage: Storage) -> None:
    """Fails on the day it has one: then `create_exclusive` can be what its name says, and the lock lose its pause."""
    filesystem, path = storage._fs, storage._path("x")
    for text in (b"first", b"second"):
        with filesystem.open_output_stream(path, metadata={"If-None-Match": "*"}) as stream:
            stream.write(text)
    assert storage.read("x") == b"second"


def test_a_stream_becomes_an_object_when_it_is_closed(storage: Storage) -> None:
    with storage.open_writer("large") as stream:
        for _ in range(13):
            stream.write(b"x" * (1 << 20))  # several parts of a multipart upload
        assert storage.names() == []
    assert storage.sizes() == {"large": 13 << 20}
    with pytest.raises(ValueError, match="half way"), storage.open_writer("broken") as stream:
        stream.write(b"x" * (6 << 20))
        raise ValueError("half way")
    assert storage.names() == ["large"]


def test_a_bucket_that_does_not_exist_is_not_made(endpoint: str) -> None:
    storage = Storage(s3_url(endpoint, "nowhere/out"))
    with pytest.raises(OSError, match="not found"):
        storage.make_folder()
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        storage.write("x", b"1")


def test_messages_do_not_tell_keys(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.shown.startswith(f"s3://{BUCKET}/job") and "key" not in storage.shown
    assert shown("/data/out@home") == "/data/out@home"
    monkeypatch.setattr(lock_module, "_READ_BACK_S", 0.0)
    lock = OutputLock(storage, "one")
    lock.take()
    storage.write("part-e-00000.jsonl", b"{")
    for attempt in (OutputLock(storage, "two").take, lambda: committed(storage)):
        with pytest.raises(JobRefused) as refusal:
            attempt()
        assert "s3cr" not in str(refusal.value) and BUCKET in str(refusal.value)
    lock.release()


def test_work_on_many_objects_overlaps(storage: Storage) -> None:
    """In order, several at once, and not all at once."""
    lock = threading.Lock()
    now = most = started = 0

    def slow(name: str) -> str:
        nonlocal now, most, started
        with lock:
            now, started = now + 1, started + 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return name

    names = [str(number) for number in range(100)]
    results = storage.map(slow, names)
    assert next(results) == "0"
    time.sleep(0.1)
    assert started <= 32, "a slow reader must not be run over"
    assert list(results) == names[1:]
    assert 2 <= most <= 16


def test_exactly_one_of_two_drivers_takes_the_output(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_READ_BACK_S", 1.0)
    both_saw_nothing = threading.Barrier(2)

    class Together(Storage):
        """Both drivers find no lock before either writes one: the worst case of a check and a put."""

        def exists(self, name: str) -> bool:
            found = super().exists(name)
            if name == LOCK_FILE:
                both_saw_nothing.wait(10)
            return found

    outcomes: dict[str, OutputLock | JobRefused] = {}

    def take(run_id: str) -> None:
        lock = OutputLock(Together(storage.location), run_id)
        try:
            lock.take()
        except JobRefused as refusal:
            outcomes[run_id] = refusal
        else:
            outcomes[run_id] = lock

    threads = [threading.Thread(target=take, args=(run_id,)) for run_id in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [run_id for run_id, outcome in outcomes.items() if isinstance(outcome, OutputLock)]
    assert len(outcomes) == 2 and len(winners) == 1
    assert orjson.loads(storage.read(LOCK_FILE))["run_id"] == winners[0]
    with pytest.raises(JobRefused, match=rf"another driver is at work here: run {winners[0]} \(pid {os.getpid()}"):
        OutputLock(storage, "three").take()
    winner = outcomes[winners[0]]
    assert isinstance(winner, OutputLock)
    winner.release()
    assert storage.names() == []


def test_an_abandoned_lock_is_taken_over(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_READ_BACK_S", 0.1)
    owner = {"run_id": "old", "pid": 1, "host": "elsewhere", "process_start": "x", "taken_unix_s": time.time() - 1e4}
    storage.write(LOCK_FILE, orjson.dumps(owner))
    lock = OutputLock(storage, "new")
    lock.take()
    assert orjson.loads(storage.read(LOCK_FILE))["run_id"] == "new" and storage.names() == [LOCK_FILE]
    lock.release()
    assert storage.names() == []


@pytest.mark.parametrize("form", PART_FORMATS)
def test_parts_are_committed_and_counted(storage: Storage, form: str) -> None:
    ids = fill(storage, form, count=150, per_part=3)  # more parts than are read at once
    storage.write(staged_name("run", part_name("e", 99, form)), b"staged")
    known, totals = committed(storage)
    assert totals.rows == len(known) == 150 and totals.error_rows == 30
    assert isinstance(known, IdSet) and known.contains_many(ids).all()
    storage.write(part_name("x", 0, form), b"{")
    with pytest.raises(JobRefused, match="part-x-00000"):
        list(read_committed(storage))


async def test_an_engine_publishes_parts(storage: Storage) -> None:
    class Ledger:
        async def publish(self, part: str, stats: object) -> list[int]:
            storage.move(staged_name("run", part), part)
            return []

    settings = PartSettings(storage.location, "run", "parquet", pa.schema([]), 2, 10.0)
    buffer = PartBuffer(settings, "e", Ledger())
    for number in range(3):
        await buffer.add(number, Row(str(number), {}), Result("x"), 0.1)
    await buffer.flush()
    assert storage.names() == ["part-e-00000.parquet", "part-e-00001.parquet"]
    assert [row.id for row in read_committed(storage)] == ["0", "1", "2"]


@pytest.mark.parametrize("form", PART_FORMATS)
def test_the_end_of_a_job_in_input_order(storage: Storage, form: str) -> None:
    ids = fill(storage, form, count=100)
    done = assemble(storage, "run", ids, form, Limits(rows_per_file=30))
    assert (done.rows, done.errors) == (100, 20)
    storage.write(DONE_FILE, b'{"assembled": true}')
    assert is_assembled(storage)
    drop_parts(storage)
    storage.discard_folder(STAGING)
    assert storage.names() == sorted([*done.files, DONE_FILE])
    check(storage, form, ids)


def test_inputs_are_found_and_read(storage: Storage) -> None:
    storage.write("in/a.jsonl", b'{"prompt": "x"}\n')
    storage.write("in/deep/b.jsonl", b'{"prompt": "y"}\n')
    storage.write("in/_tmp/c.jsonl", b"no\n")
    storage.write("in/d.parquet", encode_part([(Row("a", {}), Result("x"))], "parquet", pa.schema([])))
    storage.write("in/readme.txt", b"no")
    base = storage.location

    def found(pattern: str) -> list[str]:
        path, _, query = base.partition("?")
        return [file.name for file in find_inputs([f"{path}/{pattern}?{query}"])]

    assert found("in") == ["a.jsonl", "d.parquet", "deep/b.jsonl"]
    assert found("in/*.jsonl") == ["a.jsonl"]
    assert found("in/**/*.jsonl") == ["a.jsonl", "deep/b.jsonl"]
    assert found("in/a.jsonl") == ["a.jsonl"]
    with pytest.raises(JobRefused) as refusal:
        found("in/none.jsonl")
    assert "no such file" in str(refusal.value)
    path, _, query = base.partition("?")
    (file,) = find_inputs([f"{path}/in/a.jsonl?{query}"])
    with file.filesystem.open_input_file(file.path) as source:
        assert source.read() == b'{"prompt": "x"}\n' and file.size_bytes == 16


def test_a_job_on_disk_and_one_in_a_store_end_alike(storage: Storage, tmp_path: Path) -> None:
    local = Storage(str(tmp_path))
    for place in (local, storage):
        ids = fill(place, "jsonl")
        assemble(place, "run", ids, "jsonl")
    assert local.read("ordered-00000.jsonl") == storage.read("ordered-00000.jsonl")
