"""What an engine's tokenizer makes of a text that was sent, so that limits, usage and prompts go on exactly.

Owns: which texts are asked about. Must not know: connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from serve_apps.gateway.courses.continuation import Continuation, Tokens
from serve_apps.gateway.doors import CHAT_PATH

Tokenize = Callable[[str, bool], Awaitable[list[int] | None]]
"""Text and whether the model's special tokens go around it -> ids; None where the engine does not say."""


async def tokens_of(continuation: Continuation, tokenize: Tokenize) -> Tokens | None:
    """None where the engine does not say, or nothing was sent that counts."""
    if continuation.restarts:
        return None
    if continuation.path == CHAT_PATH:
        prefix = await tokenize(continuation.prefix, False)
        return Tokens(prefix) if prefix is not None else None
    prompt = continuation.prompt
    if isinstance(prompt, list):
        prefix = await tokenize(continuation.prefix, False)
        return Tokens(prefix, [*prompt, *prefix]) if prefix is not None else None
    special = continuation.asked.get("add_special_tokens") is not False
    prefix, before, both = await asyncio.gather(
        tokenize(continuation.prefix, False),
        tokenize(prompt, special),
        tokenize(prompt + continuation.prefix, special),
    )
    if prefix is None or before is None or both is None:
        return None
    # As one text it may be cut otherwise where the two meet; then the engine gets what the first one had.
    whole = both if both[: len(before)] == before else [*before, *prefix]
    return Tokens(whole[len(before) :], whole)
