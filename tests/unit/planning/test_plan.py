"""Plans: what is chosen, why others lose, what is counselled, and what measurements change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ConfigError, load_config
from cluster.planning import Calibration, Candidate, Plan, Shape, completed, load_request, plan
from cluster.planning.kernels import KernelTimes, kernel_times
from cluster.planning.load import Bucket, Replica, Targets
from cluster.planning.mixed import mixed_fleet
from cluster.planning.search import Demand, Market, best_per_accelerator
from cluster.simulation.step_model import StepModel
from cluster.vocabulary import RequestClass
from tests.unit.planning.models import LLAMA_8B, LLAMA_70B, MIXTRAL, WORKLOAD, with_classes, write_workload

ONLINE = WORKLOAD["classes"]["online"]
OFFLINE = {"requests_per_s": 20, "lengths": [{"prompt_tokens": 1000, "output_tokens": 200}]}


def planned(folder: Path, workload: dict[str, Any], model: dict[str, Any] = LLAMA_8B, calibrations: Any = ()) -> Plan:
    return plan(load_request(write_workload(folder, workload, model)), calibrations, use_kernels=False)


def test_the_cheapest_that_keeps_the_targets_is_chosen(tmp_path: Path):
    item = planned(tmp_path, WORKLOAD).classes[0]
    assert item.chosen is not None and item.chosen.verdict is None
    point = item.chosen.point
    assert point is not None and point.itl_s <= 0.03 and point.ttft_attained >= 0.95
    feasible = [c for c in item.alternatives if c.feasible]
    assert feasible and all(c.usd_per_hour >= item.chosen.usd_per_hour for c in feasible)
    assert all(c.verdict for c in item.alternatives)
    needed = item.chosen.replicas * item.chosen.shape.gpus * WORKLOAD["usd_per_gpu_hour"][item.chosen.shape.accelerator]
    assert item.chosen.usd_per_hour == pytest.approx(needed)
    tokens_per_hour = 10 * (0.75 * 650 + 0.25 * 4300) * 3600
    assert item.chosen.usd_per_mtok == pytest.approx(needed / tokens_per_hour * 1e6)


def test_why_the_others_lose(tmp_path: Path):
    prices = {"usd_per_gpu_hour": {"H100": 3.2, "A100-80G": 1.8, "L4": 0.3, "T4": 0.2}}
    item = planned(tmp_path, {**WORKLOAD, **prices}, LLAMA_70B).classes[0]
    verdicts = {(c.shape.accelerator, c.shape.gpus, c.shape.quantisation): c.verdict or "" for c in item.alternatives}
    assert verdicts["H100", 1, "none"].startswith("memory: 141.1 GB of weights")
    assert verdicts["A100-80G", 4, "fp8"].startswith("hardware: quantisation: fp8 needs Ada")
    best = best_per_accelerator([c for c in (item.chosen, *item.alternatives) if c])
    assert best["T4"].verdict is not None and best["T4"].verdict.startswith(("memory", "latency"))
    reasons = {(c.verdict or "").partition(":")[0] for c in item.alternatives}
    assert {"memory", "hardware", "latency", "price"} <= reasons


def test_a_tight_latency_is_bought_with_tensor_parallelism(tmp_path: Path):
    tight = {**WORKLOAD, "usd_per_gpu_hour": {"H100": 3.2}, "stock": {}}
    loose_plan = planned(
        tmp_path, with_classes(online={**ONLINE, "slo": {"itl_s": 0.05}}) | {"usd_per_gpu_hour": {"H100": 3.2}}
    )
    tight_plan = planned(tmp_path, {**tight, "classes": {"online": {**ONLINE, "slo": {"itl_s": 0.0045}}}})
    loose, found = loose_plan.classes[0].chosen, tight_plan.classes[0]
    assert loose is not None and loose.shape.tensor_parallel == 1
    assert found.chosen is not None and found.chosen.shape.tensor_parallel > 1
    assert any("instead of" in line and "more hardware" in line for line in found.counsel)


def test_stock_is_a_limit(tmp_path: Path):
    only = {**with_classes(offline={**OFFLINE, "requests_per_s": 500}), "usd_per_gpu_hour": {"H100": 3.2}}
    free = planned(tmp_path, only).classes[0].chosen
    assert free is not None and free.gpus > 2
    short = planned(tmp_path, {**only, "stock": {"H100": 2}}).classes[0]
    assert short.chosen is None
    assert any((c.verdict or "").startswith("stock: needs") for c in short.alternatives)


def test_offline_fills_large_batches_on_the_fewest_gpus(tmp_path: Path):
    item = planned(tmp_path, {**with_classes(offline=OFFLINE), "usd_per_gpu_hour": {"H100": 3.2}}).classes[0]
    assert item.chosen is not None and item.chosen.shape.gpus == 1
    assert item.chosen.replica is not None and item.chosen.replica.slots > 128
    assert item.chosen.point is None and item.chosen.floor == 0
    assert any("leave it off" in line for line in item.counsel)


def test_bursts_pay_for_a_floor_and_for_bursts(tmp_path: Path):
    burst = {
        "requests_per_s": 10,
        "peak_requests_per_s": 100,
        "lengths": [{"prompt_tokens": 1000, "output_tokens": 200}],
        "slo": {"ttft_s": 20, "itl_s": 0.1},
    }
    one = {"usd_per_gpu_hour": {"H100": 3.2}}
    none = planned(tmp_path, with_classes(semi_online={**burst, "cold_start_s": 15}) | one).classes[0].chosen
    some = planned(tmp_path, with_classes(semi_online={**burst, "cold_start_s": 60}) | one).classes[0].chosen
    assert none is not None and none.floor == 0
    assert none.usd_per_hour == pytest.approx(none.replicas * none.shape.gpus * 3.2 / 10)
    assert some is not None and 0 < some.floor < some.replicas
    paid = some.floor + (some.replicas - some.floor) / 10
    assert some.usd_per_hour == pytest.approx(paid * some.shape.gpus * 3.2)


def test_fp4_on_blackwell_only_where_there_is_a_checkpoint(tmp_path: Path):
    prices = {"usd_per_gpu_hour": {"B200": 6.0, "H100": 3.2}}
    without = planned(tmp_path, {**with_classes(offline=OFFLINE), **prices}).classes[0]
    assert not [c for c in without.alternatives if c.shape.quantisation == "fp4-stored"]
    model = {**WORKLOAD["model"], "fp4": {"kind": "huggingface", "id": "nvidia/Llama-3.1-8B-Instruct-FP4"}}
    given = planned(tmp_path, {**with_classes(offline=OFFLINE), **prices, "model": model}).classes[0]
    every = [c for c in (given.chosen, *given.alternatives) if c and c.shape.quantisation == "fp4-stored"]
    assert {c.shape.accelerator for c in every if c.feasible} == {"B200"}
    refused = [c.verdict or "" for c in every if c.shape.accelerator == "H100"]
    assert refused and all("needs Blackwell" in verdict for verdict in refused)


def test_small_models_in_few_bits_are_to_be_compared(tmp_path: Path):
    small = {**LLAMA_8B, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "head_dim": 128}
    item = planned(tmp_path, {**with_classes(offline=OFFLINE), "usd_per_gpu_hour": {"L4": 0.3}}, small).classes[0]
    assert item.chosen is not None and item.chosen.shape.quantisation == "fp8"
    assert any("run `tribes quality`" in line for line in item.counsel)


def test_mixtures_are_planned_for(tmp_path: Path):
    item = planned(tmp_path, {**with_classes(offline=OFFLINE), "usd_per_gpu_hour": {"H100": 3.2}}, MIXTRAL).classes[0]
    assert item.chosen is not None


MEASURED = Calibration(
    "llama-3.1-8b",
    Shape("H100", "sglang", "fp8", fp8_cache=True),
    StepModel(0.001, 1e-6, 1e-6, 1e-9),
    0.002,
    400_000,
    0.02,
    0.05,
    30,
    "2026-01-01T00:00:00+00:00",
)


def test_measurements_beat_formulas(tmp_path: Path):
    only = {**WORKLOAD, "usd_per_gpu_hour": {"H100": 3.2}, "classes": {"online": {**ONLINE, "requests_per_s": 200}}}
    guessed = planned(tmp_path, only).classes[0].chosen
    found = planned(tmp_path, only, calibrations=[MEASURED]).classes[0].chosen
    assert guessed is not None and found is not None
    assert (guessed.basis, found.basis) == ("roofline", "calibrated")
    assert found.replicas < guessed.replicas and found.shape == MEASURED.shape
    slow = replace(MEASURED, step=StepModel(1.0, 1e-3, 1e-3, 1e-6))
    avoided = planned(tmp_path, only, calibrations=[slow]).classes[0]
    assert avoided.chosen is not None and avoided.chosen.shape != MEASURED.shape
    assert any(c.basis == "calibrated" and (c.verdict or "").startswith("latency") for c in avoided.alternatives)


def test_another_engine_is_tried_where_it_was_measured(tmp_path: Path):
    other = replace(MEASURED, shape=replace(MEASURED.shape, engine="vllm"))
    item = planned(tmp_path, {**WORKLOAD, "usd_per_gpu_hour": {"H100": 3.2}}, calibrations=[other]).classes[0]
    engines = {c.shape.engine for c in (item.chosen, *item.alternatives) if c}
    assert engines == {"vllm", "sglang"}


def test_hardware_that_only_a_calibration_knows(tmp_path: Path):
    cpu = replace(MEASURED, shape=Shape("CPU", "sglang"), step=StepModel(0.02, 1e-4, 1e-3, 1e-7))
    workload = {**WORKLOAD, "usd_per_gpu_hour": {"CPU": 0.08}, "classes": {"online": {**ONLINE, "requests_per_s": 0.5}}}
    item = planned(tmp_path, workload, calibrations=[cpu]).classes[0]
    assert item.chosen is not None and item.chosen.shape.accelerator == "CPU"
    with pytest.raises(ConfigError, match="need a calibration of this model"):
        planned(tmp_path, workload)
    blind = planned(tmp_path, workload, calibrations=[replace(cpu, kv_tokens=None)]).classes[0]
    assert blind.chosen is None and "--kv-tokens" in (blind.alternatives[0].verdict or "")


def test_a_mix_is_offered_where_it_is_cheaper(monkeypatch: pytest.MonkeyPatch):
    # The published example: nothing but the rates of one GPU for each size decides.
    rates = {"A10G": [2, 1, 5, 2], "A100-80G": [20, 20, 40, 20]}
    buckets = [Bucket(share, number, 1) for number, share in enumerate((0.2, 0.1, 0.5, 0.2))]
    replicas = {name: Replica(StepModel(1, 0, 0, 0), 1, 1, number) for number, name in enumerate(rates)}
    best = {name: Candidate(Shape(name, "vllm"), "roofline", replica) for name, replica in replicas.items()}
    found = {replica.chunk_tokens: rates[name] for name, replica in replicas.items()}

    def alone(replica: Replica, bucket: Bucket, targets: Targets) -> float:
        return found[replica.chunk_tokens][int(bucket.prompt_tokens)]

    monkeypatch.setattr("cluster.planning.mixed.alone", alone)
    demand = Demand(RequestClass.ONLINE, buckets, 30, 30, Targets(ttft_s=1))
    market = Market({"A10G": 1.01, "A100-80G": 3.67}, {})
    mixed = mixed_fleet(best, demand, market)
    assert mixed is not None and mixed.fleet.counts == {"A10G": 2, "A100-80G": 1}
    assert (mixed.usd_per_hour, mixed.single_usd_per_hour) == (pytest.approx(5.69), pytest.approx(7.34))
    assert mixed_fleet(best, demand, replace(market, stock={"A10G": 1})) is None
    assert mixed_fleet(best, demand, replace(market, usd_per_gpu_hour={"A10G": 9, "A100-80G": 3.67})) is None


def test_break_even_against_hosted_apis(tmp_path: Path):
    hosted = {"cheap": {"input": 0.001, "output": 0.001}, "dear": {"input": 100, "output": 100}}
    item = planned(tmp_path, {**WORKLOAD, "hosted": hosted}).classes[0]
    chosen, (cheap, dear) = item.chosen, item.hosted
    assert chosen is not None
    tokens = 0.75 * 650 + 0.25 * 4300
    assert dear.usd_per_hour == pytest.approx(10 * 3600 * tokens * 100 / 1e6)
    at_full_use = chosen.replicas * chosen.requests_per_s * 3600 * tokens * 100 / 1e6
    assert dear.break_even_utilisation == pytest.approx(chosen.usd_per_hour / at_full_use)
    assert (cheap.cheaper, dear.cheaper) == ("hosted", "self")
    assert cheap.break_even_utilisation > 1 > dear.break_even_utilisation


class Kernels:
    """Answers as the package's engine does, from a known step model."""

    truth = StepModel(0.004, 10e-6, 5e-6, 50e-9)

    def predict_prefill_latency(self, batch: int, length: int) -> float:
        return self.truth.step_s(batch * length, batch, 0) * 1e3

    def decode_step_latency(self, batch: int, context: int, output: int) -> float:
        return self.truth.step_s(0, batch, batch * context) * 1e3


