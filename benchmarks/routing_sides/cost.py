"""What routing costs the processor: hashes of a prompt in a gateway, and a decision in the dispatcher.

Owns: prompts and loops. Must not know: what is gained by it.
"""

from __future__ import annotations

import random
import time
from collections import deque
from itertools import count

from cluster.scheduling import ClassPolicy, Replica, RequestQueue, Ticket, TokenUsage
from cluster.vocabulary import RequestClass
from serve_apps.gateway.prefix import leading_blocks

PROMPT_BYTES = (1024, 4096, 16384, 65536)
ONLINE = RequestClass.ONLINE
REPLICAS, SLOTS, RUNNING, SESSIONS = 16, 64, 512, 4096
TURN_TOKENS = 2048
USAGE = TokenUsage(TURN_TOKENS, 0, 50, first_token_s=0.1)
KINDS = {"plain": (False, False), "session": (True, False), "session_and_prefix": (True, True)}


def hashing_us(prompt_bytes: int, rounds: int) -> float:
    """Microseconds of processor time for a chat of that length in messages of half a kilobyte."""
    messages = [{"role": "user", "content": "x" * 512} for _ in range(prompt_bytes // 512)]
    started = time.process_time()
    for _ in range(rounds):
        leading_blocks({"messages": messages}, "salt")
    return (time.process_time() - started) / rounds * 1e6


def request_us(kind: str, requests: int) -> float:
    """Microseconds of processor time in which the queue takes, grants and ends a request, on 16 replicas of which half
    the slots are taken."""
    queue = RequestQueue({ONLINE: ClassPolicy(max_queued=10**6, max_wait_s=10**6)})
    for number in range(REPLICAS):
        queue.put_replica(Replica(f"r{number}", "d", (ONLINE,), SLOTS), 0.0)
    with_session, with_prefix = KINDS[kind]
    rng = random.Random(0)
    tickets = []
    for number in range(requests):
        session = rng.randrange(SESSIONS)
        blocks = tuple((session << 20) + place for place in range(TURN_TOKENS // 64)) if with_prefix else ()
        name = f"s{session}" if with_session else None
        tickets.append(Ticket(f"t{number}", "g", "a", ONLINE, TURN_TOKENS, 100, number * 1e-2, name, prefix=blocks))
    running: deque[str] = deque()
    numbers = count()
    started = time.process_time()
    for ticket in tickets:
        now_s = next(numbers) * 1e-2
        queue.submit(ticket, now_s)
        running.extend(lease.lease_id for lease in queue.grant(now_s))
        if len(running) > RUNNING:
            queue.release(running.popleft(), USAGE, now_s)
    return (time.process_time() - started) / requests * 1e6
