"""Files of prompts, and the built-in set."""

from __future__ import annotations

import json

import pytest

from cluster.quality import BUILT_IN, PromptError, read_prompts


def test_lines_with_a_text_or_messages(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "Hi", "id": 7}\n\n{"messages": [{"role": "user", "content": "Ho"}]}\n')
    first, second = read_prompts(path)
    assert (first.id, first.messages) == ("7", ({"role": "user", "content": "Hi"},))
    assert (second.id, second.messages) == ("3", ({"role": "user", "content": "Ho"},))


def test_a_text_may_hold_any_end_of_line_but_its_own(tmp_path):
    text = "one\u2028two\x85three"
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps({"prompt": text}, ensure_ascii=False).encode() + b"\r\n")
    [prompt] = read_prompts(path)
    assert prompt.messages == ({"role": "user", "content": text},)


@pytest.mark.parametrize(
    "line", ["nonsense", "[1]", "{}", '{"prompt": ""}', '{"prompt": 3}', '{"messages": []}', '{"messages": ["x"]}']
)
def test_a_bad_line_is_named_with_the_cure(tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(PromptError, match="line 2"):
        read_prompts(path)


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PromptError, match="no prompts"):
        read_prompts(tmp_path / "empty.jsonl")


def test_the_built_in_set_has_names_of_its_own():
    assert len(BUILT_IN) >= 20
    assert len({p.id for p in BUILT_IN}) == len({p.messages[0]["content"] for p in BUILT_IN}) == len(BUILT_IN)
