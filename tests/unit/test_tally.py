"""Counters that are told of a second's events at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.metrics import tally


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, dict[str, str]]]:
    """What Ray hears."""
    told: list[tuple[float, dict[str, str]]] = []

    class Recorder:
        def __init__(self, *_: Any) -> None:
            pass

        def inc(self, value: float, tags: dict[str, str]) -> None:
            told.append((value, tags))

    monkeypatch.setattr(tally, "Counter", Recorder)
    monkeypatch.setattr(tally, "TELL_S", 0.02)
    return told


async def test_a_seconds_events_are_one_record_for_each_set_of_tags(told: list[tuple[float, dict[str, str]]]) -> None:
    counter = tally.Tally("requests", "Requests", ("model", "status"))
    for _ in range(3):
        counter.add(1, "m", "200")
    counter.add(0.5, "m", "502")
    assert told == []
    await asyncio.sleep(0.05)
    assert told == [(3, {"model": "m", "status": "200"}), (0.5, {"model": "m", "status": "502"})]


async def test_what_was_told_is_not_told_again(told: list[tuple[float, dict[str, str]]]) -> None:
    counter = tally.Tally("requests", "Requests", ("model",))
    counter.add(1, "m")
    await asyncio.sleep(0.05)
    counter.add(2, "m")
    await asyncio.sleep(0.05)
    assert [value for value, _ in told] == [1, 2]


async def test_a_missing_tag_is_an_error(told: list[tuple[float, dict[str, str]]]) -> None:
    counter = tally.Tally("requests", "Requests", ("model", "status"))
    counter.add(1, "m")
    with pytest.raises(ValueError, match="shorter"):
        counter.tell()
