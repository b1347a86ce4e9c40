"""Consoles and progress. Owns: how waiting looks: a spinner in a terminal, plain lines elsewhere.

Must not know: what is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.table import Table

HEARTBEAT_S = 15.0
LOG_WIDTH = 120
"""Tables in a log or a pipe: Rich would assume 80 columns."""


def console() -> Console:
    """Standard output, wide enough for tables where it is not a terminal."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=max(made.width, LOG_WIDTH))


def error_console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def titled_table(title: str, *columns: str, right: Collection[str] = ()) -> Table:
    """The look of all tables; the columns named in `right` hold numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


class Progress:
    """Say what is being done now; use as a context, call with a line.

    Every line is printed with the seconds since the start. In a terminal the current one turns a spinner below them; in
    a log, one that lasts is repeated every `heartbeat_s`, so that silence never means that nothing happens.
    """

    def __init__(self, screen: Console, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._screen = screen
        self._heartbeat_s = heartbeat_s
        self._started_s = self._said_s = time.monotonic()
        self._line = ""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._status: Status | None = None
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if self._screen.is_terminal:
            self._status = self._screen.status("", spinner="dots")
            self._status.start()
        else:
            self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._status is not None:
            self._status.stop()
        if self._beating is not None:
            self._beating.join()

    def __call__(self, line: str) -> None:
        """A new line: the thing done from now on."""
        with self._lock:
            self._line, self._said_s = line, time.monotonic()
            self._print(line)
        self._spin(line)

    def update(self, line: str) -> None:
        """Change the current line without a new one: for counters. A log gets it with the next heartbeat."""
        with self._lock:
            self._line = line
        self._spin(line)

    def _spin(self, line: str) -> None:
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(line))

    def _print(self, line: str) -> None:
        from rich.markup import escape

        elapsed_s = time.monotonic() - self._started_s
        self._screen.print(f"[dim]{elapsed_s:6.1f} s[/dim]  {escape(line)}", soft_wrap=True)

    def _beat(self) -> None:
        while not self._over.wait(min(1.0, self._heartbeat_s)):
            with self._lock:
                if self._line and time.monotonic() - self._said_s >= self._heartbeat_s:
                    self._said_s = time.monotonic()
                    self._print(self._line)
