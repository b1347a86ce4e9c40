"""A stream cut anywhere, as often as one likes, and continued: the client sees what it would have seen undisturbed.

Pure: the engine is the scripted one's plan and bytes, the replicas die by having their bytes cut.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import TokenUsage
from serve_apps.gateway.courses.continuation import COMPLETIONS_PATH, continuation, lacks_only_the_end
from serve_apps.gateway.courses.joined import DivergedError, JoinedStream, last_events
from serve_apps.gateway.courses.sent import SentStream
from serve_apps.gateway.courses.tokens import tokens_of
from serve_apps.gateway.doors import CHAT_PATH
from serve_apps.gateway.sse import EventStream
from tests.support.scripted_engine import stream_events
from tests.support.scripted_script import PrefixCache, Script, make_plan
from tests.support.scripted_wire import Wire
from tests.unit.serve_apps.broken_streams import Client, scripted_tokenizer

PROMPT = "Question: what comes next?"
TEXTS = st.text(alphabet='ab .,\n"\\é', min_size=1, max_size=40)
WIRES = {CHAT_PATH: Wire("m", chat=True), COMPLETIONS_PATH: Wire("m", chat=False)}
_ids = itertools.count()


def engine(path: str, body: bytes) -> bytes:
    """Everything that a replica would say."""
    asked = orjson.loads(body)
    plan = make_plan(asked, chat=path == CHAT_PATH, defaults=Script(), cache=PrefixCache(), max_model_len=None)
    return b"".join(stream_events(plan, WIRES[path], b"id-%d" % next(_ids)))


async def no_tokenizer(text: str, special: bool) -> None:
    return None


def stream(path: str, asked: dict[str, Any], cuts: list[int], *, tokenizer: Any = scripted_tokenizer) -> Client:
    """The stream of a request whose replicas die after so many bytes each."""
    raw = orjson.dumps({"model": "m", "stream": True, "stream_options": {"include_usage": True}, **asked})
    client, sent, events, body, exact = Client(), SentStream(), EventStream(None, True), raw, False
    for cut in [*cuts, None, None, None]:
        client.attempts.append(body)
        said = engine(path, body)[:cut]
        try:
            for start in range(0, len(said), 37):
                if block := events.feed(said[start : start + 37]):
                    client.raw += block
                    sent.keep(block)
            exact = False
        except DivergedError:
            exact = True
        if sent.ended:
            return client
        if not client.raw:
            events = EventStream(None, True)  # not begun: another replica gets the same
            continue
        story = sent.story()
        usage = TokenUsage(7, 0, story.events)
        if lacks_only_the_end(raw, story):
            client.raw += last_events(path, story, None if story.usage else usage, None)
            return client
        plan = continuation(path, raw, story, exact=exact)
        tokens = asyncio.run(tokens_of(plan, tokenizer))
        further = plan.body(tokens)
        if further is None:
            client.raw += last_events(path, story, usage, "length")
            return client
        body, events = further, JoinedStream(plan, tokens, story, wants_usage=True)  # type: ignore[assignment]
    raise AssertionError(f"no end: {client.raw!r}")


def same(whole: Client, joined: Client) -> None:
    assert joined.text() == whole.text()
    assert joined.reasons() == whole.reasons()
    assert joined.roles() == whole.roles()
    assert len({event["id"] for event in joined.events}) == 1
    assert len(joined.usages()) == 1


CHATS = st.builds(
    lambda own: (
        {"messages": [{"role": "user", "content": PROMPT}]}
        | ({} if own is None else {"continue_final_message": True, "add_generation_prompt": False})
        if own is None
        else {
            "messages": [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": own}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        }
    ),
    st.sampled_from([None, "Well:"]),
)
COMPLETIONS = st.builds(lambda prompt: {"prompt": prompt}, st.sampled_from([PROMPT, [PROMPT], [5, 6, 7]]))
LIMITS = st.sampled_from([{}, {"max_tokens": 6}, {"max_completion_tokens": 11, "min_tokens": 2}])
CUTS = st.lists(st.integers(0, 4000), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, asked=CHATS | COMPLETIONS, limits=LIMITS, cuts=CUTS)
def test_a_stream_cut_anywhere_reads_as_if_nothing_had_happened(
    text: str, asked: dict[str, Any], limits: dict[str, Any], cuts: list[int]
) -> None:
    path = CHAT_PATH if "messages" in asked else COMPLETIONS_PATH
    asked = {**asked, **limits, "temperature": 0, "x_script": {"text": text}}
    whole, joined = stream(path, asked, []), stream(path, asked, cuts)
    same(whole, joined)
    if joined.attempts[-1] is not joined.attempts[0] and joined.raw.count(b'"finish_reason":"') == 1:
        synthesised = joined.usages()[0]["prompt_tokens"] == 7
        assert synthesised or joined.usages() == whole.usages()


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, stop=st.lists(st.text("ab .", min_size=1, max_size=4), min_size=1, max_size=2), cuts=CUTS)
def test_stop_strings_are_found_across_a_cut(text: str, stop: list[str], cuts: list[int]) -> None:
    asked = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "stop": stop}
    asked["x_script"] = {"text": text}
    same(stream(CHAT_PATH, asked, []), stream(CHAT_PATH, asked, cuts))


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 4000), limit=st.integers(1, 12))
def test_without_a_tokenizer_events_are_counted(cut: int, limit: int) -> None:
    asked = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": limit}
    same(stream(CHAT_PATH, asked, []), stream(CHAT_PATH, asked, [cut], tokenizer=no_tokenizer))


def test_every_cut_position_of_one_stream() -> None:
    asked = {"prompt": PROMPT, "max_tokens": 5, "x_script": {"text": "One two\n\nthree  four five six"}}
    whole = stream(COMPLETIONS_PATH, asked, [])
    size = len(whole.raw)
    for cut in range(size):
        joined = stream(COMPLETIONS_PATH, asked, [cut])
        same(whole, joined)
