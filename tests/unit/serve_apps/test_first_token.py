"""The time from a lease to its first token reaches the dispatcher, which measures replicas by it."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.scheduling import TokenUsage
from serve_apps.gateway.courses.tickets import with_first_token
from serve_apps.messages import Exchange


def course(ttft_s: float | None) -> Any:
    return SimpleNamespace(ttft_s=ttft_s, queue_wait_s=0.5)


def test_a_stream_tells_it_counted_from_the_lease() -> None:
    used = with_first_token(TokenUsage(100, 20, 7), course(1.75))
    assert used == TokenUsage(100, 20, 7) and used is not None and used.first_token_s == pytest.approx(1.25)


def test_an_answer_without_one_or_without_usage_is_left_alone() -> None:
    usage = TokenUsage(100, 20, 7)
    assert with_first_token(usage, course(None)) is usage and usage.first_token_s is None
    assert with_first_token(None, course(1.0)) is None


def test_it_survives_the_way_to_the_dispatcher() -> None:
    message = Exchange("gw", releases=[("lease", TokenUsage(100, 20, 7, 1.25))])
    (_, usage), *_ = pickle.loads(pickle.dumps(message)).releases
    assert usage.first_token_s == 1.25
