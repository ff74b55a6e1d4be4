"""The fake engine's text follows from the model, as a real one's does."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from adapters.llamacpp import LlamaCppAdapter
from adapters.testing.fake_model import write_fake_model
from contracts.engine import Chunk, GenerateRequest

Launch = Callable[..., Awaitable[LlamaCppAdapter]]


async def text(adapter: LlamaCppAdapter) -> str:
    request = GenerateRequest(task_id="t", max_tokens=8, seed=7, prompt="one two")
    items = [item async for item in adapter.generate("a", request)]
    return "".join(item.text for item in items if isinstance(item, Chunk))


@pytest.mark.req("ORCH-3045")
async def test_another_model_gives_other_text_and_a_copy_the_same(launch: Launch, tmp_path: Path) -> None:
    one = write_fake_model(tmp_path / "one.gguf", "first")
    copy = write_fake_model(tmp_path / "copy.gguf", "first")
    other = write_fake_model(tmp_path / "other.gguf", "second")
    texts = [await text(await launch(model_path=str(path))) for path in (one, copy, other)]
    assert texts[0] == texts[1] != texts[2]
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(b"no model")
    usual = await text(await launch(model_path=str(bare)))
    assert usual == await text(await launch())
    assert usual not in texts
