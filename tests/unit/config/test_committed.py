"""The files in configs/: they load, the schema is current and accepts them, and the manifests point at real things."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.config import load_config
from tests.unit.config.samples import changed, valid

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMA = json.loads((ROOT / "configs/schema.json").read_text(encoding="utf-8"))
MANIFESTS = ROOT / "configs/kuberay"


def by_name(path: Path) -> str:
    return path.name


def accepted(data: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(data))


def test_the_expected_configurations_are_there():
    assert {path.name for path in CONFIGS} >= {"local.yaml", "h100.yaml", "heterogeneous.yaml"}


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
def test_it_loads(path):
    assert load_config(path).source_path == path


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
def test_the_schema_accepts_it(path):
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
def test_editors_find_the_schema(path):
    with path.open(encoding="utf-8") as lines:
        assert next(lines) == "# yaml-language-server: $schema=./schema.json\n"


def test_the_schema_is_what_the_command_prints():
    command = [sys.executable, "-m", "cluster.config.jsonschema"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stderr == ""
    committed = (ROOT / "configs/schema.json").read_text(encoding="utf-8")
    assert printed.stdout == committed, "run: python -m cluster.config.jsonschema > configs/schema.json"


def test_the_schema_itself_is_valid():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gatway", {}),
        ("source_path", "/x"),
        ("deployments/tiny-online/max_runing", 1),
        ("deployments/tiny-online/serves", []),
        ("deployments/tiny-online/serves", ["online", "online"]),
        ("deployments/tiny-online/engine/kind", "vlm"),
        ("models/tiny/source", {"kind": "local"}),
        ("tenants", {"Team A": {}}),
        ("scheduling/classes/batch", {}),
        ("gateway/port", 0),
    ],
)
def test_the_schema_refuses_what_loading_refuses(path, value):
    assert accepted(valid())
    assert not accepted(changed(path, value))


def test_the_schema_shows_no_default_that_is_wrong_for_some_class():
    fields = SCHEMA["$defs"]["ClassConfig"]["properties"].values()
    assert fields
    assert not any("default" in field for field in fields)


def manifest(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((MANIFESTS / name).read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def containers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_service_manifest_serves_our_application_with_a_config_that_exists():
    loaded = manifest("rayservice.yaml")
    assert (loaded["apiVersion"], loaded["kind"]) == ("ray.io/v1", "RayService")
    (application,) = yaml.safe_load(loaded["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "serve_apps.app:build"
    assert application["args"] == {"config": "configs/h100.yaml"}
    config = load_config(ROOT / application["args"]["config"])
    worker = containers(loaded["spec"]["rayClusterConfig"])[1]
    gpus = int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus == sum(item.resources.gpus * item.replicas.max for item in config.serving().values())


def test_pods_of_the_service_live_as_long_as_their_replicas_may_drain():
    loaded = manifest("rayservice.yaml")
    config = load_config(ROOT / "configs/h100.yaml")
    (group,) = loaded["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    longest_s = max(item.replicas.drain_timeout_s for item in config.serving().values())
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= longest_s


def test_the_job_manifest_runs_our_job_with_a_config_that_exists():
    loaded = manifest("rayjob.yaml")
    assert (loaded["apiVersion"], loaded["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(loaded["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "batch_jobs.generate"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert set(options) == {"--config", "--input", "--output"}
    assert options["--input"].startswith("s3://")
    assert options["--output"].startswith("s3://")
    config = load_config(ROOT / options["--config"])
    assert any(config.offline_deployments(model) for model in config.models)


@pytest.mark.parametrize(("name", "key"), [("rayservice.yaml", "rayClusterConfig"), ("rayjob.yaml", "rayClusterSpec")])
def test_all_pods_of_a_manifest_agree(name, key):
    cluster = manifest(name)["spec"][key]
    pods = containers(cluster)
    assert len({pod["image"] for pod in pods}) == 1
    assert {pod["workingDir"] for pod in pods} == {"/opt/tribes"}  # what relative config paths start at
    assert cluster["authOptions"] == {"mode": "token"}
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        mounts = {mount["name"] for pod in group["template"]["spec"]["containers"] for mount in pod["volumeMounts"]}
        assert mounts <= volumes


def test_the_pods_mount_the_folders_that_the_config_names():
    config = load_config(ROOT / "configs/h100.yaml")
    for pod in containers(manifest("rayservice.yaml")["spec"]["rayClusterConfig"]):
        mounted = [Path(mount["mountPath"]) for mount in pod["volumeMounts"]]
        for folder in (config.paths.data, config.paths.models):
            assert any(folder.is_relative_to(mount) for mount in mounted)
