"""Ray's actor handle, imitated in one event loop: `handle.method.remote(...)` on a plain object.

Role: let the real lease client talk to the real dispatcher without Ray, with what Ray may do to it: arguments and
answers are pickled, a call runs on when its caller gives up, a dead actor fails every call that is on its way, and an
answer can be lost after the call was carried out. Must not know: gateways, engines.
"""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from collections.abc import Awaitable
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError


class Actor:
    """One life of the object behind a handle; its calls end with it."""

    def __init__(self, instance: Any) -> None:
        self.instance = instance
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.calls: set[asyncio.Task[Any]] = set()

    def start(self, name: str, pickled: bytes) -> asyncio.Task[bytes]:
        async def run() -> bytes:
            return pickle.dumps(await getattr(self.instance, name)(*pickle.loads(pickled)))

        task = asyncio.get_running_loop().create_task(run())
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        return task

    def kill(self) -> None:
        for task in (*self.calls, *self.instance._tasks):
            if task is not None:
                task.cancel()
        if not self.died.done():
            self.died.set_result(None)


class Handle:
    """What stands for the actor handle. It outlives the actor, as with `max_restarts=-1`."""

    def __init__(self, instance: Any) -> None:
        self.actor: Actor | None = Actor(instance)
        self.called: Counter[str] = Counter()
        self._to_lose: Counter[str] = Counter()

    def kill(self) -> None:
        """The actor's process ends; calls fail until `restart`."""
        assert self.actor is not None
        self.actor.kill()
        self.actor = None

    def restart(self, instance: Any) -> None:
        self.actor = Actor(instance)

    def lose_answers(self, name: str, times: int = 1) -> None:
        """The next calls of `name` are carried out, and their callers get an error at once."""
        self._to_lose[name] += times

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Method(self, name)

    async def wait_for(self, actor: Actor | None, name: str, task: asyncio.Task[bytes] | None) -> Any:
        if actor is None or task is None:
            await asyncio.sleep(0)
            raise ActorUnavailableError("the actor is being restarted", None)
        if self._to_lose[name]:
            self._to_lose[name] -= 1
            await asyncio.sleep(0.01)  # long enough for what does not wait to be carried out
            raise ActorUnavailableError("the connection broke", None)
        await asyncio.wait({task, actor.died}, return_when=asyncio.FIRST_COMPLETED)
        if actor.died.done():
            raise ActorDiedError()
        return pickle.loads(task.result())


class _Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self._handle = handle
        self._name = name

    def remote(self, *args: Any) -> Awaitable[Any]:
        self._handle.called[self._name] += 1
        actor = self._handle.actor
        task = actor.start(self._name, pickle.dumps(args)) if actor else None
        # A task of its own: Ray carries a call out whether its result is awaited or not.
        waiter = asyncio.get_running_loop().create_task(self._handle.wait_for(actor, self._name, task))
        waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
        return waiter
