"""Every form of input, task and output end to end, on one Ray that all jobs share, with a scripted engine."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from tests.support.offline_jobs import calls, engine_pids, write_jsonl
from tests.support.offline_runs import (
    Driver,
    assert_each_once,
    assert_every_row_once,
    pool_reports,
    report,
    run,
    write_pools,
)
from tests.support.ray_nodes import Nodes, nodes

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]
BUCKET = "jobs"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with nodes(tmp_path_factory.mktemp("cluster"), head_cpus=4) as cluster:
        yield cluster


@pytest.fixture
def folder(tmp_path: Path, cluster: Nodes) -> Path:
    """A job's folder, with a config for one engine."""
    configure(tmp_path, cluster)
    return tmp_path


def configure(folder: Path, cluster: Nodes, part_rows: int = 10, **engine: Any) -> None:
    write_pools(folder, cluster.address, {"batch": engine}, labels=False, part_rows=part_rows)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def outputs(folder: Path, prefix: str) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir() if path.name.startswith(prefix))


def table_of(folder: Path, prefix: str = "part-") -> pa.Table:
    return pa.concat_tables([pq.read_table(folder / "out" / name) for name in outputs(folder, prefix)])


def progress(folder: Path) -> dict[str, Any]:
    path = folder / "out" / "_progress.json"
    return json.loads(path.read_text()) if path.exists() else {"state": None}