def test_measured_kernels_become_a_step_model(tmp_path: Path):
    asked: list[Any] = []

    def compiled(*args: Any, **options: Any) -> Kernels:
        asked.append((args, options))
        return Kernels()

    times = KernelTimes(tmp_path, compiled)
    shape = Shape("H100", "vllm", "fp8", tensor_parallel=2, fp8_cache=True)
    step = times.step_model(shape, sequences=64, prompt_tokens=1000, context_tokens=1200)
    assert step is not None
    assert step.base_s == pytest.approx(0.004, rel=1e-3) and step.prefill_s_a_token == pytest.approx(10e-6, rel=1e-3)
    assert step.decode_s_a_kv_token == pytest.approx(50e-9, rel=1e-3)
    (_, system, engine), options = asked[0]
    assert (system, engine, options["tp_size"], options["gemm_quant_mode"]) == ("h100_sxm", "vllm", 2, "fp8")
    assert times.step_model(replace(shape, accelerator="A10G"), sequences=1, prompt_tokens=9, context_tokens=9) is None


def test_what_the_kernels_lack_falls_back(tmp_path: Path):
    def failing(*args: Any, **options: Any) -> Any:
        raise KeyError("no such table")

    times = KernelTimes(tmp_path, failing)
    assert times.step_model(Shape("H100", "vllm"), sequences=1, prompt_tokens=9, context_tokens=9) is None


def test_without_the_package_there_are_no_kernel_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.planning.kernels.PACKAGE", "no_such_package_here")
    assert kernel_times(tmp_path) is None


def test_a_cluster_completes_a_workload(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(LLAMA_8B))
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(
        """
models: {m: {source: {kind: local, path: model}, max_model_len: 8192}}
deployments:
  one: {model: m, serves: [online], engine: {kind: vllm}, pool: big, resources: {gpus: 2}}
pools: {big: {accelerator_type: H100, usd_per_hour: 3.2}}
upstreams: {api: {base_url: https://api.example.com/v1, models: {m: m}, usd_per_mtok: {input: 1, output: 2}}}
"""
    )
    workload = {"model": {"name": "m"}, "classes": {"offline": OFFLINE}}
    request = completed(load_request(write_workload(tmp_path, workload)), load_config(cluster))
    assert request.usd_per_gpu_hour == {"H100": 3.2}
    assert request.model.max_model_len == 8192 and list(request.hosted) == ["api"]
    assert plan(request, use_kernels=False).classes[0].chosen is not None
