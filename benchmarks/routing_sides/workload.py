"""Who asks for what, and when: conversations that come back with all that was said before.

A load is a list of chains. The requests of a chain follow each other: one is sent when it is due, but not before the
one before it was answered and read.

- Chats: users whose questions are MT-bench's, with answers of random length. The rates at which users ask fall off as
  Zipf's law; each goes on with a conversation until it is about `TURNS` turns old, then begins another. Users belong to
  four applications with system prompts of their own. A block is 64 tokens.
- The Mooncake trace: prompts as recorded hashes of blocks of 512 tokens, at recorded times stretched to the wanted
  load; every request is a chain of its own. It names no sessions: the block after the common first one stands for the
  hash of the leading messages that a gateway would take.

Must not know: engines, routers.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

CHAT_FILE, TRACE_FILE = "mt_bench.jsonl", "mooncake_conversation.jsonl"
CHAT_BLOCK, TRACE_BLOCK = 64, 512
"""Tokens in a block of the engines' caches."""
GATEWAY_BLOCK, GATEWAY_BLOCKS = 64, 64
"""What a gateway hashes of a prompt: tokens in a block, blocks at most."""
BYTES_PER_TOKEN = 4
APPLICATIONS = (256, 512, 1024, 2048)
"""Tokens of their system prompts."""
TURNS = 10
ZIPF = 1.1
READING_S = 2.0
"""Least time between an answer and the user's next question."""
FASTEST_S = 3.0
"""Least mean time between two questions of a user."""
ANSWER_TOKENS, ANSWER_SIGMA, LONGEST_ANSWER = 220.0, 0.7, 1000
PASTED_SHARE, PASTED_TOKENS, PASTED_SIGMA, LONGEST_PASTED = 0.25, 1500.0, 0.8, 8000
"""Every fourth question comes with something to read: a file, a page, the output of a tool."""
TRACE_MOVED_S = 0.5
TENANTS = 4


@dataclass(slots=True)
class Request:
    """One request as the client knows it in hindsight."""

    number: int
    tenant: str
    session: str
    due_at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    """Chained hashes of the prompt's whole blocks."""
    answer_blocks: tuple[int, ...]
    """Blocks that are whole once the answer is there; empty where the trace does not tell."""
    prefix: tuple[int, ...]
    """What a gateway hashes of the prompt."""


Chain = list[Request]


@dataclass(frozen=True, slots=True)
class Load:
    """Chains of requests, the size of their blocks, and when the counting begins."""

    chains: list[Chain]
    block_tokens: int
    counted_from_s: float
    reading_s: float


def chats(folder: Path, users: int, requests_per_s: float, seconds: float, seed: int) -> Load:
    """Counted from a fifth of the time on: the first turns of all find empty caches."""
    rng = random.Random(seed)
    questions = _questions(folder)
    names, numbers = itertools.count(1), itertools.count()
    chains = []
    for user, rate in enumerate(zipf_rates(users, requests_per_s)):
        application = user % len(APPLICATIONS)
        chain: Chain = []
        at_s = rng.expovariate(rate)
        session, history, left = 0, 0, 0
        while at_s < seconds:
            if not left:
                session, history = next(names), APPLICATIONS[application]
                left = rng.randint(2, 2 * TURNS - 2)
            history += rng.choice(questions)
            if rng.random() < PASTED_SHARE:
                history += _size(rng, PASTED_TOKENS, PASTED_SIGMA, LONGEST_PASTED)
            answer = _size(rng, ANSWER_TOKENS, ANSWER_SIGMA, LONGEST_ANSWER)
            chain.append(_turn(next(numbers), application, session, at_s, history, answer))
            history += answer
            left -= 1
            at_s += rng.expovariate(rate)
        if chain:
            chains.append(chain)
    return Load(chains, CHAT_BLOCK, seconds / 5, READING_S)


def trace(folder: Path, requests: int, stretch: float, seed: int, first: int = 0) -> Load:
    """So many requests of the recording from number `first` on, with `stretch` times as much time between them; every
    seed but 0 moves them by up to half a second. Counted from a fifth of the time on."""
    rng = random.Random(seed)
    chains = []
    begins_ms = 0
    with (folder / TRACE_FILE).open() as file:
        for number, line in enumerate(itertools.islice(file, first, first + requests)):
            row = json.loads(line)
            begins_ms = row["timestamp"] if number == 0 else begins_ms
            blocks = tuple(row["hash_ids"][: row["input_length"] // TRACE_BLOCK])
            at_s = (row["timestamp"] - begins_ms) / 1000 * stretch + (rng.uniform(0, TRACE_MOVED_S) if seed else 0.0)
            name = row["hash_ids"][min(1, len(row["hash_ids"]) - 1)]
            request = Request(
                number, f"t{name % TENANTS}", f"s{name}", at_s, row["input_length"], row["output_length"],
                blocks, (), _fine(blocks),
            )  # fmt: skip
            chains.append([request])
    last_s = max(chain[0].due_at_s for chain in chains)
    return Load(chains, TRACE_BLOCK, last_s / 5, 0.0)


def _size(rng: random.Random, middle: float, sigma: float, most: int) -> int:
    """Log-normal."""
    return min(most, max(8, round(middle * rng.lognormvariate(0, sigma))))


def _questions(folder: Path) -> list[int]:
    """Tokens of every turn of every question."""
    with (folder / CHAT_FILE).open() as file:
        rows = [json.loads(line) for line in file]
    return [max(4, len(turn) // BYTES_PER_TOKEN) for row in rows for turn in row["turns"]]


def zipf_rates(users: int, requests_per_s: float) -> list[float]:
    """Zipf's law, with nobody faster than a person; what that cuts off the others have more of."""
    weights = [(rank + 1) ** -ZIPF for rank in range(users)]
    factor = requests_per_s / sum(weights)
    for _ in range(20):
        total = sum(min(1 / FASTEST_S, factor * weight) for weight in weights)
        factor *= requests_per_s / total
    return [min(1 / FASTEST_S, factor * weight) for weight in weights]


def _turn(number: int, application: int, session: int, at_s: float, prompt_tokens: int, answer: int) -> Request:
    shared = APPLICATIONS[application] // CHAT_BLOCK

    def upto(tokens: int) -> list[int]:
        whole = tokens // CHAT_BLOCK
        own = [(session << 20) + place for place in range(shared, whole)]
        return [-1 - (application << 10) - place for place in range(min(shared, whole))] + own

    blocks = tuple(upto(prompt_tokens))
    after = upto(prompt_tokens + answer)[len(blocks) :]
    prefix = blocks[:GATEWAY_BLOCKS]
    return Request(number, f"t{application}", f"s{session}", at_s, prompt_tokens, answer, blocks, tuple(after), prefix)


def _fine(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """The trace's blocks cut into those of a gateway."""
    pieces = TRACE_BLOCK // GATEWAY_BLOCK
    fine = (block * pieces + piece for block in blocks[: GATEWAY_BLOCKS // pieces] for piece in range(pieces))
    return tuple(fine)
