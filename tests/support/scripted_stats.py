"""Role: what a scripted engine counts, and how it tells it: as JSON at /stats, as Prometheus text at /metrics."""

from __future__ import annotations

from dataclasses import dataclass

ASSUMED_SLOTS = 64


@dataclass(slots=True)
class Stats:
    """Requests to generate, since the start."""

    started: int = 0
    finished: int = 0
    aborted: int = 0
    running: int = 0
    max_running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


def metrics_text(stats: Stats, model: str, slots: int | None) -> str:
    """Under both engines' names, so that either adapter can read its double."""
    usage = min(1.0, stats.running / (slots or ASSUMED_SLOTS))
    values = {
        "vllm:num_requests_running": stats.running,
        "vllm:num_requests_waiting": stats.waiting,
        "vllm:kv_cache_usage_perc": usage,
        "vllm:prompt_tokens_total": stats.prompt_tokens,
        "vllm:generation_tokens_total": stats.generation_tokens,
        "sglang:num_running_reqs": stats.running,
        "sglang:num_queue_reqs": stats.waiting,
        "sglang:token_usage": usage,
        "sglang:prompt_tokens_total": stats.prompt_tokens,
        "sglang:generation_tokens_total": stats.generation_tokens,
    }
    return "".join(f'{name}{{model_name="{model}"}} {value}\n' for name, value in values.items())
