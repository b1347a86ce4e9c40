"""The calls that clients may make to a model, and what the gateway reads in each of them.

A door is one call. Clients may know it under several paths; here it has one, and the engine's adapter says where that
engine has it (`cluster.engines.engine_path`). No schema is mirrored: what a door does not name goes through unread.

Owns: the table. Must not know: requests, engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CHAT_PATH: Final = "/v1/chat/completions"
RESPONSES_PATH: Final = "/v1/responses"
MESSAGES_PATH: Final = "/v1/messages"
COUNT_TOKENS_PATH: Final = "/v1/messages/count_tokens"


@dataclass(frozen=True, slots=True)
class Door:
    """One call and its traits."""

    path: str
    leading: str | None = None
    """The field whose beginning stays the same from turn to turn; it names the session where the client does not."""
    writes: bool = False
    """The model writes an answer, up to `max_tokens` or what this API calls it, as a stream if the client wants."""
    usage_on_request: bool = False
    """Streams tell their usage only where `stream_options` asks for it."""
    names_tier: bool = False
    """Answers have a `service_tier`, which says how the request was served."""
    background: bool = False
    """`background: true` runs it later."""
    anthropic: bool = False
    """Requests and answers as Anthropic has them, not OpenAI."""
    metered: bool = True
    """False: the engine only cuts or counts tokens. The model computes nothing, so no tokens are billed, and no
    session is bound to the replica that did it."""


_ALL: Final = (
    Door(CHAT_PATH, leading="messages", writes=True, usage_on_request=True, names_tier=True, background=True),
    Door("/v1/completions", writes=True, usage_on_request=True, names_tier=True),
    Door(RESPONSES_PATH, leading="input", writes=True, names_tier=True, background=True),
    Door(MESSAGES_PATH, leading="messages", writes=True, anthropic=True),
    Door(COUNT_TOKENS_PATH, metered=False, anthropic=True),
    Door("/v1/embeddings"),
    Door("/v1/rerank"),
    Door("/v1/score"),
    Door("/v1/classify"),
    Door("/pooling"),
    Door("/tokenize", metered=False),
    Door("/detokenize", metered=False),
)
_OTHER_PATHS: Final = {
    "/rerank": "/v1/rerank",
    "/v2/rerank": "/v1/rerank",
    "/score": "/v1/score",
    "/classify": "/v1/classify",
    "/v1/tokenize": "/tokenize",
    "/v1/detokenize": "/detokenize",
}
"""Each engine's own name for a call, so that a client of the one finds it here whichever serves."""

BY_PATH: Final = {door.path: door for door in _ALL}
"""By the one path that each has here."""
DOORS: Final = BY_PATH | {other: BY_PATH[path] for other, path in _OTHER_PATHS.items()}
"""By every path that clients may use."""


def speaks_anthropic(path: str) -> bool:
    """Whether clients at this path, known or not, read Anthropic's shapes rather than OpenAI's."""
    return path == MESSAGES_PATH or path.startswith(MESSAGES_PATH + "/")
