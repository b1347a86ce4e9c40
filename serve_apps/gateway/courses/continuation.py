"""From a request and what it has already brought to the request that brings the rest.

*By its text.* A chat gets the text as an assistant message that is to be continued, a completion gets it behind its
prompt; both engines then go on with the next token. The text is cut in two:

- the *prefix* is what the next engine is given;
- the rest is produced once more, and not relayed again.

The rest is empty or small. White space at the end always belongs to it: chat templates trim it, and tokenizers split it
otherwise before a word than at an end. With stop strings and greedy decoding it also takes the last word and as many
characters as a stop string may reach back: engines hold back text that might become a stop string, so the text may end
inside a token, and a stop string that begins in the prefix would not be seen. If the next engine does not repeat it
(it samples), the text is continued `exact`, with all of it in the prefix.

*From the beginning.* What is more than a text (a grammar's state, a tool call half written, reasoning, several choices,
penalties for words already used) cannot be given to an engine. But with greedy decoding the same request brings the
same answer: it runs once more, and as long as it repeats what was sent, nothing is relayed.

Pure. Owns: which requests can go on, and the body that makes them. Must not know: engines' addresses, leases, events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from serve_apps.gateway.courses.sent import Story, Thread
from serve_apps.gateway.doors import CHAT_PATH

COMPLETIONS_PATH = "/v1/completions"
PATHS = frozenset({CHAT_PATH, COMPLETIONS_PATH})
_COUNTS = ("n", "best_of")
_STRUCTURE = (
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structural_tag",
    "regex", "ebnf", "json_schema",
)  # fmt: skip
_UNKNOWN_STATE = {
    "echo": "the answer repeats the prompt",
    "suffix": "text is put in before a suffix",
    "use_beam_search": "it is a beam search",
    "return_token_ids": "token ids were asked for",
    "prompt_logprobs": "log probabilities of the prompt were asked for",
    "truncate_prompt_tokens": "the prompt is cut to a length",
    "return_hidden_states": "hidden states were asked for",
    "session_params": "the engine keeps a session for it",
}
_PENALTIES = ("presence_penalty", "frequency_penalty")
_LIMITS = ("max_completion_tokens", "max_tokens")
_THINKING = ("<think>", "</think>")


class NotContinuableError(Exception):
    """The rest of this stream cannot be had from another engine; the message says why."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the engine's tokenizer makes of it. `prompt` is None for chats, whose template only the engine knows."""

    prefix: list[int]
    prompt: list[int] | None = None
    """Prompt and prefix together."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a request goes on."""

    path: str
    asked: Mapping[str, Any]
    """The first engine's body, parsed."""
    prefix: str
    repeats: Mapping[Thread, str]
    """What the next engine will produce once more, text by text."""
    events: int
    """Events that brought the prefix, at least one token each."""
    by_text: bool
    """The next engine is to go on from a text alone, so it must not begin with anything else."""

    @property
    def restarts(self) -> bool:
        """The request runs as it came, and what was sent is left out."""
        return not self.prefix

    @property
    def scored(self) -> bool:
        """Log probabilities come with the text."""
        logprobs = self.asked.get("logprobs")
        return logprobs is not None and logprobs is not False

    @property
    def prompt(self) -> Any:
        """A completion's prompt: text or token ids."""
        prompt = self.asked.get("prompt")
        return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int) else prompt

    def sent_tokens(self, tokens: Tokens | None) -> int:
        """Output tokens in the prefix. A text can be cut into more tokens than its shortest encoding has; that an event
        brings one at least is known."""
        if self.restarts:
            return 0
        counted = len(tokens.prefix) if tokens is not None else 0
        return max(counted, self.events) if not self.repeats or tokens is None else counted

    def body(self, tokens: Tokens | None) -> bytes | None:
        """What the next engine gets; None when the request's own limit leaves no token to produce."""
        if self.restarts:
            return _written(self.asked)
        sent = self.sent_tokens(tokens)
        changes: dict[str, Any] = {}
        for name in _LIMITS:
            limit = self.asked.get(name)
            if isinstance(limit, int):
                if limit <= sent:
                    return None
                changes[name] = limit - sent
        if isinstance(least := self.asked.get("min_tokens"), int):
            changes["min_tokens"] = max(0, least - sent)
        changes |= self._as_chat() if self.path == CHAT_PATH else {"prompt": self._as_prompt(tokens)}
        return _written({**self.asked, **changes})

    def _as_chat(self) -> dict[str, Any]:
        messages = list(self.asked["messages"])
        if self.asked.get("continue_final_message"):
            last = messages.pop()
            messages.append({**last, "content": last["content"] + self.prefix})
        else:
            messages.append({"role": "assistant", "content": self.prefix})
        return {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}

    def _as_prompt(self, tokens: Tokens | None) -> list[int] | str:
        if tokens is not None and tokens.prompt is not None:
            return tokens.prompt
        if isinstance(self.prompt, str):
            return self.prompt + self.prefix
        raise NotContinuableError("its prompt is a list of tokens and the next engine has no tokenizer to ask")


