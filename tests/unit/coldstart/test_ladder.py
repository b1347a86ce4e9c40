"""Which rung is chosen, which there are, and how a start is split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cluster.coldstart import capabilities
from cluster.coldstart.capabilities import available_bytes, rungs_of
from cluster.coldstart.ladder import NAMES, Rung, choose
from cluster.coldstart.memory import memory_of, parse
from cluster.coldstart.stages import split
from cluster.config import DeploymentConfig
from cluster.config.checks import cross_problems
from cluster.engines import build_spec

GIB = 2**30
COLD = Rung("cold", seconds=30)


def test_the_fastest_that_fits() -> None:
    forked, resident = Rung("forked", None, 6, GIB), Rung("resident", None, 0.1, 4 * GIB)
    rungs = [resident, forked, COLD]
    assert [choose(rungs, budget).name for budget in (0, GIB, 4 * GIB)] == ["cold", "forked", "resident"]


def test_a_rung_that_is_not_there_is_not_chosen() -> None:
    assert choose([Rung("resident", why_not="no memory"), COLD], 9 * GIB) is COLD


def test_what_was_measured_counts_more_than_the_order() -> None:
    slow = Rung("forked", None, 40, GIB)
    assert choose([slow, COLD], GIB) is COLD
    assert choose([slow, Rung("cold")], GIB) is slow, "cold was not measured: the order counts"


def test_no_rung_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="give `cold`"):
        choose([Rung("forked", held_bytes=1)], 0)


def rungs(kind: str = "vllm", gpus: int = 0, **engine: Any) -> dict[str, str | None]:
    settings = {"model": "m", "serves": ["online"], "resources": {"gpus": gpus}, "engine": {"kind": kind, **engine}}
    deployment = DeploymentConfig.model_validate(settings)
    found = rungs_of(deployment, build_spec(deployment, "m", "/m", "127.0.0.1", 1, "key"))
    assert tuple(rung.name for rung in found) == NAMES
    return {rung.name: rung.why_not for rung in found}


def test_rungs_of_a_cpu() -> None:
    found = rungs()
    assert [name for name, why_not in found.items() if why_not is None] == ["resident", "forked", "cold"]
    assert rungs("sglang") == found
    assert "entrypoint" in (rungs(entrypoint=["python", "-m", "other"])["forked"] or "")


def test_rungs_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "GPU_DEVICE", Path("/nonexistent"))
    assert rungs(gpus=1)["asleep"] == "no GPU on this machine"
    monkeypatch.setattr(capabilities, "GPU_DEVICE", Path("/dev/null"))
    found = rungs(gpus=1)
    assert found["asleep"] is None and found["forked"] == "only tried on CPUs"


def test_free_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    assert available_bytes(tmp_path / "meminfo") == 50 * 1024


def test_memory_of_processes() -> None:
    lines = [
        "55d0 ---p 00000000 00:00 0 [rollup]",
        "Rss: 9 kB",
        "Pss: 5 kB",
        "Shared_Clean: 4 kB",
        "Private_Dirty: 3 kB",
    ]
    assert parse(lines) == {"Rss": 9216, "Pss": 5120, "Shared_Clean": 4096, "Private_Dirty": 3072}
    own = memory_of([os.getpid()])
    assert own.pss_bytes > 1e6 and own.private_bytes > 1e6
    assert memory_of([2**22 + 1]).pss_bytes == 0


VLLM = [
    (5.0, "INFO utils.py:286] non-default args: {...}"),
    (9.0, "INFO cpu_model_runner.py:68] Starting to load model /m..."),
    (9.5, "INFO default_loader.py:502] Loading weights took 0.4 seconds"),
    (10.0, "INFO core.py:403] init engine (profile, create kv cache, warmup model) took 0.5 s"),
    (11.0, "INFO entry.py:140] Starting vLLM server on http://127.0.0.1:1"),
]


def test_the_stages_of_a_start() -> None:
    stages = split("vllm", VLLM, process_s=1.0, routable_s=12.0)
    assert stages == {
        "process": 1.0,
        "import": 4.0,
        "engine": 4.0,
        "weights": 0.5,
        "compile": 0.5,
        "warm_up": 1.0,
        "routable": 1.0,
    }


def test_a_line_that_did_not_come_joins_two_stages() -> None:
    stages = split("vllm", [VLLM[0], VLLM[2], VLLM[4]], 1.0, 12.0)
    assert "engine" not in stages and stages["weights"] == 4.5 and sum(stages.values()) == 12.0
    assert split("vllm", [], 0.5, 2.0) == {"process": 0.5, "routable": 1.5}


@pytest.mark.parametrize(
    ("engine", "gpus", "refused"),
    [
        ({"kind": "vllm", "start": "fork"}, 0, False),
        ({"kind": "vllm", "start": "fork"}, 1, True),
        ({"kind": "sglang", "start": "fork"}, 0, False),
        ({"kind": "sglang", "start": "auto"}, 1, False),
        ({"kind": "vllm", "start": "fork", "entrypoint": ["run"]}, 0, True),
    ],
)
def test_a_fork_that_cannot_be_is_refused(engine: dict[str, Any], gpus: int, refused: bool) -> None:
    data = {"deployments": {"d": {"engine": engine, "resources": {"gpus": gpus}}}}
    found = [problem for problem in cross_problems(data) if problem.path == ("deployments", "d", "engine", "start")]
    assert bool(found) == refused
