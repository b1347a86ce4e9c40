"""Large batches as offline jobs: started once, followed, stopped, started again, and registered as files.

The job is imitated by what it leaves: parts, progress and final files, written by the offline package's own code.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pytest

from batch_jobs.input.rows import Row
from batch_jobs.output.assemble import assemble, drop_parts
from batch_jobs.output.encoding import encode_part
from batch_jobs.output.parts import DONE_FILE, OPENAI, Result, part_name
from batch_jobs.plan import Plan, make_plan
from batch_jobs.storage import Storage
from batch_jobs.work.billing import Billing
from cluster.config import TribesConfig, load_config
from cluster.state import Store
from cluster.state.deferred_batches import Batch
from serve_apps.deferred.batch_run import BatchRun
from serve_apps.deferred.jobs import JobRefusedError, RayJobs
from serve_apps.deferred.shop import Shop
from tests.unit.serve_apps.deferred_work import OFFLINE, ScriptedRunner, jsonl, line, sections, shop_of
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.servers import eventually
from tests.unit.serve_apps.test_deferred_crashes import accept, read


class ScriptedJobs:
    """Where jobs run. The test says what they do."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.commands: dict[str, list[str]] = {}
        self.config: TribesConfig | None = None
        self.plan: Plan | None = None
        self.away = False
        self.submitted = asyncio.Event()

    def submit(self, job_id: str, entrypoint: str, working_dir: Path) -> None:
        assert job_id not in self.states, "a job was started twice"
        self.commands[job_id] = shlex.split(entrypoint)
        path = working_dir / self._option(job_id, "--config")
        self.config = load_config(path)
        self.plan = make_plan(str(path), self._option(job_id, "--model"))
        self.states[job_id] = "RUNNING"

    def status(self, job_id: str) -> str | None:
        if self.away:
            raise JobRefusedError("the dashboard is away")
        return self.states.get(job_id)

    def stop(self, job_id: str) -> None:
        self.states[job_id] = "STOPPED"

    def _option(self, job_id: str, name: str) -> str:
        command = self.commands[job_id]
        return command[command.index(name) + 1]

    # --- what a job does ------------------------------------------------------------------------------------------

    def input_ids(self, job_id: str) -> list[str]:
        return [orjson.loads(text)["custom_id"] for text in Path(self._option(job_id, "--input")).open("rb")]

    def commit(self, job_id: str, part: int, ids: list[str], failed: int = 0) -> Storage:
        storage = Storage(self._option(job_id, "--output"))
        storage.make_folder()
        rows = []
        for number, row_id in enumerate(ids):
            usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
            good = Result({"id": row_id, "usage": usage}, prompt_tokens=5, output_tokens=2)
            bad = Result(error={"type": "invalid_request", "message": "no", "status": 400})
            rows.append((Row(row_id, {}), bad if number < failed else good))
        storage.write(part_name("e", part, OPENAI), encode_part(rows, OPENAI, pa.schema([])))
        progress = {"rows_done": len(ids), "rows_total": 99, "errors": failed}
        storage.write("_progress.json", orjson.dumps(progress))
        return storage

    def finish(self, job_id: str) -> None:
        storage = Storage(self._option(job_id, "--output"))
        assemble(storage, "run", self.input_ids(job_id), OPENAI)
        storage.write(DONE_FILE, b'{"assembled": true}')
        drop_parts(storage)
        self.states[job_id] = "SUCCEEDED"


@pytest.fixture
def jobs() -> ScriptedJobs:
    return ScriptedJobs()


@pytest.fixture
def shop(tmp_path: Path, jobs: ScriptedJobs) -> Iterator[Shop]:
    plain = configuration(tmp_path, **sections(tmp_path, batches={"offline_job_threshold": 5}))
    plain["deployments"]["o"] = {"model": "m", "serves": ["offline"], "engine": {"kind": "vllm"}}
    plain["deployments"]["o-more"] = plain["deployments"]["o"]
    plain["models"]["only"] = plain["models"]["m"]
    plain["deployments"]["o2"] = {"model": "only", "serves": ["offline"], "engine": {"kind": "vllm"}}
    assert OFFLINE["serves"] == plain["deployments"]["d"]["serves"]
    config = TribesConfig.model_validate(plain)
    store = Store(config.state.url)
    store.create()
    store.add_tenants({"a": {}})
    yield shop_of(config, store, ScriptedRunner(), jobs)
    store.close()


def claim(shop: Shop, owner: str = "w", later_s: float = 0.0) -> BatchRun:
    (batch,) = shop.deferred.batches.claim(owner, time.time() + later_s, 10.0, 1, 1)
    return BatchRun(shop, batch)


async def until_started(jobs: ScriptedJobs, job_id: str) -> None:
    await eventually(lambda: job_id in jobs.states)


def final(shop: Shop, batch: Batch) -> Batch:
    found = shop.deferred.batches.get("a", batch.id)
    assert found is not None
    return found


def ten(**more: object) -> bytes:
    return jsonl(*(line(number, **more) for number in range(10)))  # type: ignore[arg-type]


