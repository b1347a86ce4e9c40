"""Are offline jobs as fast as vLLM driven by hand, and faster where order, duplicates and several pools matter?

Five cases, each in pairs within this run; engine starts are left out on every side (README says what they cost):

- `uniform`: 512 short prompts that share nothing. Ours, vLLM's AsyncLLM by hand, `ray.data.llm`.
- `all_cores`: the same without `ray.data.llm`, on an engine that computes on every core of the machine (see below).
- `shared_prefix`: 512 prompts over 64 long prefixes, shuffled, with a KV cache that holds about a quarter of them; on
  every core, because 200,000 tokens of prompts take one core ten minutes a side.
- `duplicates`: 512 prompts of which 30 % are the same as another one.
- `two_pools`: a scripted engine of speed 1 and one of speed 3, alone and in one job. No model: what is measured is
  how the job divides its work.

Engines compute on one core less than there are, as vLLM does by default: the other serves whoever feeds the engine. In
`all_cores` and `shared_prefix` they take them all (VLLM_CPU_NUM_OF_RESERVED_CPU=0); then every percent that any other
process needs stalls all of the engine's threads, and the price of Ray's processes on a small machine shows.

64 output tokens, greedy, the end-of-text token ignored, so that every side makes the same tokens. Ours is a whole job:
files in, committed parts out, measured from its first ready engine to its last committed row. The sides of other
projects are in offline_sides/. `python -m benchmarks.offline --json FILE [--quick] [--case NAME ...]`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from batch_jobs.plan import PoolPlan, make_plan
from benchmarks.offline_sides import prompts as make
from benchmarks.offline_sides.processes import SIDE_TIMEOUT_S, VllmSide, ray_data_side, vllm_side
from benchmarks.report import Report
from cluster.models import prepare_model

PAIRS, QUICK_PAIRS = 5, 3
PROMPTS, TOKENS = 512, 64
ROWS_A_PREFIX, PREFIX_WORDS = 8, 400
PREFIX_BLOCKS = 48  # of 128 tokens, vLLM's size on a CPU: the cache of some fifteen prefixes
REPEATED_SHARE = 0.3
POOL_SPEEDS = {"slow": 1, "fast": 3}
POOL_ROWS, POOL_ROW_S, POOL_PLACES = 1400, 0.3, 8
POOL_START_S = 8  # as with a real engine, rows are there before the first one is ready
CASES = ("uniform", "all_cores", "shared_prefix", "duplicates", "two_pools")
ON_ALL_CORES = ("all_cores", "shared_prefix")
ALL_CORES = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
OURS, VLLM, RAY_DATA, BOTH = "tribes", "vllm", "ray_data_llm", "both"
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Three pairs, a quarter of the prompts.")] = False,
    case: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(CASES)}.")] = None,
    config_path: Annotated[Path, typer.Option("--config")] = Path("configs/local.yaml"),
) -> None:
    cases = case or list(CASES)
    count, pairs = (PROMPTS // 4, QUICK_PAIRS) if quick else (PROMPTS, PAIRS)
    (plan,) = make_plan(str(config_path), None).pools
    sides = {name: engine_args(plan, name) for name in cases if name != "two_pools"}
    config = {
        "engine_args": sides, "env": {name: engine_env(plan, name) for name in sides},
        "prompts": count, "output_tokens": TOKENS,
        "rows_a_prefix": ROWS_A_PREFIX, "prefix_words": PREFIX_WORDS, "repeated_share": REPEATED_SHARE,
        "pool_speeds": POOL_SPEEDS, "pool_rows": POOL_ROWS, "pool_row_s": POOL_ROW_S, "pool_places": POOL_PLACES,
    }  # fmt: skip
    report = Report("offline", "python -m benchmarks.offline " + " ".join(sys.argv[1:]), config)
    if case and json_path.exists():
        keep_other_cases(report, json.loads(json_path.read_text()), cases)
    with tempfile.TemporaryDirectory() as folder:
        for name in cases:
            Case(name, plan, Path(folder), report, count, pairs).run()
            report.write(json_path)  # what is measured is kept, whatever happens to the next case
    for name, ratio in report.ratios.items():
        bar = report.bars.get(name)
        console.print(f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g}) {bar or ''}")


def keep_other_cases(report: Report, before: dict[str, Any], cases: list[str]) -> None:
    """Pairs are paired within their case: cases that were measured at other times may stand in one file."""
    report.runs += [run for run in before["runs"] if run["case"] not in cases]
    kept = {run["case"] for run in report.runs}
    names = [name for name in before["ratios"] if any(name.startswith(case) for case in kept)]
    report.ratios |= {name: before["ratios"][name] for name in names}
    report.bars |= {name: bar for name, bar in before["bars"].items() if name in names}
    for key in ("engine_args", "env"):
        report.config[key] |= {case: value for case, value in before["config"][key].items() if case in kept}
    report.command = f"{before['command']}; {report.command}"


def engine_args(plan: PoolPlan, case: str) -> dict[str, Any]:
    """The same for every side of a case."""
    args = dict(plan.engine_args)
    if case == "shared_prefix":
        args["num_gpu_blocks_override"] = PREFIX_BLOCKS
    return args


def engine_env(plan: PoolPlan, case: str) -> dict[str, str]:
    """The same for every side of a case."""
    env = {name: value for name, value in plan.env().items() if name not in ALL_CORES}
    return env | ALL_CORES if case in ON_ALL_CORES else env


class Case:
    """One case: its runs in pairs, then its ratios and bars."""

    def __init__(self, name: str, plan: PoolPlan, folder: Path, report: Report, count: int, pairs: int) -> None:
        self._name = name
        self._plan = plan
        self._folder = folder
        self._report = report
        self._count = count
        self._pairs = pairs
        model = plan.config.models[plan.model]
        self._model = str(prepare_model(plan.model, model, plan.config.paths, console.log).path_or_id)

    def run(self) -> None:
        if self._name == "two_pools":
            self._two_pools()
            return
        args = engine_args(self._plan, self._name)
        self._env = engine_env(self._plan, self._name)
        with vllm_side(self._model, args, self._env) as vllm:
            for pair in range(self._pairs):
                texts = self._folder / f"{self._name}-{pair}.json"
                texts.write_text(json.dumps(self._prompts(pair)))
                sides = [VLLM, OURS, *([RAY_DATA] if self._name == "uniform" else [])]
                for side in sides if pair % 2 == 0 else reversed(sides):
                    self._measure(pair, side, texts, vllm, args)
        self._compare()

    def _prompts(self, pair: int) -> list[str]:
        seed = f"{self._name}-{pair}"
        if self._name == "shared_prefix":
            return make.shared_prefixes(self._count, self._count // ROWS_A_PREFIX, PREFIX_WORDS, seed)
        if self._name == "duplicates":
            return make.repeated(self._count, REPEATED_SHARE, seed)
        return make.uniform(self._count, seed)

    def _measure(self, pair: int, side: str, texts: Path, vllm: VllmSide, args: dict[str, Any]) -> None:
        if side == VLLM:
            figures = vllm.run(texts, TOKENS)
        elif side == OURS:
            figures = self._ours(texts, f"{self._name}-{pair}", args)
        else:
            figures = ray_data_side(self._model, args, self._env, texts, TOKENS)
        tokens = self._count * TOKENS  # of the answers that the user gets, computed or copied
        figures |= {"case": self._name, "answer_tokens": tokens, "tokens_per_s": tokens / figures["seconds"]}
        self._report.add(pair, side, **figures)
        console.log(f"{self._name} pair {pair} {side}: {figures}")

    def _ours(self, texts: Path, name: str, args: dict[str, Any]) -> dict[str, Any]:
        rows = [{"id": f"r{i}", "prompt": text} for i, text in enumerate(json.loads(texts.read_text()))]
        deployment = self._plan.deployment.model_dump(mode="json", exclude_defaults=True)
        deployment["engine"] |= {"args": args, "env": self._env}
        config = {
            "models": {self._plan.model: self._plan.config.models[self._plan.model].model_dump(mode="json")},
            "deployments": {"engine": deployment},
            "pools": {self._plan.deployment.pool: {"usd_per_hour": 0.08}},
            "paths": {"models": str(self._plan.config.paths.models)},
        }
        options = ["--max-tokens", str(TOKENS), "--temperature", "0", "--params", '{"ignore_eos": true}']
        report = job(self._folder / name, config, rows, options)
        assert report["ok"] == len(rows), report["errors"]
        tokens = report["tokens"]
        return {
            "seconds": working_seconds(report), "prompt_tokens": tokens["input"], "output_tokens": tokens["output"],
            "cached_tokens": tokens["cached_input"], "computed_rows": report["rows"] - report["duplicates"],
        }  # fmt: skip

    def _compare(self) -> None:
        where = {"case": self._name}
        if self._name == "uniform":
            self._ratio("uniform_vs_vllm", "tokens_per_s", VLLM, ">= 0.98", 0.98, **where)
            self._ratio("uniform_vs_ray_data_llm", "tokens_per_s", RAY_DATA, "> 1", 1.0, **where)
        elif self._name == "all_cores":
            self._ratio("all_cores_vs_vllm", "tokens_per_s", VLLM, ">= 0.98", 0.98, **where)
        elif self._name == "shared_prefix":
            self._ratio("shared_prefix_vs_vllm", "tokens_per_s", VLLM, ">= 1.4", 1.4, **where)
        else:
            name = "duplicates_engine_time"
            self._report.compare(name, "seconds", OURS, VLLM, lambda ours, theirs: ours / theirs, **where)
            self._report.bar(name, "<= 0.75", lambda got: got <= 0.75)

    def _ratio(self, name: str, metric: str, other: str, need: str, least: float, **where: Any) -> None:
        self._report.compare(name, metric, OURS, other, lambda ours, theirs: ours / theirs, **where)
        self._report.bar(name, need, lambda got: got >= least)

    def _two_pools(self) -> None:
        order = [*POOL_SPEEDS, BOTH]
        for pair in range(self._pairs):
            for side in order if pair % 2 == 0 else reversed(order):
                figures = scripted_job(self._folder / f"pools-{pair}-{side}", [side] if side != BOTH else order[:-1])
                self._report.add(pair, side, case="two_pools", **figures)
                console.log(f"two_pools pair {pair} {side}: {figures}")
        rates: dict[int, dict[str, float]] = {}
        for run in self._report.runs:
            if run["case"] == "two_pools":
                rates.setdefault(run["pair"], {})[run["side"]] = run["rows_per_s"]
        for run in self._report.runs:
            if run["case"] == "two_pools" and run["side"] == BOTH:
                alone = sum(rates[run["pair"]][name] for name in POOL_SPEEDS)
                run["of_sum"] = run["rows_per_s"] / alone
        for name, metric in (("two_pools_vs_sum", "of_sum"), ("two_pools_tail_idle", "tail_idle")):
            self._report.compare(name, metric, BOTH, BOTH, lambda mine, _: mine, case="two_pools")
        self._report.bar("two_pools_vs_sum", ">= 0.95", lambda got: got >= 0.95)
        self._report.bar("two_pools_tail_idle", "<= 0.03", lambda got: got <= 0.03)


def job(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]], options: list[str]) -> dict[str, Any]:
    """A job on a Ray of its own, as `python -m batch_jobs.generate` runs it; its report.json."""
    folder.mkdir()
    config = config | {"ray": {"address": "local", "num_cpus": 8, "object_store_gib": 0.3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable, "-m", "batch_jobs.generate", "--input", str(folder / "in.jsonl"),
        "--output", str(folder / "out"), "--config", str(folder / "config.yaml"), *options,
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT, timeout=SIDE_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError((folder / "log").read_text())
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return report


def working_seconds(report: dict[str, Any]) -> float:
    """From the first ready engine to the last committed row."""
    (pool,) = report["pools"]
    tokens = pool["tokens"]["input"] + pool["tokens"]["output"]
    return float(tokens / pool["tokens_per_s"])


def scripted_job(folder: Path, names: list[str]) -> dict[str, Any]:
    """Rows that only take time, on pools of different speed. The rate counts from when all pools were ready."""
    deployments = {
        name: {
            "model": "m",
            "serves": ["offline"],
            "engine": {
                "kind": "vllm",
                "args": {
                    "delay_s": POOL_ROW_S / POOL_SPEEDS[name],
                    "max_num_seqs": POOL_PLACES,
                    "start_s": POOL_START_S,
                },
            },
            "pool": name,
        }
        for name in names
    }
    config = {
        "models": {"m": {"source": {"kind": "local", "path": str(folder)}}},
        "deployments": deployments,
        "pools": {name: {"usd_per_hour": float(POOL_SPEEDS[name])} for name in names},
        "offline": {"part_rows": 64, "part_seconds": 1},
    }
    share = sum(POOL_SPEEDS[name] for name in names) / sum(POOL_SPEEDS.values())
    rows = [{"id": f"r{i}", "prompt": f"row {i}"} for i in range(round(POOL_ROWS * share))]
    engine = ["--engine-class", "tests.support.scripted_offline_engine:ScriptedEngine", "--no-dedupe"]
    report = job(folder, config, rows, engine)
    # Engines of two pools are never ready in the same instant: each is charged for its own time.
    pools = report["pools"]
    seconds = max(pool["rows"] / pool_rate(pool) for pool in pools)
    places = sum(pool["tail_idle_s"] for pool in pools) / len(pools)
    return {
        "rows_per_s": sum(pool_rate(pool) for pool in pools),
        "seconds": seconds,
        "tail_idle": places / seconds,
        "rows": {pool["name"]: pool["rows"] for pool in pools},
    }


def pool_rate(pool: dict[str, Any]) -> float:
    """Rows per second over the pool's time from its first ready engine to the end of the job."""
    tokens = pool["tokens"]["input"] + pool["tokens"]["output"]
    return float(pool["rows"] / (tokens / pool["tokens_per_s"] + pool["tail_idle_s"]))


if __name__ == "__main__":
    typer.run(main)
