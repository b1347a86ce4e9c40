"""Role: the fake tokenizer of scripted engines, and where in a reply a prompt that holds its beginning has got to.

A token is a word ` w7`, else up to four characters of a word (with the space before it), else one white space. Ids
can be turned back into text in any process: so an engine goes on from a prompt of ids that another one's text made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TOKEN = re.compile(r" w\d{1,5}(?!\S)| ?[^\s]{1,4}|\s")
_WORD = 1 << 62
_CHUNK = 1 << 61
_BITS = 12
"""Of a character: chunks hold the alphabets up to Lao."""


def pieces(text: str) -> list[str]:
    return TOKEN.findall(text)


def token_ids(text: str) -> list[int]:
    return [_id(piece) for piece in pieces(text)]


def text_of(ids: Iterable[int]) -> tuple[str, int]:
    """The text, and how many of the ids are none of ours (a client's own: they stand for themselves)."""
    own = [_text(token) if token >= _CHUNK else None for token in ids]
    foreign = own.count(None)
    text = "".join(f"{token};" if piece is None else piece for piece, token in zip(own, ids, strict=True))
    return text, foreign


def begun(full: str, prompt: str) -> int:
    """How many characters of the reply `full` stand at the end of the prompt."""
    return next((n for n in range(min(len(full), len(prompt)), 0, -1) if prompt.endswith(full[:n])), 0)


def held_back(words: list[str], held: int) -> list[str]:
    """The same text as events of an engine that keeps the last `held` characters until it knows that no stop string
    begins in them."""
    text, sent, events = "".join(words), 0, []
    for position, length in enumerate(_lengths(words), start=1):
        end = length if position == len(words) else max(sent, length - held)
        events.append(text[sent:end])
        sent = end
    return events


def _lengths(words: list[str]) -> list[int]:
    total, lengths = 0, []
    for word in words:
        total += len(word)
        lengths.append(total)
    return lengths


def _id(piece: str) -> int:
    if piece.startswith(" w") and piece[2:].isdecimal() and piece[2:].isascii():
        return _WORD | int(piece[2:]) << 3 | len(piece[2:])
    packed = 0
    for character in reversed(piece):
        packed = packed << _BITS | ord(character) & (1 << _BITS) - 1
    return _CHUNK | packed


def _text(token: int) -> str:
    if token & _WORD:
        number = token & _WORD - 1
        return f" w{number >> 3:0{number & 7}d}"
    packed, characters = token & _CHUNK - 1, []
    while packed:
        characters.append(chr(packed & (1 << _BITS) - 1))
        packed >>= _BITS
    return "".join(characters)
