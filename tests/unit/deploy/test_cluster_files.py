"""The files for `ray up`: what Ray itself checks, and what a cluster needs of them that Ray does not check."""

import ast
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.label_utils import parse_node_labels_string
from ray._raylet import RAY_NODE_ACCELERATOR_TYPE_KEY, RAY_NODE_ZONE_KEY
from ray.autoscaler._private.util import prepare_config, validate_config

from contracts.pools import ReplicaOrder
from orchestrator.cluster.local import THROUGHPUT_ENVIRONMENT
from orchestrator.configfile import load
from orchestrator.specs import spec_for

FILES = ("cluster.yaml", "examples/cluster-local.yaml")
ENVIRONMENT = ". examples/ray-node.env"
HEALTH_CHECK = {
    "health_check_initial_delay_ms",
    "health_check_period_ms",
    "health_check_timeout_ms",
    "health_check_failure_threshold",
}

each_file = pytest.mark.parametrize("name", FILES)


def read(root: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / name).read_text())
    return loaded


def starts(commands: list[str]) -> list[str]:
    return [command for command in commands if re.search(r"(^|\s)ray start\s", command)]


def ray_start(cluster: dict[str, Any], kind: str) -> list[str]:
    """The words of the one `ray start` of head or workers, with the shell's substitutions already made."""
    (command,) = starts(cluster[f"{kind}_start_ray_commands"])
    words = shlex.split(re.sub(r"\$\([^()]*\)", "1", command))
    return words[words.index("ray") :]


@each_file
def test_ray_takes_the_file(root: Path, name: str) -> None:
    """As `ray up` does before it asks the provider for anything: defaults filled in, then the schema."""
    prepared = prepare_config(read(root, name))
    validate_config(prepared)


@each_file
def test_that_check_finds_a_misspelt_field(root: Path, name: str) -> None:
    cluster = read(root, name)
    cluster["setup_command"] = cluster.pop("setup_commands")
    with pytest.raises(jsonschema.ValidationError, match="setup_command"):
        validate_config(prepare_config(cluster))


@each_file
def test_the_head_has_no_gpus(root: Path, name: str) -> None:
    assert "--num-gpus=0" in ray_start(read(root, name), "head")


@pytest.mark.req("ORCH-1101")
def test_the_autoscaler_knows_what_each_node_type_has(root: Path) -> None:
    cluster = prepare_config(read(root, "cluster.yaml"))
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"]["GPU"] == 0
    workers = {name: kind for name, kind in types.items() if name != cluster["head_node_type"]}
    assert len(workers) == 2
    for kind in workers.values():
        assert kind["resources"]["GPU"] > 0
        assert 0 <= kind["min_workers"] <= kind["max_workers"]
        assert kind["labels"][RAY_NODE_ACCELERATOR_TYPE_KEY]
    assert sum(kind["max_workers"] for kind in workers.values()) <= cluster["max_workers"]


@each_file
def test_the_environment_is_there_before_ray_starts_on_every_node(root: Path, name: str) -> None:
    cluster = read(root, name)
    for kind in ("head", "worker"):
        (command,) = starts(cluster[f"{kind}_start_ray_commands"])
        assert command.index("cd ~/llama-orch") < command.index(ENVIRONMENT) < command.index("ray start")
    assert cluster["file_mounts"]["~/llama-orch"] == "."


def test_the_environment_is_serves_throughput_mode_and_the_token(root: Path) -> None:
    told = subprocess.run(
        ["env", "-i", "sh", "-c", f"{ENVIRONMENT} && env"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    given = dict(line.split("=", 1) for line in told.splitlines())
    assert {name: value for name, value in given.items() if name.startswith("RAY_")} == {
        **THROUGHPUT_ENVIRONMENT,
        "RAY_AUTH_MODE": "token",
    }


@each_file
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_nodes_say_where_they_stand_and_how_many_numa_nodes_they_have(root: Path, name: str, kind: str) -> None:
    (given,) = [word for word in ray_start(read(root, name), kind) if word.startswith("--labels=")]
    labels = parse_node_labels_string(given.removeprefix("--labels="))
    assert labels.keys() == {RAY_NODE_ZONE_KEY, "llorch/numa-nodes"}


@each_file
def test_dead_nodes_are_noticed_within_ten_seconds(root: Path, name: str) -> None:
    (given,) = [word for word in ray_start(read(root, name), "head") if word.startswith("--system-config=")]
    checks = json.loads(given.removeprefix("--system-config="))
    assert checks.keys() == HEALTH_CHECK
    each_ms = checks["health_check_period_ms"] + checks["health_check_timeout_ms"]
    assert checks["health_check_failure_threshold"] * each_ms < 10_000


@each_file
def test_all_nodes_have_the_same_token_and_only_their_owner_reads_it(root: Path, name: str) -> None:
    cluster = read(root, name)
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]


@each_file
def test_every_node_is_set_up_from_the_lock(root: Path, name: str) -> None:
    prepared = prepare_config(read(root, name))
    for commands in (prepared["head_setup_commands"], prepared["worker_setup_commands"]):
        assert any(command.endswith("make setup") for command in commands)
        assert not any("pip install" in command and "boto3" not in command for command in commands)
    assert {".venv", ".git"} <= set(prepared["rsync_exclude"])


@each_file
def test_the_last_step_of_the_head_brings_the_service_up_or_fails(root: Path, name: str) -> None:
    cluster = read(root, name)
    last = cluster["head_start_ray_commands"][-1]
    assert last.endswith("llorch up --config ~/llorch.yaml --timeout-s 300")
    assert last.index(ENVIRONMENT) < last.index("llorch up")
    assert not re.search(r"\|\||;\s*true|&\s*$", last)
    assert "~/llorch.yaml" in cluster["file_mounts"]
    assert not any("llorch up" in command for command in cluster["worker_start_ray_commands"])


@each_file
def test_the_files_that_are_copied_are_there_or_the_users_own(root: Path, name: str) -> None:
    local = set(read(root, name)["file_mounts"].values())
    assert local == {".", "llorch.yaml", "~/.ray/auth_token"}
    assert (root / "examples/ray-node.env").is_file()


@pytest.mark.req("ORCH-3011", "OC-CONFIG-6002")
def test_each_example_pool_fits_on_a_node_of_the_cluster(root: Path) -> None:
    """What the autoscaler is asked for has a node type that gives it, for as many replicas as there may be."""
    config = load(root / "examples/cluster-pools.yaml", files=False).config
    types = [kind for kind in read(root, "cluster.yaml")["available_node_types"].values() if "max_workers" in kind]
    for pool in config.pools:
        order = ReplicaOrder(f"{pool.id}-0", 0, pool.id, pool.model)
        gpus = len(spec_for(config, order).devices)
        homes = [kind for kind in types if kind["resources"]["GPU"] == gpus]
        assert sum(kind["max_workers"] for kind in homes) >= (pool.scaling.max or 0 if pool.scaling else pool.replicas)


def test_the_commands_are_well_formed_shell(root: Path) -> None:
    for name in FILES:
        for commands in (value for key, value in read(root, name).items() if key.endswith("_commands")):
            for command in commands:
                checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
                assert (checked.returncode, checked.stderr) == (0, ""), command


def test_the_import_path_of_rayservice_is_there(root: Path) -> None:
    """Read, not imported: importing the composition root takes seconds."""
    tree = ast.parse((root / "orchestrator/app.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [each.arg for each in functions["application"].args.args] == ["args"]