async def test_a_large_batch_is_one_job(shop: Shop, jobs: ScriptedJobs) -> None:
    batch = accept(shop, ten())
    work = asyncio.create_task(claim(shop).run())
    await until_started(jobs, batch.id)
    ids = jobs.input_ids(batch.id)
    jobs.commit(batch.id, 0, ids[:6], failed=2)
    await eventually(lambda: final(shop, batch).completed == 4)
    assert final(shop, batch).failed == 2 and final(shop, batch).status == "in_progress"
    jobs.commit(batch.id, 1, ids[6:])
    jobs.finish(batch.id)
    await work
    done = final(shop, batch)
    assert (done.status, done.mode, done.completed, done.failed, done.total) == ("completed", "job", 8, 2, 10)
    assert [r["custom_id"] for r in read(shop, done.output_file_id)] == ids[2:]
    assert [r["custom_id"] for r in read(shop, done.error_file_id)] == ids[:2]
    assert (done.input_tokens, done.cached_tokens, done.output_tokens) == (40, 8, 16)
    usage = shop.store.usage()
    assert len(usage) == 10 and sum(row.prompt_tokens for row in usage) == 40
    assert {(row.tenant, row.deployment, row.request_class) for row in usage} == {("a", "o", "offline")}
    assert shop.files.folders("jobs") == [] and shop.runner.runs == []  # type: ignore[attr-defined]
    assert jobs.config is not None and jobs.config.deployments == shop.config.deployments
    assert jobs._option(batch.id, "--model") == "m"
    assert jobs.config.state == shop.config.state
    # Its engines are paid for by the records above: the lives go to the deployment that they name, and no tokens do.
    assert "--book-lives" in jobs.commands[batch.id] and "--tenant" not in jobs.commands[batch.id]
    assert jobs.plan is not None and list(jobs.plan.prices) == ["o", "o-more"]
    assert Billing("", None, "m", "", "", jobs.plan.prices).deployment_of("o-more") == "o"


async def test_a_restarted_worker_finds_its_job(shop: Shop, jobs: ScriptedJobs) -> None:
    batch = accept(shop, ten())
    first = asyncio.create_task(claim(shop).run())
    await until_started(jobs, batch.id)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert jobs.states == {batch.id: "RUNNING"}, "a worker that ends leaves its jobs alone"
    second = asyncio.create_task(claim(shop, "w2", 100).run())
    jobs.commit(batch.id, 0, jobs.input_ids(batch.id))
    jobs.finish(batch.id)
    await second
    assert final(shop, batch).completed == 10 and list(jobs.states) == [batch.id]


async def test_a_job_whose_driver_died_is_started_again(shop: Shop, jobs: ScriptedJobs) -> None:
    batch = accept(shop, ten())
    work = asyncio.create_task(claim(shop).run())
    await until_started(jobs, batch.id)
    ids = jobs.input_ids(batch.id)
    jobs.commit(batch.id, 0, ids[:4])
    jobs.states[batch.id] = "FAILED"
    again = f"{batch.id}-2"
    await until_started(jobs, again)
    assert jobs.commands[again] == jobs.commands[batch.id], "the same command goes on where the first stopped"
    jobs.commit(again, 1, ids[4:])
    jobs.finish(again)
    await work
    assert (final(shop, batch).status, final(shop, batch).completed) == ("completed", 10)
    assert len(read(shop, final(shop, batch).output_file_id)) == 10


async def test_a_job_that_always_fails_ends_the_batch_with_what_there_is(shop: Shop, jobs: ScriptedJobs) -> None:
    batch = accept(shop, ten())
    work = asyncio.create_task(claim(shop).run())
    for number in range(1, 6):
        job_id = batch.id if number == 1 else f"{batch.id}-{number}"
        await until_started(jobs, job_id)
        if number == 1:
            jobs.commit(job_id, 0, jobs.input_ids(job_id)[:3])
        jobs.states[job_id] = "FAILED"
    await work
    done = final(shop, batch)
    assert (done.status, done.completed, done.failed) == ("completed", 3, 7)
    assert {r["error"]["code"] for r in read(shop, done.error_file_id)} == {"offline_job_failed"}


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_an_early_end_stops_the_job_and_keeps_its_parts(shop: Shop, jobs: ScriptedJobs, how: str) -> None:
    batch = accept(shop, ten(), life_s=1.0 if how == "expired" else 60.0)
    run = claim(shop)
    work = asyncio.create_task(run.run())
    await until_started(jobs, batch.id)
    ids = jobs.input_ids(batch.id)
    jobs.commit(batch.id, 0, ids[3:7], failed=1)
    if how == "cancelled":
        shop.deferred.batches.cancel("a", batch.id, time.time())
        run.cancel()
    await work
    done = final(shop, batch)
    assert jobs.states == {batch.id: "STOPPED"} and done.status == how
    assert [r["custom_id"] for r in read(shop, done.output_file_id)] == ids[4:7]
    errors = read(shop, done.error_file_id)
    assert [r["custom_id"] for r in errors] == [ids[3], *ids[:3], *ids[7:]]
    assert {r["error"]["code"] for r in errors[1:]} == {f"batch_{how}"}
    assert (done.total, done.completed, done.failed) == (10, 3, 7)


