"""Accepted work on a real Ray cluster: batches and background requests outlive their worker and the whole cluster."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from openai import OpenAI
from openai.types import Batch

from cluster.config import TribesConfig
from cluster.local import processes, read_run
from cluster.local.up import down, up
from tests.support.stack import Stack, running

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]
MODEL, TOKENS, STALE_S = "tiny", 200, 16
"""An answer takes a second: long enough to be killed in."""


@pytest.fixture(scope="module")
def promising(scripted_config: TribesConfig) -> Iterator[Stack]:
    settings = scripted_config.model_dump(mode="json")
    settings["batches"]["stale_after_s"] = STALE_S
    with running(TribesConfig.model_validate(settings)) as stack:
        yield stack


def client(stack: Stack, tenant: str) -> OpenAI:
    return OpenAI(base_url=f"{stack.base_url}/v1", api_key=stack.key(tenant), max_retries=3, timeout=60)


def line(number: int) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{number}"}], "x_script": {"tokens": TOKENS}}
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def begin(api: OpenAI, lines: int, window: Any = "24h") -> Batch:
    text = "\n".join(json.dumps(line(number)) for number in range(lines))
    uploaded = api.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return api.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window=window, metadata={"run": "1"}
    )


def counted(api: OpenAI, batch: Batch) -> int:
    counts = api.batches.retrieve(batch.id).request_counts
    return counts.completed if counts else 0


def answers(api: OpenAI, batch: Batch) -> list[dict[str, Any]]:
    assert batch.output_file_id is not None
    return [json.loads(text) for text in api.files.content(batch.output_file_id).text.splitlines()]


def finished(stack: Stack, api: OpenAI, batch: Batch, within_s: float) -> Batch:
    stack.wait("the batch", lambda: api.batches.retrieve(batch.id).status == "completed", within_s, poll_s=0.5)
    return api.batches.retrieve(batch.id)


def billed(stack: Stack, tenant: str) -> list[int]:
    return [record.output_tokens for record in stack.store.usage() if record.tenant == tenant]


def worker_pids() -> list[int]:
    titles = ((p.pid, " ".join(p.info["cmdline"] or ())) for p in psutil.process_iter(["cmdline"]))
    return [pid for pid, title in titles if "ServeReplica:tribes:deferred-worker" in title]


def test_a_batch_outlives_its_worker(promising: Stack) -> None:
    api = client(promising, "a")
    batch = begin(api, 96)
    promising.wait("the first results", lambda: 0 < counted(api, batch) < 96, 60)
    run = read_run(promising.config)
    assert run is not None
    (worker,) = set(worker_pids()) & set(processes.marked_pids(run.marker))
    os.kill(worker, signal.SIGKILL)
    done = finished(promising, api, batch, STALE_S + 90)
    lines = answers(api, done)
    assert sorted(item["custom_id"] for item in lines) == sorted(f"line-{n}" for n in range(96))
    assert all(item["response"]["body"]["usage"]["completion_tokens"] == TOKENS for item in lines)
    assert done.error_file_id is None and done.metadata == {"run": "1"}
    assert billed(promising, "a") == [TOKENS] * 96, "each line is paid once"


def test_accepted_work_outlives_the_cluster(promising: Stack) -> None:
    api = client(promising, "b")
    batch = begin(api, 96)
    note = api.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "later"}],
        extra_body={"background": True, "x_script": {"tokens": TOKENS * 5}},
    )  # fmt: skip
    promising.wait("the first results", lambda: 0 < counted(api, batch) < 96, 60)
    down(promising.config, 20.0, print)
    promising.started = up(promising.config, print)
    again = client(promising, "b")
    done = finished(promising, again, batch, STALE_S + 120)
    assert sorted(item["custom_id"] for item in answers(again, done)) == sorted(f"line-{n}" for n in range(96))

    def answered() -> bool:
        return again.chat.completions.retrieve(note.id).object == "chat.completion"

    promising.wait("the background answer", answered, 60)
    answer = again.chat.completions.retrieve(note.id)
    assert answer.usage is not None and answer.usage.completion_tokens == TOKENS * 5
    assert sorted(billed(promising, "b")) == [TOKENS] * 96 + [TOKENS * 5]


def test_a_short_window_is_a_deadline_and_other_tenants_see_nothing(promising: Stack) -> None:
    api, other = client(promising, "c"), client(promising, "a")
    batch = begin(api, 200, window="4s")  # twelve seconds of work
    began_s = time.monotonic()

    def ended() -> bool:
        return api.batches.retrieve(batch.id).status == "expired"

    promising.wait("the deadline", ended, 30)
    assert time.monotonic() - began_s < 20
    late = api.batches.retrieve(batch.id)
    assert late.error_file_id is not None and late.request_counts is not None
    errors = [json.loads(text) for text in api.files.content(late.error_file_id).text.splitlines()]
    got = answers(api, late) if late.output_file_id else []
    assert len(errors) + len(got) == 200 and {item["error"]["code"] for item in errors} == {"batch_expired"}
    with pytest.raises(Exception, match="404"):
        other.batches.retrieve(batch.id)
    assert batch.id not in {item.id for item in other.batches.list()}
