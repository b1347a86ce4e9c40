"""What two prompts have in common, without the prompts: chained hashes of their leading blocks.

Two requests whose first n hashes agree begin with the same n blocks of text. Chains are seeded with the cache salt, as
the engines' caches are: equal prompts of tenants that share no cache have nothing in common.

Owns: which text counts and how it is cut. Must not know: who compares the hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

BLOCK_BYTES = 256
"""About 64 tokens: a few of the engines' blocks."""
MAX_BLOCKS = 64
_HASH_BYTES = 8
_MAX_BYTES = BLOCK_BYTES * MAX_BLOCKS


def leading_blocks(parsed: Mapping[str, Any], seed: str) -> tuple[int, ...]:
    """Chained 64-bit hashes of the whole blocks that the prompt begins with, at most MAX_BLOCKS. Never raises."""
    text = bytearray()
    for piece in _pieces(parsed):
        text += piece[: _MAX_BYTES - len(text)]
        if len(text) >= _MAX_BYTES:
            break
    chain = hashlib.blake2b(seed.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
    hashes = []
    for end in range(BLOCK_BYTES, len(text) + 1, BLOCK_BYTES):
        chain = hashlib.blake2b(text[end - BLOCK_BYTES : end], digest_size=_HASH_BYTES, key=chain).digest()
        hashes.append(int.from_bytes(chain))
    return tuple(hashes)


def _pieces(parsed: Mapping[str, Any]) -> Iterator[bytes]:
    """The text in the order in which templates write it: tools, system prompt, then messages or prompt."""
    for name in ("tools", "system", "instructions", "messages", "prompt", "input"):
        value = parsed.get(name)
        if isinstance(value, str):
            yield _bytes(value)
        elif isinstance(value, list):
            for item in value:
                yield from _item(item)


def _item(item: Any) -> Iterator[bytes]:
    content = item.get("content") if isinstance(item, dict) else None
    if not isinstance(content, str | list):
        yield _part(item)
        return
    yield str(item.get("role")).encode("utf-8", "replace") + b"\0"
    if isinstance(content, str):
        yield _bytes(content)
    else:
        yield from map(_part, content)
    yield b"\0"


def _part(part: Any) -> bytes:
    """Of a text the text alone: marks beside it (`cache_control`) move on from turn to turn."""
    text = part.get("text") if isinstance(part, dict) else None
    if isinstance(text, str):
        return _bytes(text)
    try:
        return orjson.dumps(part)
    except orjson.JSONEncodeError:  # deeper than it writes
        return b""


def _bytes(text: str) -> bytes:
    return text[:_MAX_BYTES].encode("utf-8", "replace")
