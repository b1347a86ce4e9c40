"""A closed loop in a process of its own: `python -m ...drive DOOR PROMPT AT_ONCE SECONDS SPREAD_S`.

For loads beside the one that is measured, and for a profile, in which the load generator must not appear. DOOR is a
JSON object. Prints the figures as one line of JSON. Owns: the command line. Must not know: what it is for.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import uvloop

from benchmarks.gateway_sides.cases import figures
from benchmarks.gateway_sides.closed_loop import closed
from benchmarks.gateway_sides.load import Door


def command(door: Door, prompt: str, at_once: int, seconds: float, spread_s: float = 0.0) -> list[str]:
    """The command line of such a process."""
    module = "benchmarks.gateway_sides.drive"
    return [sys.executable, "-m", module, json.dumps(asdict(door)), prompt, str(at_once), str(seconds), str(spread_s)]


def main() -> None:
    plain, prompt, at_once, seconds, spread_s = sys.argv[1:]
    fields = json.loads(plain)
    door = Door(fields["base_url"], tuple(fields["api_keys"]), fields["model"])
    outcome = uvloop.run(closed(door, prompt, int(at_once), float(seconds), spread_s=float(spread_s)))
    print(json.dumps(figures(outcome)), flush=True)


if __name__ == "__main__":
    main()
