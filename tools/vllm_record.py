"""Record what a real vLLM server answers, for tests that replay it.

`python -m tools.vllm_record FOLDER` starts vLLM for the CPU with the bundled model, once for completions and once for
pooling, and writes an exchange a file: the request, the answer's status and content type, and its body as sent.
Paths of this machine, and all of the metrics page that is not vLLM's own or is a histogram, are left out.
"""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from msgspec import Struct

from adapters.child import ChildProcess
from adapters.folder import private_folder
from adapters.vllm.command import server_arguments, server_environment
from adapters.vllm.memory import kv_cache_bytes
from adapters.vllm.preflight import with_binary, with_model
from adapters.vllm.protocol import completion_body
from contracts.api import Sampling, Workload
from contracts.engine import EngineSpec, GenerateRequest

_MODEL: Final = "smollm2-135m-instruct"
_KEY: Final = "recording-key"
_READY_S: Final = 300

#: Name to path and body.
Requests = dict[str, tuple[str, dict[str, Any] | None]]


class Exchange(Struct, frozen=True):
    """One request and its whole answer."""

    method: str
    path: str
    request: dict[str, Any] | None
    status: int
    content_type: str
    body: str


def _completion(spec: EngineSpec, prompt: str, max_tokens: int, **sampling: Any) -> dict[str, Any]:
    request = GenerateRequest("t", max_tokens, seed=7, prompt=prompt, sampling=Sampling(**sampling))
    return completion_body(spec, "recorded", request, prompt)


def _completion_requests(spec: EngineSpec) -> Requests:
    emoji = "Repeat: 🙂🙃 naïve 日本語 🙂🙃 naïve 日本語 🙂🙃 naïve"
    ask = "The capital of France is"
    return {
        "stream": ("/v1/completions", _completion(spec, ask, 6)),
        "stream-characters": ("/v1/completions", _completion(spec, emoji, 14, temperature=0.0)),
        "stream-stop-string": ("/v1/completions", _completion(spec, ask, 60, temperature=0.0, stop=["answer is"])),
        "stream-held-back": ("/v1/completions", _completion(spec, ask, 60, temperature=0.0, stop=["unheard of"])),
        "stream-clamped": ("/v1/completions", _completion(spec, "word " * 250, 100)),
        "stream-error": ("/v1/completions", _completion(spec, ask, 4, logit_bias={"99999999": 1.0})),
        "too-long": ("/v1/completions", _completion(spec, "word " * 400, 4)),
        "unknown-model": ("/v1/completions", {**_completion(spec, ask, 4), "model": "another"}),
        "unknown-route": ("/v1/embeddings", {"model": spec.model, "input": "a"}),
        "tokens": ("/tokenize", {"model": spec.model, "prompt": ask}),
        "templated": ("/tokenize", {"model": spec.model, "messages": [{"role": "user", "content": "Hi"}]}),
        "models": ("/v1/models", None),
        "version": ("/version", None),
        "metrics": ("/metrics", None),
    }


def _pooling_requests(spec: EngineSpec) -> Requests:
    documents = ["Paris is the capital.", "I like dogs", "The Seine runs through Paris."]
    question = "What is the capital of France?"
    return {
        "embeddings": ("/v1/embeddings", {"model": spec.model, "input": documents[:2], "encoding_format": "float"}),
        "embeddings-empty-input": ("/v1/embeddings", {"model": spec.model, "input": [""], "encoding_format": "float"}),
        "scores": ("/v1/score", {"model": spec.model, "queries": question, "documents": documents}),
    }


@asynccontextmanager
async def _server(workload: Workload) -> AsyncIterator[tuple[EngineSpec, aiohttp.ClientSession]]:
    spec = EngineSpec("vllm", "record", "record-0", _MODEL, "", 256, 1, "cpu-dev", workload=workload)
    spec = await with_model(await with_binary(spec))
    folder = private_folder()
    socket_path = folder / "record.sock"
    arguments = server_arguments(spec, socket_path, kv_cache_bytes(spec))
    child = ChildProcess([spec.binary, *arguments], server_environment(spec, folder, _KEY), (_KEY,), tree=True)
    connector = aiohttp.UnixConnector(path=str(socket_path), force_close=True)
    headers = {"Authorization": f"Bearer {_KEY}"}
    async with aiohttp.ClientSession("http://engine", connector=connector, headers=headers) as session:
        try:
            async with asyncio.timeout(_READY_S):
                while not await _is_healthy(session):
                    await asyncio.sleep(1)
            yield spec, session
        finally:
            await child.stop()
            shutil.rmtree(folder, ignore_errors=True)


async def _is_healthy(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/health") as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False


async def _record(spec: EngineSpec, session: aiohttp.ClientSession, path: str, body: dict[str, Any] | None) -> Exchange:
    method = "GET" if body is None else "POST"
    async with session.request(method, path, json=body) as response:
        text = (await response.text()).replace(spec.model_path, "/model")
        if path == "/metrics":
            text = "".join(f"{line}\n" for line in text.splitlines() if _is_own_sample(line))
        return Exchange(method, path, body, response.status, response.content_type, text)


def _is_own_sample(line: str) -> bool:
    return line.startswith("vllm:") and "_bucket{" not in line and "_config_info{" not in line


async def _main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    await _record_all(folder, "completion", _completion_requests)
    await _record_all(folder, "embedding", _pooling_requests)


async def _record_all(folder: Path, workload: Workload, requests: Callable[[EngineSpec], Requests]) -> None:
    async with _server(workload) as (spec, session):
        for name, (path, body) in requests(spec).items():
            exchange = await _record(spec, session, path, body)
            text = msgspec.json.format(msgspec.json.encode(exchange), indent=2)
            (folder / f"{name}.json").write_bytes(text + b"\n")


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
