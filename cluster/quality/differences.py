"""Role: what differs between two answers to one prompt. Owns: the formulas. Must not know: other prompts, verdicts.

Both are greedy, so up to the first token that differs both models have read the same text; after it they have not, and
only the rescoring of one answer under the other model says anything.

* token agreement: leading tokens that are equal / tokens of the longer answer.
* rescored: mean over A's tokens of |log p_A(token) - log p_B(token)|, each given the same text before it, in nats.
* top-k KL: mean over the positions up to and with the first difference of sum p_A log(p_A / p_B), over the tokens that
  are among the likeliest of both, each side scaled to sum to 1 over them. It sees no tail.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cluster.quality.answers import Answer

Unit = Literal["token", "word"]
_WORD: Final = re.compile(r"\s*\S+")


@dataclass(frozen=True, slots=True)
class Difference:
    """One prompt."""

    prompt: str
    exact: bool
    unit: Unit
    """What was compared one by one; words where an engine told neither token ids nor log-probabilities."""
    agreement: float
    diverges_at: int | None
    """Position of the first unit that differs; None where there is none."""
    rescored: float | None
    top_k_kl: float | None
    text_a: str
    text_b: str


def difference(prompt: str, a: Answer, b: Answer, rescored: Sequence[float] | None = None) -> Difference:
    """`rescored`: the log-probabilities of A's tokens under B."""
    unit, units_a, units_b = _units(a, b)
    equal = leading_equal(units_a, units_b)
    longest = max(len(units_a), len(units_b))
    return Difference(
        prompt=prompt,
        exact=a.text == b.text,
        unit=unit,
        agreement=equal / longest if longest else 1.0,
        diverges_at=None if equal == longest else equal,
        rescored=mean_gap(a.logprobs, rescored) if rescored else None,
        top_k_kl=top_k_kl(a.tops[: equal + 1], b.tops[: equal + 1]) if unit == "token" else None,
        text_a=a.text,
        text_b=b.text,
    )


def leading_equal(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How many items from the start are the same."""
    for position, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return position
    return min(len(a), len(b))


def mean_gap(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Mean distance of two rows of log-probabilities; an engine may leave out the last (the end mark)."""
    gaps = [abs(one - other) for one, other in zip(a, b, strict=False)]
    return sum(gaps) / len(gaps) if gaps else None


def top_k_kl(a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]]) -> float | None:
    """Mean over the positions where at least two tokens are common; None where there is no such position."""
    values = [_kl(one, other) for one, other in zip(a, b, strict=False) if len(one.keys() & other.keys()) > 1]
    return sum(values) / len(values) if values else None


def _kl(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    common = sorted(a.keys() & b.keys())
    scale_a, scale_b = _log_of_sum([a[t] for t in common]), _log_of_sum([b[t] for t in common])
    return sum(math.exp(a[t] - scale_a) * ((a[t] - scale_a) - (b[t] - scale_b)) for t in common)


def _log_of_sum(logs: Sequence[float]) -> float:
    """Of numbers given by their logarithms. Engines write -9999 for what cannot come, of which exp is 0."""
    largest = max(logs)
    return largest + math.log(sum(math.exp(value - largest) for value in logs))


def _units(a: Answer, b: Answer) -> tuple[Unit, Sequence[Hashable], Sequence[Hashable]]:
    """The finest that both answers have. Ids before texts: half a character has an id, and no text of its own."""
    if a.token_ids and b.token_ids:
        return "token", a.token_ids, b.token_ids
    if a.tokens and b.tokens:
        return "token", a.tokens, b.tokens
    return "word", _WORD.findall(a.text), _WORD.findall(b.text)
