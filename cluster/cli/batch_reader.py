"""Reading what output folders say, in bounded time.

Owns: which files are read, and that a store that does not answer costs no more than the time given.
Must not know: what the files mean.

A local folder is read here. A URL is read in a child process that is killed when its time is over: a call of an object
store's client cannot be interrupted, lasts minutes when the store does not answer, and at exit Arrow waits for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.cli.batch_output import OutputState

READ_S = 8.0


def read_outputs(locations: Iterable[str], timeout_s: float = READ_S) -> dict[str, OutputState]:
    """Each output's state, in at most about `timeout_s`; one that was not read by then has a problem."""
    wanted = list(dict.fromkeys(locations))
    urls = [location for location in wanted if "://" in location]
    child = _Child(urls, timeout_s) if urls else None
    found = {location: read_output(location) for location in wanted if "://" not in location}
    return found | (child.states() if child else {})


def read_output(location: str) -> OutputState:
    """Read one now, however long it takes."""
    from batch_jobs.job_files import PROGRESS_FILE
    from batch_jobs.output.parts import DONE_FILE, JOB_FILE, LOCK_FILE, REPORT_FILE
    from batch_jobs.storage import Storage, shown

    files = {
        "done": DONE_FILE, "progress": PROGRESS_FILE, "report": REPORT_FILE, "job": JOB_FILE, "lock": LOCK_FILE,
    }  # fmt: skip
    try:
        storage = Storage(location)
        present = set(storage.names())
        read: dict[str, Any] = {key: _read_json(storage, name) for key, name in files.items() if name in present}
        heartbeat = f"_heartbeat-{read.get('lock', {}).get('run_id')}"
        seen = float(storage.read(heartbeat)) if heartbeat in present else None
    except (OSError, ValueError) as error:  # Arrow's own errors are one of these
        return OutputState(location, problem=str(error).replace(location, shown(location)) or type(error).__name__)
    # An empty done.json still says that everything is there.
    read["done"] = read.get("done") or ({"complete": True} if DONE_FILE in present else {})
    return OutputState(
        location, **read, heartbeat_unix_s=seen, names=sorted(name for name in present if not name.startswith("_"))
    )


def _read_json(storage: Any, name: str) -> dict[str, Any]:
    try:
        found = json.loads(storage.read(name))
    except FileNotFoundError:  # gone since the listing: a lock that was given back
        return {}
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    return found if isinstance(found, dict) else {}


class _Child:
    """Another interpreter that reads the URLs side by side and prints each state as it has it."""

    def __init__(self, urls: list[str], timeout_s: float) -> None:
        self._urls = urls
        self._timeout_s = timeout_s
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli.batch_reader"], env={**os.environ, "PYTHONPATH": path}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def states(self) -> dict[str, OutputState]:
        found: dict[str, OutputState] = {}
        assert self._process.stdin is not None and self._process.stdout is not None
        killer = threading.Timer(self._timeout_s, self._process.kill)
        killer.start()
        try:
            with self._process.stdin as stdin:
                stdin.write(json.dumps(self._urls))
            for line in self._process.stdout:
                state = OutputState(**json.loads(line))
                found[state.location] = state
        except (OSError, ValueError):  # killed half way through a line, or before it had its list
            pass
        finally:
            killer.cancel()
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
        late = f"the store did not answer within {self._timeout_s:g} s"
        return {url: found.get(url, OutputState(url, problem=late)) for url in self._urls}


def main() -> None:
    """The child: URLs as JSON on standard input, a line of JSON per state on standard output."""
    printing = threading.Lock()

    def read(url: str) -> None:
        line = json.dumps(asdict(read_output(url)))
        with printing:
            print(line, flush=True)

    threads = [threading.Thread(target=read, args=(url,), daemon=True) for url in json.load(sys.stdin)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
