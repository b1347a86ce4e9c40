"""What the gateway measures. Owns: request, token and latency metrics. Must not know: HTTP, the queue."""

from __future__ import annotations

from ray.util.metrics import Histogram

from cluster.metrics.tally import Tally
from cluster.state import UsageRecord
from cluster.vocabulary import UPSTREAM_PREFIX

LATENCY_BUCKETS_S = [0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60, 120]
ITL_BUCKETS_S = [0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1]
_WHO = ("model", "request_class", "tenant")


class RequestMetrics:
    """Finished requests, their tokens and latencies, per model, class and tenant."""

    def __init__(self) -> None:
        self._requests = Tally("tribes_requests_total", "Finished requests", (*_WHO, "status"))
        self._tokens = Tally("tribes_tokens_total", "Tokens: uncached, cached, output", (*_WHO, "kind"))
        upstream = ("upstream", "model", "tenant")
        self._upstream = Tally("tribes_upstream_requests_total", "Requests that an upstream served", upstream)
        self._upstream_usd = Tally("tribes_upstream_usd_total", "Dollars paid to upstreams", upstream)
        self._ttft = Histogram("tribes_ttft_seconds", "Request to first byte of output", LATENCY_BUCKETS_S, _WHO)
        # The mean gap of each request: recording every gap would cost more than relaying the token.
        self._itl = Histogram("tribes_itl_seconds", "Mean gap between output tokens of a request", ITL_BUCKETS_S, _WHO)

    def finished(self, record: UsageRecord) -> None:
        """Called in the event loop."""
        who = (record.model, record.request_class, record.tenant)
        self._requests.add(1, *who, str(record.status))
        if record.deployment.startswith(UPSTREAM_PREFIX):
            upstream = (record.deployment.removeprefix(UPSTREAM_PREFIX), record.model, record.tenant)
            self._upstream.add(1, *upstream)
            if record.upstream_usd > 0:
                self._upstream_usd.add(record.upstream_usd, *upstream)
        uncached = record.prompt_tokens - record.cached_tokens
        for kind, count in (("uncached", uncached), ("cached", record.cached_tokens), ("output", record.output_tokens)):
            if count > 0:
                self._tokens.add(count, *who, kind)
        if record.ttft_s is not None:
            tags = dict(zip(_WHO, who, strict=True))
            self._ttft.observe(record.ttft_s, tags)
            if record.output_tokens > 1 and record.duration_s > record.ttft_s:
                self._itl.observe((record.duration_s - record.ttft_s) / (record.output_tokens - 1), tags)
