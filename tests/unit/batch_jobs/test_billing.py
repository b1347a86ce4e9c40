"""What a job used is in the cluster's ledger once, whoever was killed in between; without a tenant nothing is."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from batch_jobs.errors import JobRefused
from batch_jobs.job import Job
from batch_jobs.output.parts import Totals
from batch_jobs.plan import make_plan
from batch_jobs.storage import Storage
from batch_jobs.work import billing
from batch_jobs.work.billing import Bill, Billing, Span, billing_of
from batch_jobs.work.ledger_actor import LedgerActor
from cluster.scheduling import ServiceWeights
from cluster.state import Period, Store
from tests.support.offline_jobs import request, write_config, write_jsonl
from tests.unit.batch_jobs.test_job import finish
from tests.unit.batch_jobs.test_ledger_actor import PART, actor_in, one_row_staged, stats
from tests.unit.state.records import record


def billing_in(folder: Path) -> Billing:
    return Billing(f"sqlite:///{folder}/state.db", "team-a", "m", str(folder), "run", {"p": 3.6, "q": 7.2})


def billed(actor: LedgerActor, folder: Path) -> LedgerActor:
    actor._bill = Bill(billing_in(folder))
    return actor


async def test_a_published_part_and_its_engine_are_on_the_bill(tmp_path: Path) -> None:
    actor = billed(await one_row_staged(tmp_path), tmp_path)
    assert await actor.publish("e", PART, stats(0)) == []
    assert await actor.settle(1) is None
    store = Store(billing_in(tmp_path).state_url)
    (record,) = store.usage()
    assert (record.tenant, record.model, record.deployment, record.request_class) == ("team-a", "m", "p", "offline")
    assert (record.requests, record.prompt_tokens, record.cached_tokens, record.output_tokens) == (1, 5, 2, 3)
    assert abs(record.finished_at_s - time.time()) < 60
    (life,) = store.replica_seconds()
    assert life["deployment"] == "p" and 0 < life["seconds"] < 60
    assert life["usd"] == pytest.approx(life["seconds"] / 1000)
    await actor.progress()  # writes in the background, and again nothing new
    assert actor._billed is not None and await actor._billed is None
    assert len(store.usage()) == 1
    (line,) = store.usage_lines(Period(), ServiceWeights())
    assert line.tenant == "team-a" and line.usd > 0


async def test_lives_alone_are_the_first_pools_at_their_own_price(tmp_path: Path) -> None:
    """Whoever bills the tokens from the output names that pool, and pays for all engines."""
    settings = replace(billing_in(tmp_path), tenant=None)
    bill = Bill(settings)
    bill.book("part-e-00000.jsonl", Totals(rows=3, output_tokens=9), "q")
    spans = [Span("e1", "p", 0.0, 100.0), Span("e2", "q", 0.0, 100.0)]
    assert await bill.settle(spans, 1) is None
    store = Store(settings.state_url)
    assert store.usage() == [] and store.tenants() == {}
    (life,) = store.replica_seconds()
    assert (life["deployment"], life["seconds"]) == ("p", 200.0)
    assert life["usd"] == pytest.approx(0.1 + 0.2)
    store.add_usage([record(1, tenant="t", deployment="p", finished_at_s=50.0)])
    (line,) = store.usage_lines(Period(), ServiceWeights())
    assert (line.tenant, line.usd, line.replica_seconds) == ("t", pytest.approx(0.3), pytest.approx(200.0))


def test_what_a_job_books(tmp_path: Path) -> None:
    """Nothing; the lives of its engines; or those and its rows."""
    plan = make_plan(str(write_config(tmp_path)), None)
    storage = Storage(str(tmp_path / "out"))
    booked = [
        billing_of(request(tmp_path, tmp_path / "in", **options), plan, storage, "run")
        for options in ({}, {"book_lives": True}, {"tenant": "team-a"}, {"tenant": "team-a", "book_lives": True})
    ]
    assert booked[0] is None and [b and b.tenant for b in booked[1:]] == [None, "team-a", "team-a"]
    assert booked[1] is not None and booked[1].deployment_of("batch") == "batch"


async def test_while_the_store_is_away_the_bill_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(billing, "PAUSE_S", 0.0)
    settings = billing_in(tmp_path)
    (tmp_path / "state.db").mkdir()  # no file can be opened there
    bill = Bill(settings)
    bill.book("part-e-00000.jsonl", Totals(rows=3, output_tokens=9), "q")
    problem = await bill.settle((), 2)
    assert problem is not None and "open" in problem
    (tmp_path / "state.db").rmdir()
    assert await bill.settle((), 2) is None
    (record,) = Store(settings.state_url).usage()
    assert (record.deployment, record.requests, record.output_tokens) == ("q", 3, 9)


async def test_a_part_of_two_runs_is_one_record(tmp_path: Path) -> None:
    for run in ("run", "rerun"):
        bill = Bill(replace(billing_in(tmp_path), run_id=run))
        bill.book("part-e-00000.jsonl", Totals(rows=3))
        bill.book("part-e-00001.jsonl", Totals(rows=4))
        bill.write_once()
    other = Bill(replace(billing_in(tmp_path), output="elsewhere"))
    other.book("part-e-00000.jsonl", Totals(rows=5))
    other.write_once()
    assert sorted(row.requests for row in Store(billing_in(tmp_path).state_url).usage()) == [3, 4, 5]


def run_job(folder: Path, **options: object) -> int:
    write_config(folder)
    source = write_jsonl(folder / "in.jsonl", [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": ""}])
    finish(folder)
    return Job(request(folder, source, **options), Console(file=sys.stderr)).run()


def test_a_rerun_books_what_a_killed_run_committed(tmp_path: Path) -> None:
    assert run_job(tmp_path, tenant="team-a") == 0
    assert run_job(tmp_path, tenant="team-a") == 0
    (path,) = tmp_path.glob("**/state.db")
    store = Store(f"sqlite:///{path}")
    (row,) = store.usage_totals()
    assert (row["tenant"], row["requests"], row["prompt_tokens"], row["output_tokens"]) == ("team-a", 2, 3, 2)
    assert "team-a" in store.tenants()


def test_nobody_is_billed_unless_named(tmp_path: Path) -> None:
    assert run_job(tmp_path) == 0
    assert not list(tmp_path.glob("**/state.db"))
    assert actor_in(tmp_path / "other")._bill is None


def test_where_only_lives_are_booked_no_rows_are(tmp_path: Path) -> None:
    assert run_job(tmp_path, book_lives=True) == 0
    assert not list(tmp_path.glob("**/state.db")), "no engine lived in this run, so there was nothing to write"


def test_what_is_no_tenant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobRefused, match="--tenant 'Team A'"):
        run_job(tmp_path, tenant="Team A")
