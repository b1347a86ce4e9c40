"""Role: print the JSON schema of the configuration: `python -m cluster.config.jsonschema > configs/schema.json`.

Owns: the text form of that file (a test compares it byte for byte). Must not know: any particular section.
"""

from __future__ import annotations

import json
import sys

from cluster.config.root import config_schema


def schema_text() -> str:
    """The schema as it is committed: indented, in declaration order, with a final newline."""
    return json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
