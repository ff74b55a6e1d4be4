"""What a pool's settings make of the server's command line, of a request's inputs, and of a model repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.exchange import Address
from adapters.triton import TritonAdapter, provision, repository
from adapters.triton.command import server_arguments, server_environment
from adapters.triton.endpoints import attached_grpc, attached_metrics
from adapters.triton.inputs import completion_inputs
from adapters.triton.interface import check_interface
from adapters.triton.options import read_options
from adapters.triton.protocol import ModelConfig, Parameter, Tensor, TransactionPolicy, decode_config
from contracts.api import Message, Sampling
from contracts.engine import EngineError, EngineSpec, GenerateRequest

CONFIG = decode_config((Path(__file__).with_name("data") / "triton" / "config.json").read_bytes())


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EngineSpec:
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    return EngineSpec(
        engine="triton",
        pool_id="p",
        replica_id="p-0",
        model="llorch_text",
        model_path=str(repository.TOY_REPOSITORY),
        ctx=100,
        slots=4,
        accelerator="cpu-dev",
        binary="/opt/tritonserver/bin/tritonserver",
    )


def request(**fields: object) -> GenerateRequest:
    return GenerateRequest(**{"task_id": "t", "max_tokens": 5, "seed": 1, "prompt": "p", **fields})  # type: ignore[arg-type]


def code_of(caught: pytest.ExceptionInfo[EngineError]) -> str:
    return caught.value.info.code


# ------------------------------------------------------------------------------------------------- options


def test_arguments_for_the_adapter_do_not_reach_the_server(spec: EngineSpec) -> None:
    options = read_options(replace(spec, args=("--llorch-transport=http", "--log-verbose=1", "--llorch-grpc=[::1]:9")))
    assert (options.transport, options.args) == ("http", ("--log-verbose=1",))
    assert options.grpc == Address(host="::1", port=9)
    assert read_options(spec).transport == "grpc"


@pytest.mark.parametrize(
    "argument",
    [
        "--llorch-transport=smoke",
        "--llorch-mode=smoke",
        "--llorch-nonsense",
        "--llorch-grpc=host",
        "--llorch-grpc=h:0",
        "--llorch-models=",
        "--llorch-models=a,../b",
    ],
)
def test_an_option_that_is_not_known_is_refused(spec: EngineSpec, argument: str) -> None:
    with pytest.raises(EngineError) as caught:
        TritonAdapter(replace(spec, args=(argument,)))
    assert code_of(caught) == "INVALID_PARAMS"


def test_other_services_of_an_attached_server_are_on_the_next_ports(spec: EngineSpec) -> None:
    attached = replace(spec, endpoint="http://host:8000")
    options = read_options(attached)
    assert attached_grpc(attached, options) == Address(host="host", port=8001)
    assert attached_metrics(attached, options) == Address(host="host", port=8002)
    told = read_options(replace(attached, args=("--llorch-grpc=unix:/g", "--llorch-metrics=h:1")))
    assert attached_grpc(attached, told) == Address(socket_path="/g")
    assert attached_metrics(attached, told) == Address(host="h", port=1)


def test_nothing_tells_where_the_services_beside_a_socket_are(spec: EngineSpec) -> None:
    attached = replace(spec, endpoint="unix:/run/triton")
    assert attached_metrics(attached, read_options(attached)) is None
    with pytest.raises(EngineError, match="--llorch-grpc"):
        attached_grpc(attached, read_options(attached))


# ------------------------------------------------------------------------------------------------- command


@pytest.mark.req("OC-ADAPT-5002", "ORCH-3057")
def test_the_server_loads_what_it_is_told_and_listens_in_its_folder(spec: EngineSpec, tmp_path: Path) -> None:
    arguments = server_arguments(spec, ["m", "preprocessing"], tmp_path, ["--x=1"])
    assert [argument for argument in arguments if "load-model" in argument] == [
        "--load-model=m",
        "--load-model=preprocessing",
    ]
    addresses = [argument.partition("=")[2] for argument in arguments if "-address=" in argument]
    assert len(addresses) == 3
    assert all(address.startswith(f"unix:{tmp_path}/") for address in addresses)
    assert arguments[-1] == "--x=1"
    assert "--allow-gpu-metrics=false" in arguments
    assert not any("-directory=" in argument for argument in arguments), "a usual installation knows its places"


@pytest.mark.req("ORCH-3011")
def test_the_environment_has_the_devices_of_the_mask_and_no_python_of_ours(spec: EngineSpec) -> None:
    base = {"PYTHONHOME": "/x", "VIRTUAL_ENV": "/y", "PATH": "/bin", "TRITON_LOG": "1"}
    assert server_environment(spec, base) == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": ""}
    gpu = replace(spec, accelerator="gpu", gpu_uuids=("GPU-1", "GPU-2"))
    assert server_environment(gpu, {})["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"


def test_a_server_in_a_python_environment_finds_its_python_first(spec: EngineSpec, tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").touch()
    binary = tmp_path / "lib" / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    (binary.parents[1] / "backends").mkdir(parents=True)
    inside = replace(spec, binary=str(binary))
    assert server_environment(inside, {"PATH": "/bin"})["PATH"] == f"{tmp_path / 'bin'}:/bin"
    arguments = server_arguments(inside, [], tmp_path, [])
    assert f"--backend-directory={binary.parents[1] / 'backends'}" in arguments


# -------------------------------------------------------------------------------------------------- inputs


@pytest.mark.req("ORCH-3058", "OC-ADAPT-5010")
def test_defaults_are_pinned_as_far_as_the_model_can_be_told() -> None:
    inputs = completion_inputs(CONFIG, request())
    assert inputs == {
        "text_input": "p",
        "max_tokens": 5,
        "seed": 1,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stream": True,
    }


@pytest.mark.req("ORCH-3058")
def test_a_seed_goes_by_the_name_that_the_model_has_for_it() -> None:
    config = ModelConfig(input=[Tensor("text_input"), Tensor("max_tokens"), Tensor("random_seed")])
    assert completion_inputs(config, request(seed=9)) == {"text_input": "p", "max_tokens": 5, "random_seed": 9}


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": Sampling(min_p=0.3)},
        {"sampling": Sampling(logit_bias={"1": 2.0})},
        {"prompt": ""},
        {"prompt": None, "messages": [Message(role="user", content="x")]},
        {"sampler_profile_version": "v0"},
    ],
)
def test_what_the_model_cannot_be_told_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(EngineError) as caught:
        completion_inputs(CONFIG, request(**changes))
    assert code_of(caught) == "INVALID_PARAMS"


def test_stop_strings_are_passed_where_there_are_any() -> None:
    assert completion_inputs(CONFIG, request(sampling=Sampling(stop=["x"])))["stop_words"] == ["x"]
    assert "stop_words" not in completion_inputs(CONFIG, request(sampling=Sampling(stop=[])))


# ----------------------------------------------------------------------------------------------- interface


@pytest.mark.req("ORCH-3057")
def test_a_model_must_declare_what_its_workload_needs(spec: EngineSpec) -> None:
    check_interface(spec, CONFIG)
    with pytest.raises(EngineError, match="decoupled") as caught:
        check_interface(spec, replace(CONFIG, model_transaction_policy=TransactionPolicy()))
    assert (code_of(caught), caught.value.kind) == ("POOL_UNREADY", "model")
    with pytest.raises(EngineError, match="declares no embedding"):
        check_interface(replace(spec, workload="embedding"), CONFIG)
    with pytest.raises(EngineError) as refused:
        check_interface(replace(spec, workload="rerank"), CONFIG)
    assert code_of(refused) == "INVALID_PARAMS"


# ---------------------------------------------------------------------------------------------- repository


@pytest.mark.req("ORCH-3032", "ORCH-3037")
def test_the_digest_is_over_all_files_of_the_model(spec: EngineSpec, tmp_path: Path) -> None:
    model = tmp_path / "repo" / "m" / "1"
    model.mkdir(parents=True)
    (model.parent / "config.pbtxt").write_text('name: "m"')
    (model / "model.py").write_text("one")
    own = replace(spec, model="m", model_path=str(tmp_path / "repo"))
    root = repository.repository_of(own)
    digest = repository.repository_digest(own, root)
    repository.check_digest(replace(own, model_digest=digest), root)
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "x.pyc").write_text("compiled")
    assert repository.repository_digest(own, root) == digest
    (model / "model.py").write_text("two")
    assert repository.repository_digest(own, root) != digest
    with pytest.raises(EngineError) as caught:
        repository.check_digest(replace(own, model_digest=digest), root)
    assert caught.value.kind == "model"


@pytest.mark.req("ORCH-3003")
async def test_the_need_is_estimated_from_the_files(spec: EngineSpec) -> None:
    need = await TritonAdapter(spec).memory_need()
    assert need.host_bytes > need.weights_bytes > 0
    assert need.slots_max == 4, "the model declares that batches do not matter"
    with pytest.raises(EngineError) as caught:
        await TritonAdapter(replace(spec, model="nobody")).memory_need()
    assert caught.value.kind == "model"
    assert (await TritonAdapter(replace(spec, endpoint="http://h:1")).memory_need()).host_bytes == 0


def test_the_model_that_counts_tokens_is_loaded_beside(spec: EngineSpec, tmp_path: Path) -> None:
    assert repository.models_of(spec, repository.TOY_REPOSITORY) == ["llorch_text", "preprocessing"]
    assert repository.models_of(replace(spec, model="m"), tmp_path) == ["m"]
    assert repository.declares_invariance(repository.TOY_REPOSITORY, "llorch_text")
    assert not repository.declares_invariance(repository.TOY_REPOSITORY, "preprocessing")


@pytest.fixture
def trtllm(spec: EngineSpec, tmp_path: Path) -> EngineSpec:
    """A repository as TensorRT-LLM's backend comes with one, and two models that have nothing to do with it."""
    root, engine = tmp_path / "repository", tmp_path / "engine"
    engine.mkdir()
    (engine / "rank0.engine").write_bytes(b"x" * 1000)
    entry = 'parameters: {\n  key: "%s"\n  value: {\n    string_value: "%s"\n  }\n}\n'
    configs = {
        "tensorrt_llm_bls": entry % ("accumulate_tokens", "false")
        + entry % ("tensorrt_llm_model_name", "my_engine")
        + f"# {entry % ('tensorrt_llm_draft_model_name', 'unrelated')}".replace("\n", "\n# "),
        "my_engine": entry % ("gpt_model_path", engine) + entry % ("draft", "draft"),
        "draft": entry % ("tensorrt_llm_model_name", "tensorrt_llm_bls"),
        "preprocessing": "",
        "postprocessing": "",
        "extra": "",
        "unrelated": "",
    }
    for name, text in configs.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(f'name: "{name}"\n{text}')
    return replace(spec, model="tensorrt_llm_bls", model_path=str(root))


