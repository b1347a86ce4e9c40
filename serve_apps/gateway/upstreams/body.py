"""What an upstream gets to read: the client's request under the upstream's name for the model, and nothing of ours.

Owns: the body. Must not know: connections, keys, why the request goes there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import orjson

from serve_apps.gateway.doors import BY_PATH
from serve_apps.gateway.request import GenerationRequest
from serve_apps.gateway.splice import written

ENGINE_FIELDS = frozenset(
    {
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "cache_salt",
        "data_parallel_rank",
        "kv_transfer_params",
        "lora_path",
        "priority",
        "request_id",
        "rid",
        "service_tier",
        "session_params",
        "vllm_xargs",
    }
)
"""About queues, caches and processes of ours. Sampling fields beyond OpenAI's pass: many upstreams are engines too, and
one that is not has them in its `drop`."""


def upstream_body(request: GenerationRequest, model: str, drop: Collection[str] = ()) -> bytes:
    """The request's body for an upstream that calls the model `model`. A stream is asked to tell its usage."""
    fields = {
        name: value
        for name, value in orjson.loads(request.body).items()
        if name not in ENGINE_FIELDS and name not in drop
    }
    fields["model"] = model
    if request.stream and BY_PATH[request.path].usage_on_request:
        options = fields.get("stream_options")
        fields["stream_options"] = {**(options if isinstance(options, Mapping) else {}), "include_usage": True}
    return written(fields)
