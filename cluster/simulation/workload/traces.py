"""Recorded requests, whatever program wrote them; the format is known by its keys.

    Azure LLM inference trace   CSV    TIMESTAMP, ContextTokens, GeneratedTokens
    ServeGen, VTC arena         CSV    arrived_at_s, tenant, prompt_tokens, output_tokens
    Mooncake                    JSONL  timestamp (ms), input_length, output_length, hash_ids (blocks of 512 tokens)
    recorded vLLM runs          JSONL  queued_ts (else arrival_time), input_toks, output_toks
    vllm bench serve            JSON   start_times, input_lens, output_lens (its --save-detailed)
    our own                     JSONL  arrived_s, prompt_tokens, output_tokens; tenant, request_class, session, hash_ids

Owns: those formats. Must not know: what is done with the requests.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cluster.simulation.request import Request
from cluster.vocabulary import RequestClass

HASH_BLOCK_TOKENS: Final = 512
"""Tokens that one of `hash_ids` stands for."""
Row = Mapping[str, Any]


class TraceError(ValueError):
    """A trace that cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of arrival, the first at 0 s."""

    requests: list[Request]
    block_tokens: int | None
    """Of the requests' hashes; None where there are none."""

    @property
    def seconds(self) -> float:
        return self.requests[-1].arrived_s


def load_trace(
    path: Path, *, rate: float = 1.0, limit: int | None = None, request_class: RequestClass = RequestClass.ONLINE
) -> Trace:
    """The first `limit` requests, `rate` times as fast as they were recorded. `request_class` is for those that name
    none."""
    if rate <= 0:
        raise TraceError(f"the rate of a trace must be above 0, got {rate}")
    requests: list[Request] = []
    try:
        for arrived_s, row in _rows(path):
            requests.append(_request(arrived_s, row, request_class))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, TraceError):
            raise
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise TraceError(
            f"{path}, request {len(requests) + 1}: {what}; `tribes simulate --help` lists the formats"
        ) from error
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}; check the path") from error
    if not requests:
        raise TraceError(f"{path} has no requests")
    requests.sort(key=lambda request: request.arrived_s)
    requests = requests[:limit]
    begin_s = requests[0].arrived_s
    for number, request in enumerate(requests):
        request.number = number
        request.arrived_s = (request.arrived_s - begin_s) / rate
    return Trace(requests, HASH_BLOCK_TOKENS if any(request.blocks for request in requests) else None)


def _request(arrived_s: float, row: Row, request_class: RequestClass) -> Request:
    """Of a row with the names of our own format."""
    prompt, output = int(row["prompt_tokens"]), int(row["output_tokens"])
    if prompt < 1 or output < 1:
        raise ValueError(f"prompt and output need a token at least, got {prompt} and {output}")
    hashes = row.get("hash_ids") or ()
    session = row.get("session")
    if session is None and hashes:
        # What a session is cannot be seen in Mooncake's traces; conversations differ after the shared first block.
        session = f"s{hashes[min(1, len(hashes) - 1)]}"
    return Request(
        0,
        arrived_s,
        prompt,
        output,
        str(row.get("tenant") or "default"),
        RequestClass(row.get("request_class") or request_class),
        tuple(hashes[: prompt // HASH_BLOCK_TOKENS]),
        session,
    )


def _rows(path: Path) -> Iterator[tuple[float, Row]]:
    """(seconds, row) of each request, in our own names."""
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            reader = csv.DictReader(file)
            read = _csv_format(path, set(reader.fieldnames or ()))
            for row in reader:
                yield read(row)
            return
        if path.suffix == ".json":
            yield from _vllm_bench(json.load(file))
            return
        for text in file:
            if text.strip():
                yield _from_json(json.loads(text))


def _csv_format(path: Path, columns: set[str]) -> Callable[[Row], tuple[float, Row]]:
    if "ContextTokens" in columns:
        return _azure
    if "arrived_at_s" in columns:
        return lambda row: (float(row["arrived_at_s"]), row)
    raise TraceError(
        f"{path}: columns {', '.join(sorted(columns)) or 'none'} are of no format known: it needs arrived_at_s, "
        "prompt_tokens, output_tokens and may have tenant, request_class, session"
    )


def _azure(row: Row) -> tuple[float, Row]:
    # Seven digits of a second; datetime knows six.
    moment = datetime.fromisoformat(row["TIMESTAMP"][:26])
    at_s = (moment - datetime(1970, 1, 1, tzinfo=moment.tzinfo)).total_seconds()
    return at_s, {"prompt_tokens": row["ContextTokens"], "output_tokens": row["GeneratedTokens"]}


def _from_json(row: Row) -> tuple[float, Row]:
    if "input_length" in row:
        lengths = {"prompt_tokens": row["input_length"], "output_tokens": row["output_length"]}
        return row["timestamp"] / 1000, {**row, **lengths}
    if "input_toks" in row:
        at_s = row["queued_ts"] if "queued_ts" in row else row["arrival_time"]
        return at_s, {"prompt_tokens": row["input_toks"], "output_tokens": row["output_toks"]}
    return row["arrived_s"], row


def _vllm_bench(result: Row) -> Iterator[tuple[float, Row]]:
    """Failed requests have no output and are left out."""
    if "start_times" not in result or "input_lens" not in result:
        raise TraceError("no start_times and input_lens: write the result with `vllm bench serve --save-detailed`")
    columns = result["start_times"], result["input_lens"], result["output_lens"]
    for at_s, prompt, output in zip(*columns, strict=True):
        if output:
            yield at_s, {"prompt_tokens": prompt, "output_tokens": output}