@pytest.mark.req("ORCH-3057")
def test_a_model_that_calls_others_is_served_with_them(trtllm: EngineSpec) -> None:
    root = repository.repository_of(trtllm)
    called = ["my_engine", "preprocessing", "postprocessing", "draft"]
    assert sorted(repository.models_of(trtllm, root)) == sorted(["tensorrt_llm_bls", *called])
    named = replace(trtllm, args=("--llorch-models=extra",))
    assert sorted(repository.models_of(named, root)) == sorted(["tensorrt_llm_bls", *called, "extra"])
    assert repository.models_of(replace(trtllm, model="unrelated"), root) == ["unrelated", "preprocessing"]
    with pytest.raises(EngineError, match="holds no model 'nobody'") as caught:
        repository.models_of(replace(trtllm, args=("--llorch-models=nobody",)), root)
    assert caught.value.kind == "model"


@pytest.mark.req("ORCH-3057")
def test_the_steps_of_an_ensemble_belong_to_it(trtllm: EngineSpec) -> None:
    root = repository.repository_of(trtllm)
    (root / "unrelated" / "config.pbtxt").write_text("ensemble_scheduling { step [ { model_name: 'extra' } ] }")
    assert repository.models_of(replace(trtllm, model="unrelated"), root) == ["unrelated", "extra", "preprocessing"]


