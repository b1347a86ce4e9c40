"""Asking both sides of `tribes quality` through a running gateway. Owns: requests, what a failed one means.

Must not know: the figures, the screen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx

from cluster.cli.api import RequestFailed, bearer, failure_of
from cluster.cli.errors import UsageError
from cluster.quality import Answer, Difference, Prompt, UnreadableAnswer, difference, echoed_logprobs, read_answer
from cluster.vocabulary import tier_of_class

if TYPE_CHECKING:
    from cluster.config import TribesConfig

HOPELESS: Final = (401, 403, 404)
"""Statuses that the next prompt would get too."""


@dataclass(frozen=True, slots=True)
class Side:
    """Who is asked."""

    name: str
    model: str
    tier: str


@dataclass(slots=True)
class Comparison:
    """What came of it."""

    differences: list[Difference] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(prompt, what went wrong): these prompts are in no figure."""


def side_of(config: TribesConfig, name: str) -> Side:
    """`name`: a model, or a served deployment. Raises UsageError where requests could reach another deployment."""
    from cluster.config import unknown_reference

    if name in config.models:
        return Side(name, name, "auto")
    serving = config.serving()
    if name not in serving:
        raise UsageError(unknown_reference("model or served deployment", name, [*config.models, *serving]))
    deployment = serving[name]
    own = deployment.own_class
    others = [
        other
        for other, item in serving.items()
        if other != name and item.model == deployment.model and own in item.serves
    ]
    if others:
        raise UsageError(
            f"{name}: requests of class {own} may also run on {', '.join(others)}; to compare it alone, give it "
            "a model of its own in `models`, with the same source"
        )
    return Side(name, deployment.model, tier_of_class(own))


class Asker:
    """A client of the gateway with the settings of one comparison."""

    def __init__(self, client: httpx.AsyncClient, key: str, max_tokens: int, top_logprobs: int) -> None:
        self._client = client
        self._headers = bearer(key)
        self._sampling: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens}
        if top_logprobs:
            self._sampling |= {"logprobs": True, "top_logprobs": top_logprobs, "return_token_ids": True}

    async def answer(self, side: Side, prompt: Prompt) -> Answer:
        body = {"model": side.model, "service_tier": side.tier, "messages": list(prompt.messages), **self._sampling}
        return read_answer(await self._post("/v1/chat/completions", body))

    async def rescore(self, side: Side, answer: Answer) -> tuple[float, ...] | None:
        """The log-probabilities of another's tokens under this side; None where its engine does not tell them."""
        if not answer.prompt_ids or not answer.token_ids:
            return None
        body = {
            "model": side.model,
            "service_tier": side.tier,
            "prompt": [*answer.prompt_ids, *answer.token_ids],
            "echo": True,
            "logprobs": 1,
            "max_tokens": 1,
            "temperature": 0,
            "return_token_ids": True,  # vLLM echoes a prompt that came as ids only so
        }
        try:
            return echoed_logprobs(await self._post("/v1/completions", body), answer)
        except RequestFailed as error:
            if 400 <= error.status < 500 and error.status not in (*HOPELESS, 429):
                return None
            raise

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = await self._client.post(path, json=body, headers=self._headers)
        if response.status_code != 200:
            raise failure_of(response, response.content)
        try:
            parsed = response.json()
        except ValueError as error:
            raise UnreadableAnswer(f"not JSON: {response.text[:100]!r}") from error
        if not isinstance(parsed, dict):
            raise UnreadableAnswer("not a JSON object")
        return parsed


async def compare(
    asker: Asker,
    a: Side,
    b: Side,
    prompts: Sequence[Prompt],
    concurrency: int = 1,
    on_done: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Ask both sides everything. Differences keep the order of the prompts."""
    gate = asyncio.Semaphore(concurrency)
    found: dict[int, Difference] = {}
    failures: dict[int, tuple[str, str]] = {}

    async def one(number: int, prompt: Prompt) -> None:
        async with gate:
            try:
                found[number] = await _difference(asker, a, b, prompt)
            except RequestFailed as error:
                if error.status in HOPELESS:
                    raise
                failures[number] = (prompt.id, str(error))
            except (UnreadableAnswer, httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout) as error:
                failures[number] = (prompt.id, f"{type(error).__name__}: {error}")
        on_done(len(found) + len(failures))

    try:
        async with asyncio.TaskGroup() as group:
            for number, prompt in enumerate(prompts):
                group.create_task(one(number, prompt))
    except BaseExceptionGroup as errors:  # the first says what is wrong; the others are cancelled, or say it again
        raise errors.exceptions[0] from None
    return Comparison([found[n] for n in sorted(found)], [failures[n] for n in sorted(failures)])


async def _difference(asker: Asker, a: Side, b: Side, prompt: Prompt) -> Difference:
    # One after the other: at once, the two would share the steps of one engine when both are the same model.
    ours = await asker.answer(a, prompt)
    theirs = await asker.answer(b, prompt)
    # Where prompts are cut into other tokens, one side's ids mean nothing to the other.
    rescored = await asker.rescore(b, ours) if ours.prompt_ids == theirs.prompt_ids else None
    return difference(prompt.id, ours, theirs, rescored)
