"""Role: an answer as the comparison sees it. Owns: reading it from bodies of an OpenAI API, as both engines fill them.

Must not know: how the bodies came. What an engine does not give stays empty: log-probabilities, token ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class UnreadableAnswer(ValueError):
    """A body of another shape than the OpenAI API's."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One greedy answer. The tuples have one item a token, or are empty."""

    text: str
    tokens: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Of the tokens, in nats."""
    tops: tuple[Mapping[str, float], ...] = ()
    """The likeliest tokens at each position, with their log-probabilities."""
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()


def read_answer(body: Mapping[str, Any]) -> Answer:
    """From the body of a chat completion, asked with `logprobs`, `top_logprobs` and `return_token_ids`."""
    try:
        choice = body["choices"][0]
        text = choice["message"].get("content") or ""
        steps = (choice.get("logprobs") or {}).get("content") or []
        return Answer(
            text=str(text),
            tokens=tuple(str(step["token"]) for step in steps),
            logprobs=tuple(float(step["logprob"]) for step in steps),
            tops=tuple(
                {str(t["token"]): float(t["logprob"]) for t in step.get("top_logprobs") or ()} for step in steps
            ),
            prompt_ids=_ids(body.get("prompt_token_ids") or choice.get("prompt_token_ids")),
            token_ids=_ids(choice.get("token_ids")),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableAnswer(f"not a chat completion ({type(error).__name__}: {error})") from error


def echoed_logprobs(body: Mapping[str, Any], answer: Answer) -> tuple[float, ...] | None:
    """The log-probabilities that another model gives the tokens of `answer`, from a completion that echoed its prompt
    and its tokens. None where the body does not have them."""
    try:
        given = body["choices"][0]["logprobs"]["token_logprobs"]
    except (KeyError, IndexError, TypeError):
        return None
    if not isinstance(given, Sequence):
        return None
    first = len(answer.prompt_ids)
    scored = given[first : first + len(answer.token_ids)]
    if len(scored) < len(answer.token_ids) or not all(isinstance(value, int | float) for value in scored):
        return None
    return tuple(float(value) for value in scored)


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(int(item) for item in value) if isinstance(value, list) else ()
