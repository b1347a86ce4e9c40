"""The formulas of `tribes quality`, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cluster.quality import Answer, Thresholds, UnreadableAnswer, difference, echoed_logprobs, read_answer, summarise
from cluster.quality.differences import leading_equal, mean_gap, top_k_kl
from cluster.quality.summary import estimate


def answer(*tokens: str, ids: tuple[int, ...] = (), **more: Any) -> Answer:
    return Answer("".join(tokens), tokens, tuple(-0.1 for _ in tokens), token_ids=ids, **more)


def test_equal_answers_agree_wholly():
    same = difference("p", answer("a", "b"), answer("a", "b"), [-0.1, -0.1])
    assert (same.exact, same.agreement, same.diverges_at, same.rescored, same.unit) == (True, 1.0, None, 0.0, "token")


def test_agreement_is_the_leading_part_of_the_longer_answer():
    found = difference("p", answer("a", "b", "c", "d"), answer("a", "b", "x", "d", "e"))
    assert (found.exact, found.agreement, found.diverges_at) == (False, 2 / 5, 2)
    cut = difference("p", answer("a", "b"), answer("a", "b", "c", "d"))
    assert (cut.exact, cut.agreement, cut.diverges_at) == (False, 0.5, 2)
    assert leading_equal("", "x") == 0 and difference("p", Answer(""), Answer("")).agreement == 1.0


def test_ids_decide_before_texts_and_words_stand_in_without_tokens():
    assert difference("p", answer("é", ids=(5, 6)), answer("é", ids=(5, 7))).agreement == 0.5
    words = difference("p", Answer("one two three four"), Answer("one two 3 four"))
    assert (words.unit, words.agreement, words.diverges_at, words.top_k_kl) == ("word", 0.5, 2, None)


def test_the_gap_of_log_probs_is_a_mean_of_distances():
    assert mean_gap([-1.0, -2.0, -3.0], [-1.5, -1.0, -3.0]) == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert mean_gap([-1.0], []) is None


def test_kl_over_the_common_tokens_scaled_to_one():
    # A: 0.6 and 0.2 of the common two -> 0.75, 0.25; B: 0.3 and 0.3 -> 0.5, 0.5; "z" and "y" are not common.
    a = {"u": math.log(0.6), "v": math.log(0.2), "z": math.log(0.1)}
    b = {"u": math.log(0.3), "v": math.log(0.3), "y": math.log(0.2)}
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert top_k_kl([a], [b]) == pytest.approx(by_hand)
    assert top_k_kl([a, a], [b, a]) == pytest.approx(by_hand / 2)
    assert top_k_kl([a], [a]) == pytest.approx(0.0)
    assert top_k_kl([{"u": -1.0}], [{"u": -1.0}]) is None  # one common token is always certain


def test_tokens_that_cannot_come_are_no_error():
    never = {"u": -9999.0, "v": -9999.0 + math.log(3)}
    assert top_k_kl([never], [never]) == pytest.approx(0.0)
    even = {"u": math.log(0.4), "v": math.log(0.4)}
    assert top_k_kl([never], [even]) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_positions_after_the_first_difference_do_not_count():
    near, far = {"u": math.log(0.5), "v": math.log(0.5)}, {"u": math.log(0.99), "v": math.log(0.01)}
    a = Answer("uvu", ("u", "v", "u"), (-0.7,) * 3, (near, near, near))
    b = Answer("uuu", ("u", "u", "u"), (-0.7,) * 3, (near, near, far))
    assert difference("p", a, b).top_k_kl == pytest.approx(0.0)


def chat(content: str | None, logprobs: Any = None, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}, "logprobs": logprobs, **choice}]}


def test_reading_what_engines_send():
    steps = [{"token": "Hi", "logprob": -0.5, "top_logprobs": [{"token": "Hi", "logprob": -0.5}]}]
    vllm = {**chat("Hi", {"content": steps}, token_ids=[7]), "prompt_token_ids": [1, 2]}
    sglang = chat("Hi", {"content": steps}, token_ids=[7], prompt_token_ids=[1, 2])
    expected = Answer("Hi", ("Hi",), (-0.5,), ({"Hi": -0.5},), (1, 2), (7,))
    assert read_answer(vllm) == read_answer(sglang) == expected
    assert read_answer(chat(None)) == Answer("")
    for broken in ({}, {"choices": []}, {"choices": [{}]}, {"choices": "x"}):
        with pytest.raises(UnreadableAnswer):
            read_answer(broken)


def test_echoed_log_probs_are_those_of_the_answer_alone():
    asked = Answer("Hi", prompt_ids=(1, 2, 3), token_ids=(7, 8))
    body = {"choices": [{"logprobs": {"token_logprobs": [None, -9.0, -9.0, -0.5, -0.25, -9.0]}}]}
    assert echoed_logprobs(body, asked) == (-0.5, -0.25)
    for broken in ({}, {"choices": [{"logprobs": None}]}, {"choices": [{"logprobs": {"token_logprobs": [None, -1]}}]}):
        assert echoed_logprobs(broken, asked) is None


def test_the_interval_holds_the_mean_and_closes_where_all_agree():
    assert estimate([1.0] * 8).low == estimate([1.0] * 8).high == 1.0
    spread = estimate([0.0, 1.0] * 10)
    assert spread.mean == 0.5 and 0.2 < spread.low < 0.5 < spread.high < 0.8
    assert spread == estimate([0.0, 1.0] * 10)


def test_the_verdict_names_every_threshold_that_is_missed():
    a, b = answer("a", "b", "c", "d"), answer("a", "x", "c", "d")
    kept, lost = difference("k", a, a, [-0.1] * 4), difference("l", a, b, [-0.5] * 4)
    summary = summarise([kept, kept, kept, lost])
    assert (summary.exact_match.mean, summary.diverged, summary.first_divergence_median) == (0.75, 1, 1)
    assert summary.token_agreement.mean == pytest.approx((1 + 1 + 1 + 0.25) / 4)
    assert summary.method == "rescored"
    assert summary.logprob_divergence is not None
    assert summary.logprob_divergence.mean == pytest.approx(0.4 / 4)
    assert summary.missed(Thresholds(0.7, 0.8, 0.11)) == []
    assert [line.split(" is ")[0] for line in summary.missed(Thresholds(0.8, 0.9, 0.09))] == [
        "exact match 0.750",
        "token agreement 0.812",
        "log-prob divergence 0.1000",
    ]


def test_the_method_is_one_for_all_prompts():
    tops = ({"a": -0.7, "b": -0.7},)
    scored = Answer("a", ("a",), (-0.7,), tops)
    with_kl = difference("k", scored, scored)
    both = summarise([with_kl, difference("r", scored, scored, [-0.7])])
    assert both.method == "top_k_kl"
    none = summarise([difference("n", Answer("a b"), Answer("a b"))])
    assert none.method == "none" and none.logprob_divergence is None and none.missed(Thresholds()) == []