def chat(row_id: str, text: str, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": row_id, "method": "POST", "url": "/v1/chat/completions", "body": body} | more


def openai_rows(count: int) -> list[Any]:
    """Good requests, with five bad ones among them."""
    rows: list[Any] = [chat(f"c{i}", f"hello {i}") for i in range(count)]
    rows[3] = chat("c3", "too-long")
    rows[5] = chat("c5", "hi", url="/v1/images")
    rows[7] = chat("c7", "broken")
    rows[8] = "{nonsense"
    rows[9] = chat("c9", "hi", body={"model": "another", "messages": [{"role": "user", "content": "hi"}]})
    return rows


OPENAI_FAILED = ["c3", "c5", "c7", "in.jsonl:9", "c9"]


def assert_openai_output(folder: Path, count: int) -> None:
    good, bad = lines(folder / "out" / "output.jsonl"), lines(folder / "out" / "errors.jsonl")
    answered = [f"c{i}" for i in range(count) if i not in (3, 5, 7, 8, 9)]
    assert [row["custom_id"] for row in good] == answered, "in the input's order, every one once"
    assert [row["custom_id"] for row in bad] == OPENAI_FAILED
    assert [row["response"]["body"]["choices"][0]["message"]["content"] for row in good] == [
        f"HELLO {row_id[1:]}" for row_id in answered
    ]
    assert all(row["error"] is None and row["response"]["status_code"] == 200 for row in good)
    statuses = {row["custom_id"]: (row["response"] or {}).get("status_code") for row in bad}
    assert statuses == {"c3": 400, "c5": None, "c7": 500, "in.jsonl:9": None, "c9": None}
    codes = {row["custom_id"]: row["error"]["code"] for row in bad if row["error"]}
    assert codes == {"c5": "invalid_request", "in.jsonl:9": "invalid_json", "c9": "invalid_request"}
    assert outputs(folder, "part-") == [], "parts are gone once the files hold their rows"


def test_openai_batch_killed_and_continued(folder: Path, cluster: Nodes) -> None:
    configure(folder, cluster, part_rows=5, **{"delay_s": 0.15})
    source = write_jsonl(folder / "in.jsonl", openai_rows(100))
    first = Driver(folder, source)
    try:
        first.until(lambda: first.parts() >= 4, "four parts were committed")
    finally:
        first.end()
    assert not (folder / "out" / "output.jsonl").exists(), "nobody takes an unfinished file for the result"
    run(folder, source)
    assert_openai_output(folder, 100)
    assert len(calls(folder)) - 97 <= 4 + 5
    assert report(folder)["rows"] == 100 and report(folder)["complete"] is True
    assert "nothing to do, no engine started" in run(folder, source)
    assert_openai_output(folder, 100)


def test_templates_over_csv_columns_in_the_inputs_order(folder: Path) -> None:
    """Two prompts a row, from templates; a row whose column is empty fails alone."""
    with (folder / "in.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "name", "home city"])
        # Later rows are faster: without being put in order they would come out in another one.
        writer.writerows([f"p{i}", f"sleep={(45 - i) / 100} ann{i}", f"town {i}" if i != 7 else ""] for i in range(45))
    prompts = ["--prompt", "greet=Say hi to {{ name }}", "--prompt", "where={{ row['home city'] | upper }}?"]
    run(folder, folder / "in.csv", *prompts, "--preserve-order")
    assert outputs(folder, "part-") == [] and outputs(folder, "ordered-") == ["ordered-00000.jsonl"]
    rows = lines(folder / "out" / "ordered-00000.jsonl")
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(45)]
    assert rows[3]["output"] == ["SAY HI TO SLEEP=0.42 ANN3", "TOWN 3?"]
    assert rows[3]["home city"] == "town 3" and rows[3]["finish_reason"] == "stop,stop"
    failed = {row["id"]: row["error"]["type"] for row in rows if row["error"]}
    assert failed == {"p7": "template_failed"}
    assert len(calls(folder)) == 2 * 44


def test_classes_to_parquet_in_the_inputs_order(folder: Path) -> None:
    prompts = [f"sleep={(30 - i) / 100} a b c d" if i % 2 else "short" for i in range(30)]
    table = pa.table({"prompt": prompts, "when": pa.array(range(30), type=pa.timestamp("us")), "raw": [b"\xff"] * 30})
    pq.write_table(table, folder / "in.parquet", row_group_size=7)
    run(folder, folder / "in.parquet", "--task", "classify", "--preserve-order")
    assert outputs(folder, "part-") == [] and outputs(folder, "ordered-") == ["ordered-00000.parquet"]
    done = table_of(folder, "ordered-")
    assert done.column("id").to_pylist() == [f"in.parquet:{i}" for i in range(1, 31)]
    assert done.column("prompt").to_pylist() == prompts and done.schema.field("when").type == pa.timestamp("us")
    assert done.schema.field("output").type == pa.list_(pa.float32())
    assert done.column("output").to_pylist() == [[0.25, 0.75]] * 30
    assert done.column("label").to_pylist() == ["LONG" if i % 2 else "SHORT" for i in range(30)]


def test_embeddings_to_parquet(folder: Path) -> None:
    rows = [{"id": f"e{i}", "prompt": "x " * (i + 1)} for i in range(20)] + [{"id": "bad", "prompt": 3}]
    run(folder, write_jsonl(folder / "in.jsonl", rows), "--task", "embed", "--format", "parquet")
    table = table_of(folder)
    answers = dict(zip(table.column("id").to_pylist(), table.column("output").to_pylist(), strict=True))
    assert table.schema.field("output").type == pa.list_(pa.float32())
    assert answers == {f"e{i}": [i + 1.0, 0.5] for i in range(20)} | {"bad": None}
    assert Counter(table.column("error").to_pylist()[i] is None for i in range(21)) == {True: 20, False: 1}


def test_scores_to_parquet(folder: Path) -> None:
    rows: list[Any] = [{"id": f"s{i}", "text_1": "which?", "text_2": f"this {i}"} for i in range(12)]
    rows.append({"id": "half", "text_1": "which?"})
    run(folder, write_jsonl(folder / "in.jsonl", rows), "--task", "score", "--format", "parquet")
    table = table_of(folder)
    assert table.schema.field("output").type == pa.float64()
    answers = dict(zip(table.column("id").to_pylist(), table.column("output").to_pylist(), strict=True))
    assert answers == {f"s{i}": 0.5 for i in range(12)} | {"half": None}


def test_equal_deterministic_rows_are_computed_once(folder: Path, cluster: Nodes) -> None:
    configure(folder, cluster, delay_s=0.05)
    rows: list[Any] = [{"id": f"d{i}", "prompt": f"question {i % 12}"} for i in range(60)]
    rows += [{"id": f"t{i}", "prompt": "question 3", "params": {"temperature": 0.7}} for i in range(5)]
    run(folder, write_jsonl(folder / "in.jsonl", rows), "--temperature", "0")
    answers = {row["id"]: row for row in assert_every_row_once(folder, [row["id"] for row in rows])}
    assert Counter(calls(folder)) == {f"question {i}": 6 if i == 3 else 1 for i in range(12)}
    assert all(answers[row["id"]]["output"] == row["prompt"].upper() for row in rows)
    copied = {row_id: row["duplicate_of"] for row_id, row in answers.items() if row["duplicate_of"] is not None}
    assert len(copied) == 48 and not any(row_id.startswith("t") for row_id in copied)
    assert all(answers[of]["duplicate_of"] is None for of in copied.values()), "copies name the row that was computed"
    result = report(folder)
    assert (result["rows"], result["duplicates"]) == (65, 48)
    assert result["tokens"]["output"] == 2 * (12 + 5), "what was not computed is not counted"


def test_a_dry_run_predicts_and_leaves_nothing_behind(folder: Path, cluster: Nodes) -> None:
    configure(folder, cluster, delay_s=0.05)
    source = write_jsonl(folder / "in.jsonl", [{"prompt": f"row {i} of many"} for i in range(3000)])
    text = run(folder, source, "--dry-run", "--sample-rows", "40")
    assert "dry run: 40 of 3000 rows, one engine in every pool" in text
    assert "Predicted for 3000 rows, from 40" in text and "$/Mtok" in text and "batch" in text
    assert len(calls(folder)) == 40
    assert not (folder / "out").exists() or list((folder / "out").iterdir()) == []


def test_pool_option_and_progress_file(folder: Path, cluster: Nodes) -> None:
    pools = {"one": {"delay_s": 0.2}, "two": {"delay_s": 0.2}}
    write_pools(folder, cluster.address, pools, labels=False)
    ids = [f"r{i}" for i in range(100)]
    source = write_jsonl(folder / "in.jsonl", [{"id": row_id, "prompt": "hi"} for row_id in ids])
    refused = Driver(folder, source, "--pool", "three")
    assert refused.wait() == 2 and "no offline deployment three" in refused.text() and "one, two" in refused.text()
    driver = Driver(folder, source, "--pool", "two")
    driver.until(lambda: progress(folder)["state"] == "starting", "progress said that engines start")
    driver.until(lambda: progress(folder)["state"] == "running" and progress(folder)["rows_done"] > 0, "rows were done")
    seen = progress(folder)
    assert seen["rows_total"] == 100
    assert [(pool["name"], pool["engines_ready"]) for pool in seen["pools"]] == [("two", 1)]
    assert abs(seen["updated_unix_s"] - time.time()) < 30
    driver.process.terminate()
    assert driver.wait() == 130, driver.text()
    assert progress(folder)["state"] == "stopped" and 0 < progress(folder)["rows_done"] < 100
    run(folder, source, "--pool", "two")
    assert progress(folder)["state"] == "finished" and progress(folder)["rows_done"] == 100
    assert list(pool_reports(folder)) == ["two"]
    assert_every_row_once(folder, ids)


def test_a_row_that_kills_engines_is_isolated_although_two_share_the_work(folder: Path, cluster: Nodes) -> None:
    configure(folder, cluster, engines=2, delay_s=0.02)
    ids = [f"r{i}" for i in range(80)]
    rows = [{"id": row_id, "prompt": f"hi {row_id}"} for row_id in ids]
    rows.insert(20, {"id": "poison", "prompt": "always-die"})
    run(folder, write_jsonl(folder / "in.jsonl", rows))
    answers = {row["id"]: row for row in assert_every_row_once(folder, [*ids, "poison"])}
    assert [row_id for row_id, row in answers.items() if row["error"]] == ["poison"]
    assert answers["poison"]["error"]["type"] == "engine_crashed"
    # Two to begin with, and one for each death: at the first the row is retried, at the second suspected, then alone.
    assert len(engine_pids(folder)) <= 2 + 4


def test_a_task_that_the_engine_does_not_offer_fails_with_the_cure(folder: Path, cluster: Nodes) -> None:
    configure(folder, cluster, paths=["/v1/completions"])
    driver = Driver(folder, write_jsonl(folder / "in.jsonl", [{"prompt": "x"}]), "--task", "classify")
    assert driver.wait() == 1, driver.text()
    assert "does not offer classify" in driver.text() and "engine.args" in driver.text()
    assert len(engine_pids(folder)) == 1, "another try would end the same"


def test_more_rows_than_the_driver_reads_itself(folder: Path, cluster: Nodes) -> None:
    """Beyond a few blocks, Ray Data's tasks read."""
    configure(folder, cluster, part_rows=1000, **{"max-num-seqs": 256})
    ids = [f"r{i}" for i in range(6000)]
    run(folder, write_jsonl(folder / "in.jsonl", [{"id": row_id, "prompt": f"row {row_id}"} for row_id in ids]))
    assert_every_row_once(folder, ids)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop()


def s3(endpoint: str) -> fs.S3FileSystem:
    return fs.S3FileSystem(
        access_key="key", secret_key="secret", endpoint_override=endpoint, scheme="http", region="us-east-1",
        allow_bucket_creation=True,
    )  # fmt: skip


def s3_url(endpoint: str, path: str) -> str:
    query = f"endpoint_override={quote(f'http://{endpoint}', safe='')}&scheme=http&region=us-east-1"
    return f"s3://key:secret@{path}?{query}"


def test_input_and_output_on_s3_with_a_killed_driver(folder: Path, cluster: Nodes, endpoint: str) -> None:
    configure(folder, cluster, part_rows=5, delay_s=0.15)
    store = s3(endpoint)
    store.create_dir(f"{BUCKET}/in")
    ids = [f"r{i}" for i in range(90)]
    for name, some in (("a", ids[:50]), ("b", ids[50:])):
        with store.open_output_stream(f"{BUCKET}/in/{name}.jsonl") as out:
            out.write("".join(json.dumps({"id": row_id, "prompt": f"s {row_id}"}) + "\n" for row_id in some).encode())
    source, output = s3_url(endpoint, f"{BUCKET}/in/*.jsonl"), s3_url(endpoint, f"{BUCKET}/out")

    def objects() -> list[str]:
        selector = fs.FileSelector(f"{BUCKET}/out", allow_not_found=True, recursive=True)
        return [info.path.removeprefix(f"{BUCKET}/out/") for info in store.get_file_info(selector) if info.is_file]

    def parts() -> list[str]:
        return [name for name in objects() if name.startswith("part-")]

    first = Driver(folder, source, output=output)
    try:
        first.until(lambda: len(parts()) >= 4, "four parts were committed")
    finally:
        first.end()
    text = run(folder, source, output=output)
    assert "taking over the output" in text and "secret" not in text
    rows = [json.loads(line) for name in parts() for line in _read(store, name).splitlines()]
    assert_each_once([row["id"] for row in rows], ids)
    assert all(row["output"] == f"S {row['id'].upper()}" for row in rows)
    assert len(calls(folder)) - len(ids) <= 4 + 5
    assert {"done.json", "report.json", "report.html", "_progress.json"} <= set(objects())
    assert not [name for name in objects() if name.startswith(("_staging", "_lock", "_heartbeat"))]


def _read(store: fs.S3FileSystem, name: str) -> bytes:
    with store.open_input_stream(f"{BUCKET}/out/{name}") as stream:
        return bytes(stream.read())


def test_a_bucket_that_cannot_be_written_is_refused_in_seconds(folder: Path, endpoint: str) -> None:
    source = write_jsonl(folder / "in.jsonl", [{"prompt": "hi"}])
    began_s = time.monotonic()
    driver = Driver(folder, source, output=s3_url(endpoint, "no-such-bucket/out"))
    assert driver.wait() == 2, driver.text()
    assert time.monotonic() - began_s < 20
    assert "refused: output s3://no-such-bucket/out: cannot be written" in driver.text()
    assert "secret" not in driver.text() and engine_pids(folder) == []
