"""Figures of one load. Owns: their formulas. Must not know: which door it was.

Requests that were sent before a fifth of the time warm the caches and are not counted.

- hit rate: prompt tokens that the engines found cached / prompt tokens, both as the engines' own usage says.
- ceiling: the hit rate of one cache as large as those of all replicas together (LRU, token by token), given this load's
  prompts and answers in the order in which they were sent, each of them computed before the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.report import percentile
from benchmarks.routing_live_sides.load import PATIENCE_S, Message, Outcome, Turn
from benchmarks.routing_sides.prefix_cache import PrefixCache

WARM_SHARE = 0.2


class Tokens(Protocol):
    """What a conversation is to the engine."""

    def of(self, messages: list[Message], answer: str | None = None) -> list[int]:
        """Of the prompt; with an `answer`, of the prompt and that."""


class ChatTokens:
    """The model's own tokenizer and chat template."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))

    def of(self, messages: list[Message], answer: str | None = None) -> list[int]:
        said = messages if answer is None else [*messages, {"role": "assistant", "content": answer}]
        text = self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=answer is None)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def figures(outcome: Outcome, seconds: float, tokens: Tokens, cache_tokens: int) -> dict[str, float]:
    """Latencies in ms; a request that failed counts as the longest that one may take."""
    from_s = WARM_SHARE * seconds
    counted = [turn for turn in outcome.turns if turn.sent_s >= from_s]
    served = [turn for turn in counted if turn.ttft_s is not None]
    if not served:
        raise RuntimeError(f"no request was answered: {next((turn.failure for turn in counted), 'none was sent')}")
    ttft_ms = [1e3 * (PATIENCE_S if turn.ttft_s is None else turn.ttft_s) for turn in counted]
    hit_rate = sum(turn.cached_tokens for turn in served) / sum(turn.prompt_tokens for turn in served)
    most = ceiling(outcome.turns, from_s, tokens, cache_tokens)
    return {
        "requests": len(counted),
        "failed": len(counted) - len(served),
        "unsent": outcome.unsent,
        "prompt_tokens_mean": sum(turn.prompt_tokens for turn in served) / len(served),
        "hit_rate": hit_rate,
        "ceiling": most,
        "hit_rate_vs_ceiling": hit_rate / most,
        "ttft_p50_ms": percentile(ttft_ms, 50),
        "ttft_p95_ms": percentile(ttft_ms, 95),
    }


def ceiling(turns: Sequence[Turn], from_s: float, tokens: Tokens, cache_tokens: int) -> float:
    """Of the requests that were answered."""
    cache = PrefixCache(cache_tokens)
    cached = prompts = 0
    for turn in turns:
        if turn.ttft_s is None:
            continue
        prompt = chained(tokens.of(turn.messages))
        if len(prompt) != turn.prompt_tokens:
            message = f"the engine counted {turn.prompt_tokens} tokens in a prompt that has {len(prompt)} here"
            raise RuntimeError(f"{message}: its chat template must be another one, so there is no ceiling to be had")
        if turn.sent_s >= from_s:
            # The last token is always computed: the first of the answer comes from it.
            cached += min(cache.matched(prompt), len(prompt) - 1)
            prompts += len(prompt)
        cache.keep(chained(tokens.of(turn.messages, turn.answer)))
    return cached / prompts


def chained(tokens: Sequence[int]) -> list[int]:
    """A number for each token that stands for all up to it."""
    numbers, last = [], 0
    for token in tokens:
        last = hash((last, token))
        numbers.append(last)
    return numbers