def _written(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise NotContinuableError(f"its body cannot be written again: {error}") from None


def continuation(path: str, body: bytes, story: Story, *, exact: bool = False) -> Continuation:
    """How the request goes on after `story`. `exact`: another way has failed. Raises NotContinuableError."""
    if path not in PATHS:
        raise NotContinuableError(f"streams of {path} cannot go on elsewhere")
    if story.odd:
        raise NotContinuableError("something was sent that is not understood here")
    asked = orjson.loads(body)
    again = _greedy(asked) and not exact
    if again and _penalised(asked):
        return _from_the_beginning(path, asked, story)
    try:
        return _by_text(path, asked, story, exact)
    except NotContinuableError:
        if not again:
            raise
        return _from_the_beginning(path, asked, story)


def lacks_only_the_end(body: bytes, story: Story) -> bool:
    """Every choice has ended, and was told why."""
    if not story.finish_reasons:
        return False
    asked = orjson.loads(body)
    prompt = asked.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return len(story.finish_reasons) == prompts * (asked.get("n") or 1)


def _from_the_beginning(path: str, asked: Mapping[str, Any], story: Story) -> Continuation:
    return Continuation(path, asked, "", {thread: "".join(p) for thread, p in story.threads.items()}, 0, False)


def _by_text(path: str, asked: Mapping[str, Any], story: Story, exact: bool) -> Continuation:
    if story.obstacle is not None:
        raise NotContinuableError(story.obstacle)
    text = story.text
    kept = len(text) if exact else _keeps(text, asked)
    if kept:
        _check(path, asked, text)
    elif text and _several(asked):
        raise NotContinuableError("it has several choices")
    # What is repeated is a word at most, so its share of the events is about its share of the text.
    events = story.events * kept // len(text) if text else 0
    thread = (0, "content" if path == CHAT_PATH else "text", 0)
    repeats = {thread: text[kept:]} if text[kept:] else {}
    return Continuation(path, asked, text[:kept], repeats, events, bool(kept))


def _greedy(asked: Mapping[str, Any]) -> bool:
    return asked.get("temperature") == 0 or asked.get("top_k") == 1


def _penalised(asked: Mapping[str, Any]) -> bool:
    """Words used before count less, and a new engine would not know of them."""
    by_use = any(asked.get(name) for name in _PENALTIES)
    return by_use or asked.get("repetition_penalty") not in (None, 1)


def _keeps(text: str, asked: Mapping[str, Any]) -> int:
    """Characters of the text that the next engine is given."""
    stops = asked.get("stop")
    stops = [stops] if isinstance(stops, str) else stops or []
    if stops and _greedy(asked):
        held = max((len(stop) for stop in stops if isinstance(stop, str)), default=1) - 1
        text = text[: max(0, len(text) - held)]
        words = text.rsplit(None, 1)
        text = words[0] if len(words) == 2 else ""
    return len(text.rstrip())


def _check(path: str, asked: Mapping[str, Any], text: str) -> None:
    """Raises NotContinuableError for requests whose state is more than their text."""
    if _several(asked):
        raise NotContinuableError("it has several choices")
    for name, reason in _UNKNOWN_STATE.items():
        if asked.get(name) not in (None, False, [], ""):
            raise NotContinuableError(reason)
    response_format = asked.get("response_format")
    free = response_format is None or response_format == {"type": "text"}
    if not free or any(asked.get(name) for name in _STRUCTURE):
        raise NotContinuableError("its output is structured, and the state of the grammar is lost")
    if path == CHAT_PATH:
        _check_chat(asked, text)
    else:
        _check_prompt(asked.get("prompt"))


def _several(asked: Mapping[str, Any]) -> bool:
    return any(asked.get(name) not in (None, 1) for name in _COUNTS)


def _check_chat(asked: Mapping[str, Any], text: str) -> None:
    if asked.get("tool_choice") == "required" or isinstance(asked.get("tool_choice"), dict):
        raise NotContinuableError("a tool call was required")
    if asked.get("include_reasoning") is False or any(mark in text for mark in _THINKING):
        raise NotContinuableError("it reasons, and where it was in that is not known")
    continues = bool(asked.get("continue_final_message"))
    if asked.get("add_generation_prompt") is False and not continues:
        raise NotContinuableError("its prompt does not open an answer")
    messages = asked.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict):
        raise NotContinuableError("its messages are of an unknown shape")
    from_assistant = last.get("role") == "assistant"
    if continues and not (from_assistant and isinstance(last.get("content"), str)):
        raise NotContinuableError("it continues a message that is not a plain text")
    if from_assistant and not continues:
        raise NotContinuableError("its last message is an assistant's, which engines render in ways of their own")


def _check_prompt(prompt: Any) -> None:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    tokens = isinstance(prompt, list) and bool(prompt) and all(isinstance(token, int) for token in prompt)
    if not isinstance(prompt, str) and not tokens:
        raise NotContinuableError("it has several prompts")
