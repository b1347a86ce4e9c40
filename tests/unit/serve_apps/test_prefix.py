"""Hashes of leading blocks: equal as far as the prompts are, and no further."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.gateway.prefix import BLOCK_BYTES, MAX_BLOCKS, leading_blocks


def messages(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading items agree."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@given(st.text("abé🚀", max_size=900), st.text(max_size=300), st.text(max_size=300))
def test_equal_as_far_as_the_text_is(shared: str, one: str, other: str) -> None:
    hashes = [leading_blocks({"prompt": shared + rest}, "") for rest in (one, other)]
    texts = [(shared + rest).encode() for rest in (one, other)]
    same = common(*texts) // BLOCK_BYTES
    assert [len(h) for h in hashes] == [min(MAX_BLOCKS, len(text) // BLOCK_BYTES) for text in texts]
    assert common(*hashes) == min(same, MAX_BLOCKS)


def test_a_later_turn_keeps_the_blocks_of_the_first() -> None:
    first = leading_blocks(messages("x" * 2000), "")
    later = leading_blocks(messages("x" * 2000, "y" * 2000, "z"), "")
    assert len(first) >= 7 and later[: len(first)] == first and len(later) > len(first)


def test_roles_tools_and_tenants_divide() -> None:
    plain = messages("x" * 2000)
    system = {"messages": [{"role": "system", "content": "x" * 2000}]}
    tools = {**plain, "tools": [{"type": "function", "function": {"name": "f"}}]}
    assert common(leading_blocks(plain, "a"), leading_blocks(system, "a")) == 0
    assert common(leading_blocks(plain, "a"), leading_blocks(tools, "a")) == 0
    assert common(leading_blocks(plain, "a"), leading_blocks(plain, "b")) == 0


def test_a_huge_prompt_costs_little() -> None:
    body = messages(*["x" * 1_000_000] * 16)
    begun_s = time.process_time()
    hashes = leading_blocks(body, "")
    assert len(hashes) == MAX_BLOCKS and all(0 <= h < 2**64 for h in hashes)
    assert time.process_time() - begun_s < 0.05


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["messages", "prompt", "input", "tools", "instructions"]),
)
def test_odd_bodies_do_no_harm(value: Any, name: str) -> None:
    leading_blocks({name: value}, "")


def test_a_body_as_deep_as_the_parser_reads() -> None:
    leading_blocks(orjson.loads(b'{"messages":' + b"[" * 900 + b"]" * 900 + b"}"), "")


def test_texts_count_wherever_a_body_has_them_and_marks_beside_them_do_not() -> None:
    def parts(text: str, **mark: Any) -> list[dict[str, Any]]:
        return [{"type": "text", "text": text, **mark}]

    mark = {"cache_control": {"type": "ephemeral"}}
    first = {"system": parts("s" * 600, **mark), "messages": [{"role": "user", "content": parts("u" * 600, **mark)}]}
    answer = {"role": "assistant", "content": "a" * 600}
    later = {
        "system": parts("s" * 600),
        "messages": [{"role": "user", "content": parts("u" * 600)}, answer, {"role": "user", "content": "v"}],
    }
    hashes = leading_blocks(first, "")
    assert len(hashes) == 4 and leading_blocks(later, "")[:4] == hashes
    assert leading_blocks({**first, "system": "t" * 600}, "")[0] != hashes[0]
