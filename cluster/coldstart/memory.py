"""Role: what a process costs in memory when it shares pages with others. Owns: reading the kernel's sums.

A page that n processes share counts 1/n in each one's PSS, so PSS adds up; RSS would count it n times.
Must not know: what the processes do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KIB = 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process or the sum of several, in bytes."""

    pss_bytes: int
    shared_bytes: int
    """Resident pages that other processes map too; of a forked engine, most of these are the fork host's."""
    private_bytes: int


def memory_of(pids: Iterable[int]) -> Memory:
    """Processes that are gone or hidden count nothing."""
    pss = shared = private = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        sums = parse(lines)
        pss += sums.get("Pss", 0)
        shared += sums.get("Shared_Clean", 0) + sums.get("Shared_Dirty", 0)
        private += sums.get("Private_Clean", 0) + sums.get("Private_Dirty", 0)
    return Memory(pss, shared, private)


def parse(lines: Iterable[str]) -> dict[str, int]:
    """`Name: N kB` lines as bytes by name."""
    words = [line.split() for line in lines]
    return {word[0].rstrip(":"): int(word[1]) * KIB for word in words if len(word) == 3 and word[2] == "kB"}