@pytest.mark.req("ORCH-3003", "ORCH-3032")
def test_engines_and_companions_count_for_memory_and_digest(trtllm: EngineSpec, tmp_path: Path) -> None:
    root = repository.repository_of(trtllm)
    before_bytes = repository.memory_need(trtllm, root).weights_bytes
    digest = repository.repository_digest(trtllm, root)
    (root / "unrelated" / "1" / "model.py").write_text("other")
    assert repository.repository_digest(trtllm, root) == digest
    (tmp_path / "engine" / "rank1.engine").write_bytes(b"y" * 1000)
    assert repository.memory_need(trtllm, root).weights_bytes == before_bytes + 1000
    beside = repository.repository_digest(trtllm, root)
    (root / "postprocessing" / "1" / "model.py").write_text("one")
    assert len({digest, beside, repository.repository_digest(trtllm, root)}) == 3


def test_an_engine_in_its_models_folder_counts_once(trtllm: EngineSpec) -> None:
    root = repository.repository_of(trtllm)
    folder = root / "my_engine" / "1"
    (folder / "rank0.engine").write_bytes(b"x" * 1000)
    text = f'parameters {{ key: "gpt_model_path" value {{ string_value: "{folder}" }} }}'
    (root / "my_engine" / "config.pbtxt").write_text(text)
    files = repository.model_files(trtllm, root)
    assert [name for name in files if name.endswith(".engine")] == ["my_engine/1/rank0.engine"]


