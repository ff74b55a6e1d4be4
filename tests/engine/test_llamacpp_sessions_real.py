"""Sessions' contexts on a real llama-server: what is restored gives the bytes of what is computed anew."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from adapters.llamacpp import LlamaCppAdapter, contexts
from adapters.llamacpp.models import bundled_model_path
from adapters.llamacpp.provision import find_engine
from adapters.llamacpp.sessions import session_name
from contracts.engine import Chunk, EngineSpec, Finish, GenerateRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "smollm2-135m-instruct"
A = "The river runs to the sea and the sea keeps every secret of the river. " * 17
B = "A lamp was lit in the tower while the ferry waited for the night to end. " * 19
MORE = " What the old captain said then was"


async def running(slots: int) -> AsyncIterator[LlamaCppAdapter]:
    adapter = LlamaCppAdapter(
        EngineSpec(
            engine="llamacpp",
            pool_id="real",
            replica_id="real-0",
            model=MODEL,
            model_path=str(bundled_model_path(MODEL)),
            ctx=1024,
            slots=slots,
            accelerator="cpu-dev",
            binary=str(find_engine()),
        )
    )
    await adapter.launch()
    yield adapter
    await adapter.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[LlamaCppAdapter]:
    """One slot, so that every other session has to take it."""
    async for adapter in running(1):
        yield adapter


@pytest_asyncio.fixture(loop_scope="module")
async def two_slots() -> AsyncIterator[LlamaCppAdapter]:
    async for adapter in running(2):
        yield adapter


def request(prompt: str, session_id: str = "", seed: int = 42, max_tokens: int = 16, hint: str = "") -> GenerateRequest:
    return GenerateRequest(
        task_id="t", max_tokens=max_tokens, seed=seed, prompt=prompt, session_id=session_id, kv_hint=hint or None
    )


async def run(adapter: LlamaCppAdapter, what: GenerateRequest, key: str = "k") -> tuple[list[Chunk], int]:
    """Chunks, and how much of the prompt was cached."""
    items = [item async for item in adapter.generate(key, what)]
    finish = items[-1]
    assert isinstance(finish, Finish)
    return [item for item in items if isinstance(item, Chunk)], finish.tokens_cached


def saved(adapter: LlamaCppAdapter) -> list[Path]:
    assert adapter._folder is not None
    return sorted((adapter._folder / "slots").iterdir())


@pytest.mark.req("ORCH-3009", "ORCH-3045")
async def test_a_restored_context_gives_the_bytes_of_one_computed_anew(engine: LlamaCppAdapter) -> None:
    first, _ = await run(engine, request(A, "a"))
    prompt = A + "".join(chunk.text for chunk in first) + MORE
    made = 0
    for seed in (1, 2, 3):
        # The other session makes the slot's context as long as its own before each turn.
        await run(engine, request(B, "b", seed))
        assert session_name("a") in [path.name for path in saved(engine)]
        restored, cached = await run(engine, request(prompt, "a", seed, 32))
        assert cached > 256
        assert session_name("a") not in [path.name for path in saved(engine)]
        anew, none = await run(engine, request(prompt, "", seed, 32, "cold"))
        assert none == 0
        assert restored == anew
        made += len(restored)
    assert made > 30


@pytest.mark.req("ORCH-3009", "ORCH-3017", "ORCH-3045")
async def test_the_context_of_an_attempt_that_was_canceled_comes_back_exact(engine: LlamaCppAdapter) -> None:
    stream = engine.generate("canceled", request(A, "canceled", 5, 200))
    made = []
    async for item in stream:
        made.append(item)
        if len(made) == 8:
            await engine.cancel("canceled")
    assert not any(isinstance(item, Finish) for item in made)
    await run(engine, request(B, "b", 5))
    restored, cached = await run(engine, request(A, "canceled", 5, 32))
    assert cached > 256
    anew, none = await run(engine, request(A, "", 5, 32, "cold"))
    assert (restored, none) == (anew, 0)
    assert restored[:8] == made[:8]


@pytest.mark.req("ORCH-3009", "ORCH-3045")
@pytest.mark.parametrize("damage", ["half", "no magic", "gone"])
async def test_a_damaged_file_costs_the_cache_and_not_the_answer(engine: LlamaCppAdapter, damage: str) -> None:
    await run(engine, request(A, "damaged"))
    await run(engine, request(B, "b"))
    (file,) = [path for path in saved(engine) if path.name == session_name("damaged")]
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        # A file that is not whole would end the engine, if it were given to it.
        file.write_bytes(content[: len(content) // 2] if damage == "half" else bytes(16) + content[16:])
    answer, cached = await run(engine, request(A, "damaged"))
    assert cached == 0
    assert (answer, 0) == await run(engine, request(A, hint="cold"))


@pytest.mark.req("ORCH-3009")
async def test_a_save_onto_a_full_disk_costs_the_cache_and_not_the_answer(
    engine: LlamaCppAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = await run(engine, request(A, "full"))
    assert engine._folder is not None
    # What is not known there would be removed first.
    monkeypatch.setattr(contexts, "_remove_others", lambda *_: None)
    (engine._folder / "slots" / session_name("full")).symlink_to("/dev/full")
    other = await run(engine, request(B, "other"))
    monkeypatch.undo()
    assert await run(engine, request(A, "full")) == (expected, 0)
    assert session_name("full") not in [path.name for path in saved(engine)]
    assert (await run(engine, request(B, "other")))[0] == other[0]


@pytest.mark.req("ORCH-3009", "ORCH-3045")
async def test_moves_of_one_slot_change_nothing_of_what_another_one_makes(two_slots: LlamaCppAdapter) -> None:
    story = request("Once upon a time", "story", 9, 400)
    streamed = asyncio.create_task(run(two_slots, story, "story"))
    first, _ = await run(two_slots, request(A, "a"))
    await run(two_slots, request(B, "b"))
    again, cached = await run(two_slots, request(A, "a"))
    assert not streamed.done()
    assert again == first
    assert cached > 256
    chunks, _ = await streamed
    assert chunks == (await run(two_slots, request("Once upon a time", "", 9, 400, "cold")))[0]
