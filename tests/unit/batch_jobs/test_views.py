"""Progress lines, the report's arithmetic, the plan's arguments and the orphan guard."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from rich.console import Console

from batch_jobs.engines.base import Sampling
from batch_jobs.output.lock import process_start
from batch_jobs.output.parts import Totals
from batch_jobs.plan import make_plan
from batch_jobs.reporting.progress import ProgressView
from batch_jobs.reporting.report import run_report
from batch_jobs.work.ray_run import concurrent_calls
from tests.support.offline_jobs import write_config


def test_one_plain_line_every_five_seconds() -> None:
    now = [0.0]
    out = io.StringIO()
    view = ProgressView(Console(file=out, width=200), total_rows=1000, done_rows=100, clock=lambda: now[0])
    with view:
        for second in range(12):
            now[0] = float(second)
            totals = Totals(second * 10, second * 500, 0, second * 200, {"missing_prompt": second})
            view.show(totals, engines=int(second > 0))
    assert out.getvalue().splitlines() == [
        "rows 150/1000 | tokens/s in 500 out 200 | errors 5 | ETA 00:01:25",
        "rows 200/1000 | tokens/s in 500 out 200 | errors 10 | ETA 00:01:20",
    ]


def test_no_rate_before_an_engine_is_up() -> None:
    view = ProgressView(Console(file=io.StringIO()), 10, 0)
    assert view.line(Totals(), engines=0) == "rows 0/10 | starting engines"


def test_cost_of_a_run() -> None:
    report = run_report(Totals(10, 600_000, 100_000, 400_000), 100.0, [3.0], 1, 1800.0, usd_per_hour=2.0)
    assert (report.usd, report.usd_per_mtok, report.tokens_per_s) == (1.0, 1.0, 10_000.0)
    assert run_report(Totals(), 0.0, [], 0, 0.0, 2.0).usd_per_mtok is None


def test_a_plan_passes_placement_and_engine_arguments_through(tmp_path: Path) -> None:
    path = write_config(tmp_path, **{"enable-prefix-caching": True, "seed": 1})
    config = yaml.safe_load(path.read_text())
    deployment = config["deployments"]["batch"]
    deployment["engine"]["env"] = {"A": "1"}
    deployment["resources"] = {"cpus": 2, "gpus": 0.5, "memory_gib": 1, "custom": {"nvme": 1}}
    config["pools"]["default"] |= {"labels": {"zone": "a"}, "accelerator_type": "L4"}
    path.write_text(yaml.safe_dump(config))
    plan = make_plan(str(path), None)
    assert plan.model == "m"
    assert plan.actor_options() == {
        "num_cpus": 2,
        "num_gpus": 0.5,
        "memory": 2**30,
        "resources": {"nvme": 1},
        "label_selector": {"zone": "a"},
        "accelerator_type": "L4",
        "runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "1", "A": "1"}},
    }
    settings = plan.engine_settings(Sampling(temperature=0.0))
    assert settings.engine_args["enable_prefix_caching"] is True and settings.engine_args["seed"] == 1
    assert settings.sampling.given() == {"temperature": 0.0}
    assert plan.max_in_flight == 8


def test_rows_waiting_for_their_part_do_not_starve_the_engine() -> None:
    assert concurrent_calls(max_in_flight=512, part_rows=256, rows_per_chunk=64) * 64 >= 512 + 256


def test_children_die_with_a_killed_process(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "from batch_jobs.work.orphans import die_with_children\n"
        "die_with_children()\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert process_start(child) is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline_s = time.monotonic() + 10
    while process_start(child) is not None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert process_start(child) is None
    parent.stdout.close()


def test_shared_memory_of_a_killed_group_is_removed(tmp_path: Path) -> None:
    """Ray may kill the resource tracker too, which would have tidied up; a semaphore has no name in its owner's map."""
    script = tmp_path / "group.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from multiprocessing import shared_memory\n"
        "from batch_jobs.work.orphans import die_with_children\n"
        "die_with_children()\n"
        "before = set(os.listdir('/dev/shm'))\n"
        "lock = multiprocessing.get_context('spawn').Lock()\n"
        "memory = shared_memory.SharedMemory(create=True, size=1000)\n"
        "print(*(set(os.listdir('/dev/shm')) - before), flush=True)\n"
        "time.sleep(100)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert parent.stdout is not None
    left = [Path("/dev/shm", name) for name in parent.stdout.readline().split()]
    assert len(left) >= 2 and all(path.exists() for path in left)
    time.sleep(3)  # the watcher looks every two seconds
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline_s = time.monotonic() + 10
    while any(path.exists() for path in left) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    parent.stdout.close()
    assert not [path for path in left if path.exists()]
