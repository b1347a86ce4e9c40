"""The prompts of benchmarks/offline.py. Owns: what each case looks like. Everything follows from its seed."""

from __future__ import annotations

import random

_WORDS = [
    "river",
    "stone",
    "lamp",
    "market",
    "garden",
    "window",
    "copper",
    "winter",
    "letter",
    "bridge",
    "valley",
    "engine",
    "forest",
    "paper",
    "silver",
    "harbour",
    "candle",
    "mirror",
    "thunder",
    "meadow",
    "basket",
    "anchor",
    "ribbon",
    "castle",
    "falcon",
    "orchard",
    "marble",
    "lantern",
    "saddle",
    "compass",
]


def uniform(count: int, seed: str) -> list[str]:
    """Short prompts of about 20 tokens that share nothing beyond a word or two."""
    dice = random.Random(seed)
    return [f"{' '.join(dice.choices(_WORDS, k=12))}, number {index}, is" for index in range(count)]


def shared_prefixes(count: int, prefixes: int, prefix_words: int, seed: str) -> list[str]:
    """`prefixes` long texts, each followed by count / prefixes different endings, in random order."""
    dice = random.Random(seed)
    texts = [" ".join(dice.choices(_WORDS, k=prefix_words)) for _ in range(prefixes)]
    prompts = [f"{text}. Question {index}:" for text in texts for index in range(count // prefixes)]
    dice.shuffle(prompts)
    return prompts


def repeated(count: int, share: float, seed: str) -> list[str]:
    """`uniform`, with a share of them the same as another one, in random order."""
    dice = random.Random(seed)
    distinct = uniform(round(count * (1 - share)), seed)
    prompts = distinct + dice.choices(distinct, k=count - len(distinct))
    dice.shuffle(prompts)
    return prompts
