"""Messages survive every pickler whole, and quickly."""

from __future__ import annotations

import copy
import pickle

import pytest
from ray import cloudpickle

from cluster.scheduling import Lease, Prepaid, RateLimitState, Refusal, Ticket, TokenUsage
from cluster.vocabulary import RequestClass
from serve_apps.messages import Answers, Exchange, Grant, Hello, Memory, PrepaidGrant

TICKET = Ticket(
    "t", "gw", "tenant", RequestClass.SEMI_ONLINE, 10, 20, 1.5, session="s", avoid=("r",), prefix=(1, 2**63)
)
LEASE = Lease("l", TICKET, "r", 2.5)
LIMITS = RateLimitState(10, 9, 6.0, None, None, None)
MESSAGES = [
    Hello("gw", [TICKET], [LEASE], [Prepaid("p", "r", (RequestClass.ONLINE,), "gw")], Memory("x", frozenset("g"), {})),
    Exchange("gw", [TICKET], ["c"], [("l", TokenUsage(1, 0, 2)), ("m", None)], {"l": 3}, ["r"], [("p", TICKET, 1.0)]),
    Answers(
        [Grant(LEASE, "d", "http://r", "key", LIMITS)],
        [Refusal("t", 429, "c", "m", 1.0, LIMITS)],
        ["lost"],
        [PrepaidGrant("p", "r", (RequestClass.ONLINE,), "d", "http://r", "key")],
        limited=frozenset({"tenant"}),
    ),
    Answers(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_round_trip(message: Hello | Exchange | Answers) -> None:
    assert pickle.loads(pickle.dumps(message)) == message
    assert pickle.loads(cloudpickle.dumps(message)) == message
    assert copy.deepcopy(message) == message


def test_an_address_is_packed_once() -> None:
    one = len(pickle.dumps(Answers([Grant(LEASE, "d", "http://r", "key")])))
    url = "http://" + "r" * 200
    key = "k" * 64
    grants = [Grant(Lease(f"l{n}", TICKET, "r", 2.5), "d", url, key) for n in range(100)]
    assert len(pickle.dumps(Answers(grants))) < one + 264 + 100 * 60
