"""Tenants on real engines: a repeated prompt is cached for the tenant that sent it, and for nobody else."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from openai import OpenAI

from tests.support.stack import Stack

pytestmark = [pytest.mark.engine, pytest.mark.live, pytest.mark.timeout(600)]
MODEL = "smollm2-135m"


def client(stack: Stack, tenant: str) -> OpenAI:
    return OpenAI(base_url=stack.started.api_url, api_key=stack.key(tenant), max_retries=0, timeout=400)


def long_prompt() -> str:
    return f"{uuid.uuid4().hex} " + "The quick brown fox jumps over the lazy dog. " * 60


def cached_tokens(api: OpenAI, prompt: str, tier: Any, **extra: str) -> int:
    answer = api.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=2,
        service_tier=tier,
        extra_body=extra,
    )
    assert answer.usage is not None and answer.usage.prompt_tokens > 300
    details = answer.usage.prompt_tokens_details
    return (details.cached_tokens or 0) if details else 0


@pytest.mark.parametrize("tier", ["default", "flex"])
def test_a_neighbours_prompt_leaves_no_trace(real_stack: Stack, tier: Any) -> None:
    """`default` is SGLang here, `flex` vLLM."""
    prompt = long_prompt()
    alice, bob = client(real_stack, "alice"), client(real_stack, "bob")
    # The chat template's own first tokens may be known to a tenant from before; the prompt's are not.
    template_tokens = 64
    assert cached_tokens(alice, prompt, tier) < template_tokens
    assert cached_tokens(alice, prompt, tier) > 300
    assert cached_tokens(bob, prompt, tier) < template_tokens
    assert cached_tokens(bob, prompt, tier) > 300
    # Nor by naming a salt.
    assert cached_tokens(bob, long_prompt() + prompt, tier, cache_salt="alice") < template_tokens
    assert cached_tokens(bob, prompt, tier, cache_salt="alice") < template_tokens


@pytest.mark.parametrize("tier", ["default", "flex"])
def test_responses_and_their_bill(real_stack: Stack, tier: Any) -> None:
    tenant = f"responses-{tier}"
    api = client(real_stack, tenant)
    since_s = time.time() - 1
    whole = api.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8, service_tier=tier)
    assert whole.id.startswith("resp_") and whole.output_text and whole.service_tier == tier
    stream = api.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": "Say hello."}],
        max_output_tokens=8,
        stream=True,
        service_tier=tier,
    )
    events = list(stream)
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert any(event.type == "response.output_text.delta" for event in events)
    assert whole.usage is not None and last.response.usage is not None
    wanted = whole.usage.output_tokens + last.response.usage.output_tokens

    def billed() -> int:
        return sum(r.output_tokens for r in real_stack.store.usage(since_s) if r.tenant == tenant)

    real_stack.wait("the ledger", lambda: billed() == wanted, 15)
