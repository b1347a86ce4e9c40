"""Who asks what, and when: conversations on MT-bench's questions, some of them much busier than others.

The rates at which users ask fall off as Zipf's law. Each user belongs to one of a few applications with a system prompt
of its own, begins a conversation with something pasted, and goes on with it until its prompt might not fit any more;
then begins another. What is asked does not depend on the answers, so every side gets the same questions.

Must not know: who answers.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from benchmarks.routing_sides.workload import CHAT_FILE, zipf_rates

APPLICATIONS = 4
SYSTEM_CHARS, PASTED_CHARS = 400, 800
LONGEST_QUESTION_CHARS = 250
"""Longer ones are left out: a small machine prefills some hundred tokens a second."""
ANSWER_TOKENS = 12
LONGEST_PROMPT_TOKENS = 1800
"""Where a conversation ends, by an estimate that is never too low: the engine takes 2,048 with the answer."""
LEAST_CHARS_PER_TOKEN = 3
TEMPLATE_TOKENS = 16
"""Of a question and its answer, at most."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One user message. `system` is that of the conversation which begins with it; None: an earlier one goes on."""

    due_s: float
    text: str
    system: str | None = None


def chats(folder: Path, users: int, requests_per_s: float, seconds: float, mark: str) -> list[list[Ask]]:
    """What each user asks. `mark` is in all system prompts: loads with different ones have no prefix in common."""
    rng = random.Random(mark)
    questions = _questions(folder)
    asked = []
    for user, rate in enumerate(zipf_rates(users, requests_per_s)):
        system = _system(questions, user % APPLICATIONS, mark)
        texts: list[str] = []
        asks: list[Ask] = []
        at_s = rng.expovariate(rate)
        while at_s < seconds:
            begins = not texts
            if begins:
                texts = _conversation(rng, questions, len(system))
            asks.append(Ask(at_s, texts.pop(0), system if begins else None))
            at_s += rng.expovariate(rate)
        asked.append(asks)
    return asked


def _questions(folder: Path) -> list[list[str]]:
    with (folder / CHAT_FILE).open() as file:
        rows = [json.loads(line)["turns"] for line in file]
    return [turns for turns in rows if all(len(turn) <= LONGEST_QUESTION_CHARS for turn in turns)]


def _system(questions: list[list[str]], application: int, mark: str) -> str:
    """An instruction of fixed length; questions stand for its text."""
    text = " ".join(turn for turns in questions[application::APPLICATIONS] for turn in turns)
    return f"{mark}, application {application}. Questions like these come: {text}"[:SYSTEM_CHARS]


def _conversation(rng: random.Random, questions: list[list[str]], system_chars: int) -> list[str]:
    """User messages, the first with something to read before it."""
    page = " ".join(turn for turns in rng.sample(questions, 12) for turn in turns)[:PASTED_CHARS]
    texts: list[str] = []
    tokens = (system_chars + len(page)) // LEAST_CHARS_PER_TOKEN
    while True:
        for turn in rng.choice(questions):
            text = f"Read this first: {page}\n\n{turn}" if not texts else turn
            tokens += len(turn) // LEAST_CHARS_PER_TOKEN + ANSWER_TOKENS + TEMPLATE_TOKENS
            if tokens > LONGEST_PROMPT_TOKENS and texts:
                return texts
            texts.append(text)
