"""What the dispatcher has for each gateway, and when it last heard from it.

Owns: outboxes, the events that wake long polls, silence. Must not know: the queue, Ray.
Times are of the monotonic clock: a machine that slept, or a clock that was set, makes nobody silent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from serve_apps.messages import Answers


class Mailboxes:
    """One box per known gateway."""

    def __init__(self) -> None:
        self._heard_s: dict[str, float] = {}
        self._outbox: dict[str, Answers] = {}
        self._mail: dict[str, asyncio.Event] = {}

    def __contains__(self, gateway_id: str) -> bool:
        return gateway_id in self._heard_s

    def __len__(self) -> int:
        return len(self._heard_s)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._heard_s))

    def open(self, gateway_id: str, now_s: float) -> None:
        """A box for a gateway that said hello, empty: what it had may never have arrived."""
        if (mail := self._mail.pop(gateway_id, None)) is not None:
            mail.set()  # a poll from before would carry answers to where nobody may be listening any more
        self._outbox[gateway_id] = Answers()
        self._mail[gateway_id] = asyncio.Event()
        self._heard_s[gateway_id] = now_s

    def heard(self, gateway_id: str, now_s: float) -> None:
        self._heard_s[gateway_id] = now_s

    def post(self, gateway_id: str) -> Answers:
        """The answers to write into; wakes the gateway's long poll. For a gateway that is gone, a box nobody reads."""
        if gateway_id not in self._outbox:
            return Answers()
        self._mail[gateway_id].set()
        return self._outbox[gateway_id]

    def take(self, gateway_id: str) -> Answers:
        """Everything in the box."""
        if gateway_id not in self._outbox:
            return Answers(resync=True)
        answers, self._outbox[gateway_id] = self._outbox[gateway_id], Answers()
        self._mail[gateway_id].clear()
        return answers

    async def wait(self, gateway_id: str, timeout_s: float) -> Answers:
        """The box once there is something in it, or after `timeout_s`; nothing when a newer hello came meanwhile."""
        mail = self._mail[gateway_id]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                # Again when an exchange has taken what had woken this poll.
                while not mail.is_set():
                    await mail.wait()
        superseded = gateway_id in self._mail and self._mail[gateway_id] is not mail
        return Answers() if superseded else self.take(gateway_id)

    def close(self, gateway_id: str) -> None:
        for book in (self._heard_s, self._outbox, self._mail):
            book.pop(gateway_id, None)

    def silent(self, now_s: float, patience_s: float) -> list[str]:
        return [gateway_id for gateway_id, heard_s in self._heard_s.items() if now_s - heard_s > patience_s]

    def excuse(self, seconds: float) -> None:
        """The dispatcher itself was late: nobody is more silent for that."""
        self._heard_s = {gateway_id: heard_s + seconds for gateway_id, heard_s in self._heard_s.items()}
