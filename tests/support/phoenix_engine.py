"""Role: an engine server that is back within milliseconds of its `kill -9`: `python -m tests.support.phoenix_engine`.

The parent holds the port and a child serves. Whoever kills the child breaks every connection, as the death of an engine
does, and the parent forks the next one; so a test can kill a hundred of them without waiting for a hundred replicas.
Takes the command line of the scripted engine. Must not know: Tribes. Ends with its parent, or on SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import asdict

import uvicorn

from tests.support.scripted_engine import Engine, api_key, parser
from tests.support.scripted_script import Script


def main() -> None:
    flags, _ = parser().parse_known_args()
    listener = socket.create_server((flags.host, flags.port), backlog=512)
    ended = False
    child = 0

    def end(*_: object) -> None:
        nonlocal ended
        ended = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while not ended:
        child = os.fork()
        if child == 0:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            serve(flags, listener)
            os._exit(0)
        os.waitpid(child, 0)


def serve(flags: object, listener: socket.socket) -> None:
    named = vars(flags)
    engine = Engine(
        model=named["served_model_name"] or named["model_path"],
        api_key=api_key(flags),  # type: ignore[arg-type]
        script=Script(**{name: named[name] for name in asdict(Script())}),
        max_model_len=named["max_model_len"],
        max_running=named["max_running"],
    )
    config = uvicorn.Config(engine, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
