"""A gateway with models that answer by a table, with log-probabilities as engines give them. For `tribes quality`.

Models `base` and `twin` say the same; `drift` leaves the table at the third token of every other prompt and gives all
tokens of `base` a log-probability 0.25 lower; `mute` is `base` without log-probabilities, token ids or echo.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("The ", "answer ", "is ", "forty ", "two", ".")
WRONG = "about "
IDS = {word: number for number, word in enumerate((*WORDS, WRONG), 100)}
LOGPROB, DRIFT = -0.2, -0.45
PROMPT_IDS = [1, 2, 3]


class Handler(BaseHTTPRequestHandler):
    """Chat completions and echoed completions."""

    requests: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append({"path": self.path, **body})
        text = str(body.get("messages") or "")
        if "refuse" in text:
            self._send(429, {"error": {"message": "the queue is full"}})
        elif self.path == "/v1/completions":
            self._echo(body)
        else:
            self._send(200, self._chat(body))

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        model, odd = body["model"], "odd" in str(body["messages"])
        words = [*WORDS[:2], WRONG, *WORDS[3:]] if model == "drift" and odd else list(WORDS)
        choice: dict[str, Any] = {"message": {"content": "".join(words)}, "finish_reason": "stop", "logprobs": None}
        if model == "mute" or "logprobs" not in body:
            return {"choices": [choice]}
        logprob = DRIFT if model == "drift" else LOGPROB
        choice["logprobs"] = {"content": [self._step(word, logprob) for word in words]}
        choice["token_ids"] = [IDS[word] for word in words]
        return {"choices": [choice], "prompt_token_ids": PROMPT_IDS}

    @staticmethod
    def _step(word: str, logprob: float) -> dict[str, Any]:
        other = math.log(1 - math.exp(logprob))
        top = [{"token": word, "logprob": logprob}, {"token": "#", "logprob": other}]
        return {"token": word, "logprob": logprob, "top_logprobs": top}

    def _echo(self, body: dict[str, Any]) -> None:
        if body["model"] == "mute":
            self._send(400, {"error": {"message": "echo is not supported"}})
            return
        ids = body["prompt"]
        assert ids[:3] == PROMPT_IDS and body["echo"] and body["max_tokens"] == 1
        logprob = DRIFT if body["model"] == "drift" else LOGPROB
        scores = [None, -5.0, -5.0, *(logprob for _ in ids[3:]), -0.01]
        self._send(200, {"choices": [{"text": "", "logprobs": {"token_logprobs": scores}}]})

    def _send(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def answering() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(port, the requests so far)."""
    requests: list[dict[str, Any]] = []
    handler = type("Bound", (Handler,), {"requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server.server_port, requests
        server.shutdown()
        thread.join(10)
