"""Rows of background requests: a bound for each tenant, an end for what nobody began, and cheap to look through."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import inspect

from cluster.state import Store
from cluster.state.deferred import KEEP_S, DeferredStore, TooManyBackgroundError

NOW_S = 1e9
LIFE_S = 60.0


@pytest.fixture
def rows(store: Store) -> DeferredStore:
    store.add_tenants({"a": {}, "b": {}})
    return DeferredStore(store)


def accept(rows: DeferredStore, id: str, tenant: str = "a", most: int | None = None) -> bool:
    """Whether there was room for it."""
    place = (tenant, "k", "/v1/responses", b"{}", "online")
    try:
        rows.create_background(id, *place, NOW_S, NOW_S + LIFE_S, most)
    except TooManyBackgroundError:
        return False
    return True


def status(rows: DeferredStore, id: str) -> str | None:
    row = rows.get_background("a", id)
    return row.status if row else None


def test_a_tenant_has_so_many_unfinished(rows: DeferredStore) -> None:
    assert [accept(rows, f"a{number}", most=2) for number in range(3)] == [True, True, False]
    assert accept(rows, "b0", "b", most=2), "the others' are not counted"
    assert accept(rows, "a-free")
    (first, *_) = rows.claim_background("w", NOW_S, 10.0, 1, 9)
    assert not accept(rows, "a3", most=3), "what runs is not finished"
    rows.finish_background(first.id, first.fence, "completed", 200, b"{}", (), NOW_S)
    assert accept(rows, "a3", most=3) and not accept(rows, "a4", most=3)


def test_those_that_come_at_once_are_counted(rows: DeferredStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        accepted = list(pool.map(lambda number: accept(rows, f"a{number}", most=5), range(24)))
    assert accepted.count(True) == 5


def test_what_nobody_began_in_time_is_incomplete_and_can_be_read(rows: DeferredStore) -> None:
    for id in ("late", "cancelled", "running"):
        accept(rows, id)
    rows.cancel_background("a", "cancelled", NOW_S)
    claimed = {row.id: row for row in rows.claim_background("w", NOW_S, 10.0, 9, 9)}
    rows.release_background("late", claimed["late"].fence)
    assert rows.purge_background(NOW_S + LIFE_S - 1) == 0 and status(rows, "late") == "queued"
    end_s = NOW_S + LIFE_S
    assert rows.purge_background(end_s) == 0
    late = rows.get_background("a", "late")
    assert late is not None and (late.status, late.finished_at_s, late.response) == ("incomplete", end_s, None)
    assert (status(rows, "cancelled"), status(rows, "running")) == ("cancelled", "in_progress")
    assert rows.purge_background(end_s + KEEP_S - 1) == 0 and status(rows, "late") == "incomplete"
    assert rows.purge_background(end_s + KEEP_S) == 2
    assert (status(rows, "late"), status(rows, "cancelled"), status(rows, "running")) == (None, None, "in_progress")


def test_an_ended_one_is_not_ended_again(rows: DeferredStore) -> None:
    accept(rows, "r")
    (row,) = rows.claim_background("w", NOW_S, 10.0, 9, 9)
    rows.finish_background("r", row.fence, "completed", 200, b"{}", (), NOW_S + 1)
    rows.purge_background(NOW_S + LIFE_S)
    found = rows.get_background("a", "r")
    assert found is not None and (found.status, found.finished_at_s) == ("completed", NOW_S + 1)


def test_bodies_lie_behind_everything_that_is_searched(store: Store) -> None:
    """SQLite reads a row from its front: columns behind a body of megabytes cost reading that."""
    columns = [column["name"] for column in inspect(store.engine).get_columns("background_requests")]
    assert columns[-2:] == ["body", "response"]