@pytest.mark.req("OC-ADAPT-5070")
def test_the_version_of_tensorrt_llm_is_told_by_the_model_or_its_engine(tmp_path: Path) -> None:
    assert repository.trtllm_version(ModelConfig()) == ""
    assert repository.trtllm_version(ModelConfig(parameters={"trtllm_version": Parameter("0.16.0")})) == "0.16.0"
    by_engine = ModelConfig(parameters={"gpt_model_path": Parameter(str(tmp_path))})
    assert repository.trtllm_version(by_engine) == ""
    (tmp_path / "config.json").write_text(json.dumps({"version": "0.17.0"}))
    assert repository.trtllm_version(by_engine) == "0.17.0"
    (tmp_path / "config.json").write_text("[1]")
    assert repository.trtllm_version(by_engine) == ""


# ------------------------------------------------------------------------------------------------ provision


def test_an_interpreter_without_its_shared_library_or_numpy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "_installed", lambda: iter(()))
    monkeypatch.setattr(provision, "_VERSIONS", ("3.8",))
    with pytest.raises(EngineError, match=r"no numpy 1\.x for Python 3\.\d+.*install Python 3\.11") as caught:
        provision.find_engine()
    assert code_of(caught) == "POOL_UNREADY"


def test_another_interpreter_is_taken_where_our_own_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libpython3.12.so.1.0").touch()
    answer = json.dumps(["3.12", str(tmp_path), "", "libpython3.12.so.1.0"]).encode()

    def run(argv: list[str], **_: object) -> "subprocess.CompletedProcess[bytes]":
        own = argv[0] == sys.executable
        return subprocess.CompletedProcess(argv, 0, json.dumps(["3.13", "", "", ""]).encode() if own else answer)

    monkeypatch.setattr(provision.subprocess, "run", run)
    monkeypatch.setattr(provision, "_installed", lambda: iter(["/usr/bin/other"]))
    found = provision._interpreter()
    assert (found.executable, found.version) == ("/usr/bin/other", "3.12")
    assert found.library == tmp_path / "libpython3.12.so.1.0"


def test_interpreters_of_this_host_are_listed() -> None:
    assert all(os.path.isabs(path) for path in provision._installed())
