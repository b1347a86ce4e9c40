"""Importing the configuration is cheap: the command line does it on every call."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BUDGET_S = 0.5
HEAVY = {"ray", "torch", "vllm", "sglang", "transformers", "pandas", "numpy", "pyarrow"}

# CPU time, not wall time: what the import costs does not depend on what else the machine does.
PROBE = """
import json, sys, time
began = time.process_time()
import {module}
print(json.dumps([time.process_time() - began, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""


def probe(module: str) -> tuple[float, set[str]]:
    command = [sys.executable, "-c", PROBE.format(module=module)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    seconds, modules = json.loads(out)
    return seconds, set(modules)


@pytest.mark.parametrize("module", ["cluster", "cluster.vocabulary", "cluster.config"])
def test_import_is_fast_and_light(module):
    runs = [probe(module) for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < BUDGET_S
    for _, modules in runs:
        assert "cluster" in modules
        assert not modules & HEAVY
