"""What was submitted from here: one JSON file per job in `<paths.data>/batch`.

Owns: those files. Must not know: Ray (whose own list of jobs ends with the cluster, which is why this one exists), what
is in an output folder.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "batch"


@dataclass(frozen=True, slots=True)
class Submission:
    """One job as it was handed to Ray. `output` means the same in every process: an absolute path or a URL."""

    id: str
    command: str
    output: str
    model: str | None
    config: str
    submitted_at_s: float


class Registry:
    """The submissions of one configuration's data folder."""

    def __init__(self, data: Path) -> None:
        self._folder = data / FOLDER

    def record(self, submission: Submission) -> None:
        """Keep a submission; its file is there whole or not at all, and on disk when this returns."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{submission.id}.{uuid.uuid4().hex[:8]}.tmp"
        # Readable by its owner alone: URLs may hold credentials.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(asdict(submission), stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._folder / f"{submission.id}.json")

    def submissions(self) -> list[Submission]:
        """The newest first. A file that is not one of ours (damaged, another version's) is left out, not an error."""
        found = []
        for path in self._folder.glob("*.json"):
            try:
                found.append(Submission(**json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError):
                continue
        return sorted(found, key=lambda submission: submission.submitted_at_s, reverse=True)
