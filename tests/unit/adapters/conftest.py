"""The llama.cpp adapter on the fake engine."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.llamacpp import LlamaCppAdapter
from adapters.testing.fake_model import write_fake_model
from contracts.engine import EngineSpec
from tests.unit.adapters.quick_start import FAKE_LLAMA, write_engine

Launch = Callable[..., Awaitable[LlamaCppAdapter]]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    return EngineSpec(
        engine="llamacpp",
        pool_id="p",
        replica_id="p-0",
        model="m",
        model_path=str(write_fake_model(tmp_path / "model.gguf")),
        ctx=256,
        slots=2,
        accelerator="cpu-dev",
        binary=str(write_engine(tmp_path, FAKE_LLAMA)),
        ready_timeout_ms=30_000,
        batch_invariant=True,  # its text depends on the request alone
    )


@pytest.fixture
async def launch(spec: EngineSpec) -> AsyncIterator[Launch]:
    """Launch adapters with extra engine arguments and changes of the spec; all are closed at the end."""
    adapters = []

    async def start(*args: str, **changes: object) -> LlamaCppAdapter:
        adapter = LlamaCppAdapter(replace(spec, args=args, **changes))
        adapters.append(adapter)
        await adapter.launch()
        return adapter

    yield start
    for adapter in adapters:
        await adapter.close()
