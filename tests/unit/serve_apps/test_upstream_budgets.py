"""Who may go to an upstream, and for how much: tenants, budgets, limits."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.state import UsageRecord
from tests.unit.serve_apps.overflow import ask, overflowing
from tests.unit.serve_apps.scripted_upstream import whole


@pytest.mark.parametrize(
    ("fields", "own", "goes"),
    [
        ({"tenants": ["b"]}, {}, False),
        ({"tenants": ["a"]}, {}, True),
        ({}, {"upstreams": "never"}, False),
        ({}, {"upstreams": {"up": "never"}}, False),
        ({}, {"upstreams": {"up": "on_failure"}}, False),
        ({"use": "never"}, {"upstreams": {"*": "on_overload"}}, True),
        ({"use": "on_failure"}, {"upstreams": {"up": {"use": "on_overload"}, "*": "never"}}, True),
    ],
)
async def test_who_may_go_where(tmp_path: Path, fields: dict[str, Any], own: dict[str, Any], goes: bool) -> None:
    tenants = {"a": own, "b": {}}
    async with overflowing(tmp_path, house_tenants=tenants, **fields) as (porch, far):
        assert ((await ask(porch, "a"))[0], len(far.asked)) == ((200, 1) if goes else (429, 0))


def paid(usd: float, name: str = "up", tenant: str = "a", at_s: float | None = None) -> UsageRecord:
    deployment = f"upstream:{name}"
    at_s = time.time() if at_s is None else at_s
    return UsageRecord(
        f"r-{usd}-{name}-{tenant}", tenant, "k", "m", deployment, "online", 1, 0, 1, 0.0, None, 1.0, 200, at_s,
        upstream_usd=usd,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "goes"),
    [
        ([], True),
        ([paid(4.9)], True),
        ([paid(4.99999, tenant="b")], False),
        ([paid(5.0, "another")], True),
        ([paid(5.0, at_s=time.time() - 86400)], True),
    ],
)
async def test_the_budget_of_an_upstream_is_all_tenants(tmp_path: Path, before: list[UsageRecord], goes: bool) -> None:
    """16 tokens and more at 100 dollars a million are more than what is left of 5 dollars in the third case."""
    async with overflowing(tmp_path, usd_per_day=5, house_tenants={"a": {}, "b": {}}) as (porch, far):
        porch.store.add_usage(before)
        assert ((await ask(porch, "a", max_tokens=16))[0], len(far.asked)) == ((200, 1) if goes else (429, 0))


async def test_a_tenant_has_a_budget_of_its_own(tmp_path: Path) -> None:
    tenants = {"a": {"upstreams": {"up": {"usd_per_day": 2}}}, "b": {}}
    async with overflowing(tmp_path, usd_per_day=5, house_tenants=tenants) as (porch, far):
        porch.store.add_usage([paid(1.9999, tenant="a")])
        assert (await ask(porch, "a", max_tokens=16))[0] == 429
        assert (await ask(porch, "b", max_tokens=16))[0] == 200 and len(far.asked) == 1


async def test_requests_that_run_at_once_share_what_is_left(tmp_path: Path) -> None:
    """0.11 dollars are room for one request of at most 1,000 tokens at 100 dollars a million, not for two."""
    slow = whole()
    slow.wait_s = 0.3
    async with overflowing(tmp_path, slow, usd_per_day=0.11) as (porch, far):
        answers = await asyncio.gather(*(ask(porch, max_tokens=1000) for _ in range(3)))
        assert sorted(status for status, _, _ in answers) == [200, 429, 429]
        assert (await ask(porch, max_tokens=1000))[0] == 200  # they came to less than they might have
        assert len(far.asked) == 2


async def test_a_tenant_over_its_own_limits_does_not_escape_to_an_upstream(tmp_path: Path) -> None:
    tenants = {"a": {"limits": {"requests_per_minute": 2}}, "b": {"limits": {"usd_per_day": 1}}}
    async with overflowing(tmp_path, house_tenants=tenants) as (porch, far):
        assert [(await ask(porch, "a"))[0] for _ in range(4)] == [200, 200, 429, 429]
        porch.store.add_usage([paid(1.0, tenant="b")])
        porch.gateway._upstreams._books._tried_at_s = float("-inf")  # what was read is older than what was written
        assert (await ask(porch, "b"))[0] == 429 and len(far.asked) == 2
