"""Launching: with a stand-in for vLLM's Python that answers little; and how the real one is made or refused."""

import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.provisioning.progress import UnusableError
from adapters.vllm import VllmAdapter, provision
from adapters.vllm.provision import find_engine, find_model
from contracts.engine import EngineError, EngineSpec

#: Takes vLLM's command line and its key; `-c` is the question for GPUs.
STAND_IN = f"""#!{sys.executable}
import http.server, json, os, socketserver, sys
if sys.argv[1] == "-c":
    print(os.environ["STAND_IN_GPUS"])
    sys.exit(0)
told = dict(zip(sys.argv, sys.argv[1:]))
if "--die" in sys.argv:
    sys.exit("ValueError: No available memory for the cache blocks.")
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        served = {{"id": told["--served-model-name"], "max_model_len": int(told["--max-model-len"])}}
        self.answer(200, {{"data": [served], "version": "0"}})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        right = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        self.answer(200 if right else 401, {{}})
    def log_message(self, *args):
        pass
    def address_string(self):
        return "unix"
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
Server(told["--uds"], Handler).serve_forever()
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"num_hidden_layers": 1, "bos_token_id": 1}')
    (folder / "model.safetensors").write_bytes(b"w")
    binary = tmp_path / "python"
    binary.write_text(STAND_IN)
    binary.chmod(0o755)
    return EngineSpec(
        "vllm", "p", "p-0", "m", str(folder), 64, 1, "cpu-dev", binary=str(binary), ready_timeout_ms=30_000
    )


@pytest.fixture
async def adapter(spec: EngineSpec) -> AsyncIterator[VllmAdapter]:
    launched = VllmAdapter(spec)
    await launched.launch()
    yield launched
    await launched.close()


@pytest.mark.req("ORCH-3001", "OC-ADAPT-5002")
async def test_it_comes_up_and_goes(adapter: VllmAdapter) -> None:
    assert adapter.pid is not None
    assert await adapter.healthy()
    assert (await adapter.properties()).ctx == 64
    await adapter.close()
    assert adapter.pid is None
    assert not await adapter.healthy()
    await adapter.launch()
    assert await adapter.healthy()


@pytest.mark.req("ORCH-3053")
async def test_why_it_did_not_come_up_is_told(spec: EngineSpec) -> None:
    adapter = VllmAdapter(replace(spec, args=("--die",)))
    with pytest.raises(EngineError, match="No available memory") as failed:
        await adapter.launch()
    assert failed.value.info.code == "POOL_UNREADY"


@pytest.mark.req("ORCH-1101", "ORCH-3011", "ORCH-3018")
@pytest.mark.parametrize(("found", "devices"), [("0", ("0",)), ("0", ()), ("1", ("0", "1")), ("broken", ("0",))])
async def test_without_its_gpus_it_is_not_started(
    spec: EngineSpec, monkeypatch: pytest.MonkeyPatch, found: str, devices: tuple[str, ...]
) -> None:
    monkeypatch.setenv("STAND_IN_GPUS", found)
    adapter = VllmAdapter(replace(spec, accelerator="gpu", devices=devices))
    with pytest.raises(EngineError, match="no CPU fallback") as refused:
        await adapter.launch()
    assert (refused.value.info.code, refused.value.kind) == ("POOL_UNAVAILABLE", "mask")


async def test_with_its_gpus_it_is(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_GPUS", "2")
    adapter = VllmAdapter(replace(spec, accelerator="gpu", devices=("0", "1")))
    await adapter.launch()
    assert await adapter.healthy()
    await adapter.close()


@pytest.mark.parametrize("accelerator", ["cpu-dev", "gpu"])
async def test_a_python_that_is_not_there(spec: EngineSpec, accelerator: str) -> None:
    adapter = VllmAdapter(replace(spec, binary="/nowhere/python", accelerator=accelerator))
    with pytest.raises(EngineError, match=r"set `engine_options\.binary`") as refused:
        await adapter.launch()
    assert refused.value.info.code == "POOL_UNREADY"


@pytest.mark.req("OC-POOL-3002")
async def test_memory_is_told_before_anything_runs(spec: EngineSpec) -> None:
    need = await VllmAdapter(spec).memory_need()
    assert (need.weights_bytes, need.slots_max) == (2, 1)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The tools that were run, none of them really."""
    ran: list[list[str]] = []

    def run(argv: list[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        assert cwd.is_dir()
        ran.append([*argv, env.get("UV_FIND_LINKS", "")])
        if "install" in argv and "fail" in env.get("PIP_FIND_LINKS", ""):
            raise UnusableError("uv failed")

    monkeypatch.setattr(provision, "run_tool", run)
    monkeypatch.setattr(provision, "_python", lambda: sys.executable)
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    return ran


def test_an_environment_is_made_once_of_hashed_packages(
    tools: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/a /b")
    python = find_engine()
    assert python.parts[-3:] == ("venv", "bin", "python")
    assert (tmp_path / "cache" / "engines" / "vllm") in python.parents
    install = tools[-1]
    assert {"--require-hashes", "--no-deps", "--only-binary"} <= set(install)
    assert install[-1] == "/a,/b"
    assert find_engine() == python
    assert len(tools) == 2


@pytest.mark.usefixtures("tools")
def test_what_to_do_is_told_where_a_package_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "fail")
    with pytest.raises(EngineError, match="UV_FIND_LINKS") as failed:
        find_engine()
    assert failed.value.info.code == "POOL_UNREADY"


def test_a_model_is_converted_once(tools: list[list[str]], tmp_path: Path) -> None:
    folder = find_model(tmp_path / "python", "smollm2-135m-instruct")
    assert (tmp_path / "cache" / "models" / "vllm") in folder.parents
    assert tools[0][1].endswith("convert.py")
    assert find_model(tmp_path / "python", "smollm2-135m-instruct") == folder
    assert len(tools) == 1
