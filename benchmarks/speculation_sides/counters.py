"""vLLM's counters of speculative decoding. Owns: their names (vLLM 0.32) and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load import Target

METRICS_TIMEOUT_S = 30.0
DRAFTS = "vllm:spec_decode_num_drafts_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the start of the engine; all zero for one that does not speculate."""

    drafts: float = 0.0
    drafted_tokens: float = 0.0
    accepted_tokens: float = 0.0

    def since(self, before: Counters) -> Counters:
        return Counters(
            self.drafts - before.drafts,
            self.drafted_tokens - before.drafted_tokens,
            self.accepted_tokens - before.accepted_tokens,
        )

    def figures(self, tokens: float) -> dict[str, float]:
        """`tokens`: what was generated meanwhile. Without a draft nothing was accepted."""
        return {
            "drafts": self.drafts,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "acceptance": self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0,
            "accepted_per_draft": self.accepted_tokens / self.drafts if self.drafts else 0.0,
            "accepted_share_of_output": self.accepted_tokens / tokens if tokens else 0.0,
        }


async def read_counters(target: Target) -> Counters:
    timeout = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {target.api_key}"}
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
        session.get(f"{target.base_url}/metrics") as answer,
    ):
        answer.raise_for_status()
        return parse_counters(await answer.text())


def parse_counters(text: str) -> Counters:
    wanted = (DRAFTS, DRAFTED, ACCEPTED)
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in wanted]
    sums = dict.fromkeys(wanted, 0.0)
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            sums[sample.name] += sample.value
    return Counters(sums[DRAFTS], sums[DRAFTED], sums[ACCEPTED])