async def test_nothing_is_concluded_while_the_job_cannot_be_asked(shop: Shop, jobs: ScriptedJobs) -> None:
    batch = accept(shop, ten())
    work = asyncio.create_task(claim(shop).run())
    await until_started(jobs, batch.id)
    jobs.away = True
    with pytest.raises(JobRefusedError):
        await work
    assert final(shop, batch).status == "in_progress" and jobs.states == {batch.id: "RUNNING"}
    jobs.away = False
    work = asyncio.create_task(claim(shop, "w2", 100).run())
    jobs.commit(batch.id, 0, jobs.input_ids(batch.id))
    jobs.finish(batch.id)
    await work
    assert final(shop, batch).completed == 10


async def test_bills_of_a_job_are_written_once_however_often_it_ends(
    shop: Shop, jobs: ScriptedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = accept(shop, ten())
    jobs_done = asyncio.create_task(claim(shop).run())
    await until_started(jobs, batch.id)
    jobs.commit(batch.id, 0, jobs.input_ids(batch.id))
    with monkeypatch.context() as patch:
        patch.setattr(shop.deferred.batches, "finish", lambda *_: 1 / 0)
        jobs.finish(batch.id)
        with pytest.raises(ZeroDivisionError):
            await jobs_done
    assert len(shop.store.usage()) == 10
    await claim(shop, "w2", 100).run()
    assert len(shop.store.usage()) == 10 and final(shop, batch).status == "completed"
    assert len(read(shop, final(shop, batch).output_file_id)) == 10


async def test_jobs_wait_for_each_other(shop: Shop, jobs: ScriptedJobs) -> None:
    batches = [accept(shop, ten()) for _ in range(3)]
    claimed = shop.deferred.batches.claim("w", time.time(), 10.0, 9, 9)
    work = [asyncio.create_task(BatchRun(shop, batch).run()) for batch in claimed]
    await eventually(lambda: len(jobs.states) == 2)
    await asyncio.sleep(0.2)
    assert len(jobs.states) == 2, "max_jobs"
    for _ in batches:
        for job_id in [job_id for job_id, state in jobs.states.items() if state == "RUNNING"]:
            jobs.commit(job_id, 0, jobs.input_ids(job_id))
            jobs.finish(job_id)
        await asyncio.sleep(0.2)
    await asyncio.gather(*work)
    assert {final(shop, batch).completed for batch in batches} == {10}


async def test_which_batches_become_jobs(shop: Shop, jobs: ScriptedJobs) -> None:
    small = accept(shop, jsonl(*(line(number) for number in range(5))))
    await claim(shop).run()
    assert (final(shop, small).mode, final(shop, small).completed) == ("queue", 5)
    tiny = accept(shop, jsonl(line(0, model="only")))  # no deployment behind the gateway: a job, however small
    work = asyncio.create_task(claim(shop).run())
    await until_started(jobs, tiny.id)
    jobs.commit(tiny.id, 0, ["c0"])
    jobs.finish(tiny.id)
    await work
    assert (final(shop, tiny).mode, final(shop, tiny).completed) == ("job", 1)
    mixed = accept(shop, jsonl(line(0), line(1, model="only")))
    await claim(shop).run()
    problems = final(shop, mixed).problems
    assert final(shop, mixed).status == "failed" and problems and problems[0]["code"] == "model_mismatch"
    assert json.dumps(problems)


class Dashboard:
    """Ray's job client, as far as its answers go."""

    def __init__(self, jobs: dict[str, str]) -> None:
        self.jobs = jobs
        self.error: Exception | None = None

    def get_job_status(self, job_id: str) -> object:
        if self.error is not None:
            raise self.error
        if job_id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")
        return type("Status", (), {"value": self.jobs[job_id]})()

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: object, metadata: object) -> None:
        if self.error is not None or submission_id in self.jobs:
            raise self.error or RuntimeError("Request failed with status code 500: already exists")
        self.jobs[submission_id] = "PENDING"

    def stop_job(self, job_id: str) -> None:
        if self.error is not None or job_id not in self.jobs:
            raise self.error or RuntimeError("Request failed with status code 404")
        self.jobs[job_id] = "STOPPED"


def test_what_ray_says_about_jobs(tmp_path: Path) -> None:
    dashboard, jobs = Dashboard({}), RayJobs()
    jobs._connected = dashboard
    assert jobs.status("b") is None
    jobs.submit("b", "true", tmp_path)
    jobs.submit("b", "true", tmp_path)  # another worker was faster, or the answer to the first call was lost
    assert jobs.status("b") == "PENDING"
    jobs.stop("b")
    jobs.stop("unknown")
    assert jobs.status("b") == "STOPPED"
    for error in (RuntimeError("Request failed with status code 503: away"), ConnectionError("refused")):
        dashboard.error = error
        with pytest.raises(JobRefusedError):
            jobs.status("b")
        jobs._connected = dashboard
        with pytest.raises(JobRefusedError):
            jobs.submit("c", "true", tmp_path)
        jobs._connected = dashboard
    with pytest.raises(JobRefusedError, match="does not answer"):
        jobs.stop("b")
