"""The case ray_serve_llm of benchmarks.online: one engine on both sides, and nothing left of a cluster that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from benchmarks.online_sides import ray_llm, ray_llm_cluster
from benchmarks.online_sides.ray_llm import vllm_config
from benchmarks.online_sides.ray_llm_cluster import FLAGS, application_config, engine_kwargs, ray_serve_llm, shown
from benchmarks.online_sides.real_load import SATURATION
from cluster.config import TribesConfig, load_config
from cluster.engines import build_spec
from cluster.engines.arguments import to_argv
from cluster.local import LocalClusterError
from cluster.models import PreparedModel
from cluster.vocabulary import RequestClass
from tests.support.stack import REPO

PREPARED = PreparedModel("smollm2-135m", "/models/smollm2")


@pytest.fixture(scope="module")
def local() -> TribesConfig:
    return load_config(REPO / "configs" / "local.yaml")


def _with_burst(local: TribesConfig, **engine: object) -> TribesConfig:
    plain = local.model_dump(mode="json")
    plain["deployments"]["smollm2-burst"]["engine"] |= engine
    return TribesConfig.model_validate(plain)


def test_one_vllm_serves_online_and_nothing_but_the_engine_bounds_the_load(local) -> None:
    config = vllm_config(local)
    assert list(config.deployments) == ["smollm2-burst"]  # the offline one has no server
    deployment = config.deployments["smollm2-burst"]
    assert deployment.serves == [RequestClass.ONLINE]
    assert (deployment.replicas.min, deployment.replicas.max) == (1, 1)
    assert deployment.max_running == deployment.engine_args["max-num-seqs"] == SATURATION
    assert deployment.engine_args["enforce-eager"] is True
    assert config.ray.haproxy


def test_an_argument_in_the_other_spelling_is_not_given_twice(local) -> None:
    config = vllm_config(_with_burst(local, args={"max_num_seqs": 4}))
    assert engine_kwargs(config, PREPARED)["max_num_seqs"] == SATURATION


@pytest.mark.parametrize("engine", [{"python": "/elsewhere/python"}, {"entrypoint": ["python", "-m", "mine"]}])
def test_an_engine_that_the_peer_could_not_load_is_refused(local, engine) -> None:
    with pytest.raises(typer.BadParameter, match="vLLM deployment"):
        vllm_config(_with_burst(local, **engine))


def test_both_sides_give_vllm_the_same_arguments(local) -> None:
    config = vllm_config(local)
    (deployment,) = config.deployments.values()
    spec = build_spec(
        deployment, PREPARED.name, PREPARED.path_or_id, "127.0.0.1", 1, "key",
        max_model_len=config.models[PREPARED.name].max_model_len,
    )  # fmt: skip
    kwargs = engine_kwargs(config, PREPARED)
    ours = spec.argv[3:]  # after `python -m MODULE`
    address = ["--model", PREPARED.path_or_id, "--served-model-name", PREPARED.name]
    address += ["--host", "127.0.0.1", "--port", "1"]
    named = {name.replace("_", "-"): value for name, value in kwargs.items()}
    assert list(ours) == address + to_argv(named, negated_flags=True)
    assert kwargs["max_model_len"] == 2048


def test_the_peer_is_one_tuned_model_with_the_engines_environment(local, tmp_path) -> None:
    config = vllm_config(local)
    serve = application_config(config, PREPARED, tmp_path)
    (application,) = serve["applications"]
    (llm,) = application["args"]["llm_configs"]
    assert llm["model_loading_config"] == {"model_id": "smollm2-135m", "model_source": "/models/smollm2"}
    assert llm["experimental_configs"]["stream_batching_interval_ms"] == 0
    assert llm["deployment_config"]["max_ongoing_requests"] > SATURATION
    env = llm["runtime_env"]["env_vars"]
    assert env.items() >= config.deployments["smollm2-burst"].engine.env.items()
    reported = str(shown(serve, PREPARED, tmp_path))
    assert "'model_source': 'MODEL'" in reported
    assert PREPARED.path_or_id not in reported
    assert str(tmp_path) not in reported


@pytest.fixture
def started(monkeypatch) -> SimpleNamespace:
    """A head that is a plain process, with a child that does not carry the head's mark."""
    seen = SimpleNamespace(flags={}, head=None, child=None, shut_down=0)

    def start_head(_: TribesConfig) -> SimpleNamespace:
        seen.flags = {name: os.environ.get(name) for name in FLAGS}
        code = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
        seen.head = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        seen.child = int(seen.head.stdout.readline())
        return SimpleNamespace(pid=seen.head.pid)

    def stop_head(_: TribesConfig) -> None:
        seen.head.kill()
        seen.head.wait()
        seen.head.stdout.close()

    def shutdown(*_: object) -> None:
        seen.shut_down += 1
        raise LocalClusterError("no Ray dashboard")

    monkeypatch.setattr(ray_llm_cluster, "STOP_GRACE_S", 0.2)
    monkeypatch.setattr(ray_llm_cluster, "heed_sigterm", lambda: None)
    monkeypatch.setattr(ray_llm_cluster, "prepare_model", lambda *_: PREPARED)
    monkeypatch.setattr(ray_llm_cluster.head, "start_head", start_head)
    monkeypatch.setattr(ray_llm_cluster.head, "stop_head", stop_head)
    monkeypatch.setattr(ray_llm_cluster.deploy, "shutdown", shutdown)
    return seen


def test_a_peer_that_does_not_start_is_an_error_and_leaves_no_process(local, started, monkeypatch, tmp_path) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("No module named 'nixl'")

    monkeypatch.setattr(ray_llm_cluster, "deploy_application", refused)
    with (
        pytest.raises(LocalClusterError, match=r"ray\.serve\.llm did not start: No module named 'nixl'"),
        ray_serve_llm(vllm_config(local), tmp_path, lambda _: None),
    ):
        pytest.fail("it did not start")
    assert started.flags == FLAGS
    assert not set(FLAGS) & set(os.environ)
    assert started.shut_down == 1
    assert not _runs(started.child)


def test_a_cluster_of_ours_that_fails_takes_the_peer_down(local, started, monkeypatch, tmp_path) -> None:
    async def answers(*_: object) -> None: ...

    def fails(*_: object) -> None:
        raise LocalClusterError("Ray did not start")

    monkeypatch.setattr(ray_llm_cluster, "deploy_application", lambda *_: None)
    monkeypatch.setattr(ray_llm_cluster.deploy, "wait_running", lambda *_: None)
    monkeypatch.setattr(ray_llm_cluster, "_wait_answering", answers)
    monkeypatch.setattr(ray_llm, "tribes", fails)
    with pytest.raises(LocalClusterError, match="Ray did not start"):
        ray_llm.measure_ray_llm(None, local, tmp_path, 1, lambda _: None)  # type: ignore[arg-type]
    assert not _runs(started.child)


async def test_a_door_that_never_answers_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(ray_llm_cluster, "ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(ray_llm_cluster, "POLL_S", 0.05)
    with pytest.raises(RuntimeError, match="no answer from http"):
        await ray_llm_cluster._wait_answering(ray_llm_cluster.Target("http://127.0.0.1:9", "unused"), "model")


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return not stat.rsplit(") ", 1)[-1].startswith("Z")
