"""The RayService for KubeRay: fields and types by a schema of what it uses, Serve's part by Serve's own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._raylet import RAY_NODE_ACCELERATOR_TYPE_KEY, RAY_NODE_ZONE_KEY

from contracts.config import Config
from contracts.pools import ReplicaOrder
from orchestrator.cluster.local import THROUGHPUT_ENVIRONMENT
from orchestrator.configfile import loads
from orchestrator.specs import spec_for

FILE = "examples/kuberay/rayservice.yaml"
CONFIG_PATH = "/etc/llorch/llorch.yaml"
READ = """
import sys, warnings, yaml
warnings.simplefilter("ignore")
from ray.serve.schema import ServeDeploySchema
print(ServeDeploySchema(**yaml.safe_load(sys.stdin)).model_dump_json())
"""


def as_serve_reads_it(text: str) -> dict[str, Any]:
    """In a process of its own: Serve reads the environment when it is first imported, and other tests set it."""
    told = subprocess.run([sys.executable, "-c", READ], input=text, check=True, capture_output=True, text=True).stdout
    read: dict[str, Any] = json.loads(told)
    return read


@pytest.fixture
def documents(root: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((root / FILE).read_text()))


@pytest.fixture
def config(documents: list[dict[str, Any]]) -> Config:
    text = documents[0]["data"]["llorch.yaml"]
    return loads(text, FILE, base=Path(), files=False).config


@pytest.fixture
def cluster(documents: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = documents[1]["spec"]["rayClusterConfig"]
    return found


@pytest.fixture
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((Path(__file__).parent / "rayservice.schema.json").read_text())
    return loaded


def templates(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_it_has_the_fields_of_a_rayservice(documents: list[dict[str, Any]], schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert [document["kind"] for document in documents] == ["ConfigMap", "RayService"]
    jsonschema.validate(documents[1], schema)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "serveConfigV1"), ""),
        (("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "num-gpus"), 0),
        (("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "labels"), "a=b"),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "replica"), 1),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "labels", "zone"), "no spaces"),
    ],
)
def test_the_schema_finds_what_is_wrong(
    documents: list[dict[str, Any]], schema: dict[str, Any], place: tuple[Any, ...], value: Any
) -> None:
    *parents, last = place
    where: Any = documents[1]
    for step in parents:
        where = where[step]
    where[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(documents[1], schema)


@pytest.mark.req("OC-CONFIG-6002")
def test_serve_takes_its_part_and_finds_the_configuration(documents: list[dict[str, Any]], config: Config) -> None:
    serve = as_serve_reads_it(documents[1]["spec"]["serveConfigV2"])
    (application,) = serve["applications"]
    assert application["import_path"] == "orchestrator.app:application"
    assert application["args"] == {"config": CONFIG_PATH}
    assert serve["http_options"]["port"] == config.server.haproxy_port
    assert serve["http_options"]["port"] != config.server.port


def test_serve_refuses_a_wrong_part(documents: list[dict[str, Any]]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        as_serve_reads_it(documents[1]["spec"]["serveConfigV2"].replace("import_path", "import_paths"))


def test_every_pod_has_the_configuration_and_serves_where_kuberay_looks(
    documents: list[dict[str, Any]], cluster: dict[str, Any], config: Config
) -> None:
    for pod in templates(cluster):
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts["/etc/llorch"]]["configMap"]["name"] == documents[0]["metadata"]["name"]
        assert {port["name"]: port["containerPort"] for port in container["ports"]}["serve"] == (
            config.server.haproxy_port
        )


def test_every_pod_has_the_environment(cluster: dict[str, Any]) -> None:
    for pod in templates(cluster):
        env = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
        assert THROUGHPUT_ENVIRONMENT.items() <= env.items()
    assert cluster["authOptions"] == {"mode": "token"}


@pytest.mark.req("ORCH-1101")
def test_the_head_has_no_gpus_and_workers_say_how_many(cluster: dict[str, Any]) -> None:
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-gpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert group["rayStartParams"]["num-gpus"] == limits["nvidia.com/gpu"]
        assert group["labels"][RAY_NODE_ACCELERATOR_TYPE_KEY]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.req("ORCH-3011")
def test_each_pool_has_pods_with_its_gpus_in_its_zone(cluster: dict[str, Any], config: Config) -> None:
    groups = cluster["workerGroupSpecs"]
    for pool in config.pools:
        gpus = len(spec_for(config, ReplicaOrder(f"{pool.id}-0", 0, pool.id, pool.model)).devices)
        homes = [
            group
            for group in groups
            if int(group["rayStartParams"]["num-gpus"]) >= gpus and group["labels"][RAY_NODE_ZONE_KEY] == pool.zone
        ]
        assert pool.scaling is not None
        assert sum(group["maxReplicas"] for group in homes) >= (pool.scaling.max or 0)


def test_models_are_mounted_where_the_configuration_says(cluster: dict[str, Any], config: Config) -> None:
    paths = [pool.model_path for pool in config.pools] + [model.path for model in config.models]
    for group in cluster["workerGroupSpecs"]:
        mounts = [mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]]
        for path in paths:
            assert path is not None
            assert str(path.parent) in mounts


def test_a_change_makes_no_second_cluster(documents: list[dict[str, Any]]) -> None:
    assert documents[1]["spec"]["upgradeStrategy"] == {"type": "None"}
