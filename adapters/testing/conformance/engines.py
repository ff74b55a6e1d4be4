"""The engines of this project as the suite runs them: dialects for the wire, subjects for what really runs."""

from collections.abc import Callable
from functools import partial
from typing import Final

from msgspec.structs import replace

from adapters.cache import cache_dir
from adapters.llamacpp import LlamaCppAdapter
from adapters.llamacpp.models import bundled_model_path
from adapters.llamacpp.provision import find_engine
from adapters.mock import MockAdapter, MockFaults
from adapters.testing.conformance.dialect import Dialect
from adapters.testing.conformance.dialects.llamacpp import LlamaCppDialect
from adapters.testing.conformance.dialects.mock import MockDialect
from adapters.testing.conformance.dialects.tgi import TgiDialect
from adapters.testing.conformance.dialects.triton import TritonDialect
from adapters.testing.conformance.dialects.vllm import VllmDialect
from adapters.testing.conformance.subject import Subject
from adapters.testing.tgi_peer import write_launcher
from adapters.tgi import TgiAdapter
from adapters.triton import TritonAdapter
from adapters.vllm import provision as vllm_provision
from adapters.vllm.adapter import VllmAdapter
from contracts.engine import EngineSpec

_MODEL: Final = "smollm2-135m-instruct"
_NO_VECTORS: Final = dict.fromkeys(("embedding", "rerank"), "it makes text only")


def _kill_mock(adapter: MockAdapter) -> None:
    adapter.kill()


def mock() -> Subject:
    """The mock engine, without a fault."""
    return Subject(
        name="mock (in process)",
        spec=_spec("mock", model_path="", ctx=1024, slots=4),
        create=partial(MockAdapter, faults=MockFaults(token_ms=1)),
        lacks={"private": "the mock runs in the adapter's own process, where no other process listens", **_NO_VECTORS},
        kill=_kill_mock,
    )


def llamacpp() -> Subject:
    """A real llama-server with the bundled model; found or made where there is none yet."""
    spec = _spec("llamacpp", model_path=str(bundled_model_path(_MODEL)), binary=str(find_engine()), ctx=1024, slots=2)
    return Subject(
        name="llama.cpp (real llama-server)",
        spec=spec,
        embedding=replace(spec, workload="embedding", ctx=256),
        rerank=replace(spec, workload="rerank", ctx=256),
        create=LlamaCppAdapter,
        prefill_prompt="The river runs to the sea and the sea keeps every secret of the river. " * 40,
        long_tokens=600,
    )


def triton() -> Subject:
    """A real tritonserver with the project's toy model; the server is made where there is none yet."""
    return Subject(
        name="Triton (real server, toy model)",
        spec=replace(_spec("triton", model_path="", ctx=4096, slots=4), model="llorch_text"),
        create=TritonAdapter,
        lacks={
            "messages": "Triton has no chat templates",
            "input_limit": "the toy model takes inputs of any length",
            "rerank": "Triton has no convention for reranking",
            "empty_prompt": "Triton's models need a prompt",
            "counted": "Triton's metrics count no tokens",
            "keys": "Triton has no keys: its sockets are in a folder that only its own user can enter",
        },
        prefill_prompt="The river runs to the sea. [[pace:20]] " * 20,
        embedding=replace(
            _spec("triton", model_path="", ctx=4096, slots=4), model="llorch_embed", workload="embedding"
        ),
    )


def triton_http() -> Subject:
    """The same over its other transport."""
    subject = triton()
    spec = replace(subject.spec, args=("--llorch-transport=http",))
    return replace(subject, name="Triton (real server, toy model, over HTTP)", spec=spec)


def tgi() -> Subject:
    """The peer that stands in for TGI, launched as TGI is. It is not TGI."""
    folder = cache_dir() / "conformance" / "tgi-peer"
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"no weights")
    binary = write_launcher(folder, "--peer-token-ms", "2")
    return Subject(
        name="TGI peer (not TGI)",
        spec=replace(_spec("tgi", model_path=str(model), binary=str(binary), ctx=2048, slots=4), batch_invariant=True),
        create=TgiAdapter,
        lacks={"empty_prompt": "TGI refuses an empty prompt", **_NO_VECTORS},
    )


def vllm() -> Subject:
    """A real vLLM on the CPU with the bundled model, converted; made where there is none yet, which takes minutes."""
    python = vllm_provision.find_engine()
    model = vllm_provision.find_model(python, _MODEL)
    spec = _spec("vllm", model_path=str(model), binary=str(python), ctx=1024, slots=4)
    spec = replace(spec, determinism="best_effort", ready_timeout_ms=300_000)
    return Subject(
        name="vLLM (real, on the CPU)",
        spec=spec,
        embedding=replace(spec, workload="embedding", ctx=256),
        rerank=replace(spec, workload="rerank", ctx=256),
        # A start compiles kernels.
        case_timeout_s=400.0,
        create=VllmAdapter,
        lacks={"seeds": "batches change vLLM's tokens, and this pool is best_effort"},
        prefill_prompt="The river runs to the sea and the sea keeps every secret of the river. " * 40,
    )


#: What really runs, by the name that the command line takes; the second kind takes minutes and gigabytes.
SUBJECTS: Final[dict[str, Callable[[], Subject]]] = {
    "mock": mock,
    "llamacpp": llamacpp,
    "triton": triton,
    "triton-http": triton_http,
    "tgi": tgi,
}
SLOW_SUBJECTS: Final[dict[str, Callable[[], Subject]]] = {"vllm": vllm}
DIALECTS: Final[dict[str, Callable[[], Dialect]]] = {
    "mock": MockDialect,
    "llamacpp": LlamaCppDialect,
    "vllm": VllmDialect,
    "tgi": TgiDialect,
    "triton": TritonDialect,
}


def _spec(engine: str, *, model_path: str, ctx: int, slots: int, binary: str = "", **more: object) -> EngineSpec:
    return EngineSpec(
        engine=engine,
        pool_id="conformance",
        replica_id="conformance-0",
        model=_MODEL,
        model_path=model_path,
        ctx=ctx,
        slots=slots,
        accelerator="cpu-dev",
        binary=binary,
        **more,  # type: ignore[arg-type]
    )
