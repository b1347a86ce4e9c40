"""What the gateway measures. Owns: request, token and latency metrics. Must not know: HTTP, the queue."""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

from cluster.state import UsageRecord
from cluster.vocabulary import UPSTREAM_PREFIX

LATENCY_BUCKETS_S = [0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60, 120]
ITL_BUCKETS_S = [0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1]
_WHO = ("model", "request_class", "tenant")


class RequestMetrics:
    """Finished requests, their tokens and latencies, per model, class and tenant."""

    def __init__(self) -> None:
        self._requests = Counter("tribes_requests_total", "Finished requests", (*_WHO, "status"))
        self._tokens = Counter("tribes_tokens_total", "Tokens: uncached, cached, output", (*_WHO, "kind"))
        upstream = ("upstream", "model", "tenant")
        self._upstream = Counter("tribes_upstream_requests_total", "Requests that an upstream served", upstream)
        self._upstream_usd = Counter("tribes_upstream_usd_total", "Dollars paid to upstreams", upstream)
        self._ttft = Histogram("tribes_ttft_seconds", "Request to first byte of output", LATENCY_BUCKETS_S, _WHO)
        # The mean gap of each request: recording every gap would cost more than relaying the token.
        self._itl = Histogram("tribes_itl_seconds", "Mean gap between output tokens of a request", ITL_BUCKETS_S, _WHO)

    def finished(self, record: UsageRecord) -> None:
        tags = {"model": record.model, "request_class": record.request_class, "tenant": record.tenant}
        self._requests.inc(1, {**tags, "status": str(record.status)})
        if record.deployment.startswith(UPSTREAM_PREFIX):
            name = record.deployment.removeprefix(UPSTREAM_PREFIX)
            paid = {"upstream": name, "model": record.model, "tenant": record.tenant}
            self._upstream.inc(1, paid)
            if record.upstream_usd > 0:
                self._upstream_usd.inc(record.upstream_usd, paid)
        uncached = record.prompt_tokens - record.cached_tokens
        for kind, count in (("uncached", uncached), ("cached", record.cached_tokens), ("output", record.output_tokens)):
            if count > 0:
                self._tokens.inc(count, {**tags, "kind": kind})
        if record.ttft_s is not None:
            self._ttft.observe(record.ttft_s, tags)
            if record.output_tokens > 1 and record.duration_s > record.ttft_s:
                self._itl.observe((record.duration_s - record.ttft_s) / (record.output_tokens - 1), tags)
