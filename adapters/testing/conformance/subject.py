"""An engine that really runs, or a peer that stands for one, as the behaviour cases see it."""

import asyncio
import itertools
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from adapters.testing.conformance.cases import CaseBook, NotConformingError
from adapters.testing.conformance.outcome import Outcome, collect
from contracts.engine import AdapterFactory, EngineAdapter, EngineSpec, GenerateRequest

_FIRST_TEXT_S: Final = 60.0


def kill_process(adapter: Any) -> None:
    """SIGKILL to the engine process that the adapter launched."""
    os.kill(adapter.pid, signal.SIGKILL)


class Subject(Struct, frozen=True):
    """What is launched, and which prompts bring about what the cases need.

    `name` says what it is: a real engine, or a peer. `lacks` maps capabilities to why this engine does not have them:

    - `process`: it is launched, and can be killed; `model_file`: its model is a file that may be missing;
    - `private`: nobody else can reach it; `keys`: whoever reaches it needs a key;
    - `seeds`: texts follow from seeds; `greedy`: temperature 0 makes the seed irrelevant;
    - `tokenizer`, `messages`, `stop_strings`, `multibyte`, `empty_prompt`, `context_limit`: as they say;
    - `embedding`, `rerank`: it serves such pools, with the specs of these names;
    - `input_limit`: inputs to be embedded may be longer than it takes;
    - `counted`: its metrics count the tokens made, exactly.

    `prompt` gives a text of at least 24 tokens, `long_prompt` one that takes a second or more, `prefill_prompt` is
    long itself, and `multibyte_prompt` gives characters of several bytes. `kill` ends the engine as SIGKILL does,
    and a case may take `case_timeout_s`.
    """

    name: str
    spec: EngineSpec
    create: AdapterFactory
    lacks: Mapping[str, str] = {}
    prompt: str = "Once upon a time"
    long_prompt: str = "Once upon a time"
    long_tokens: int = 400
    prefill_prompt: str = "The river runs to the sea. " * 40
    multibyte_prompt: str = "Write emoji: 🙂🙂🙂🙂🙂"
    embedding: EngineSpec | None = None
    rerank: EngineSpec | None = None
    kill: Callable[[Any], None] = kill_process
    case_timeout_s: float = 100.0


class Bench:
    """One subject's adapter, launched when it is first needed and again when a case has left it dead."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.adapter: EngineAdapter = subject.create(subject.spec)
        self._is_launched = False
        self._keys = itertools.count()

    async def ready(self) -> None:
        """Have a healthy engine that does nothing."""
        if not (self._is_launched and await self.adapter.healthy()):
            self._is_launched = True
            await self.adapter.launch()

    async def close(self) -> None:
        await self.adapter.close()

    def key(self) -> str:
        return f"attempt-{next(self._keys)}-{secrets.token_hex(4)}"

    def request(self, prompt: str | None = None, max_tokens: int = 24, **fields: object) -> GenerateRequest:
        given = {"seed": 42, "prompt": self.subject.prompt if prompt is None else prompt, **fields}
        return GenerateRequest(task_id="t", max_tokens=max_tokens, **given)  # type: ignore[arg-type]

    async def generate(self, prompt: str | None = None, max_tokens: int = 24, **fields: object) -> Outcome:
        """One generation, to its end."""
        return await collect(self.adapter, self.key(), self.request(prompt, max_tokens, **fields))

    async def started(self) -> "Decode":
        """A generation that has made its first text and goes on for long."""
        decode = Decode(self, self.request(self.subject.long_prompt, self.subject.long_tokens))
        try:
            await asyncio.wait_for(decode.first.wait(), _FIRST_TEXT_S)
        except TimeoutError:
            raise NotConformingError(f"no text within {_FIRST_TEXT_S} s") from None
        return decode


class Decode:
    """A generation that is read in the background. `first` is set with its first item, or its end."""

    def __init__(self, bench: Bench, request: GenerateRequest) -> None:
        self.key = bench.key()
        self.outcome = Outcome()
        self.first = asyncio.Event()
        self._task = asyncio.create_task(self._read(bench.adapter, request))

    async def _read(self, adapter: EngineAdapter, request: GenerateRequest) -> None:
        try:
            async for item in adapter.generate(self.key, request):
                self.outcome.add(item)
                self.first.set()
        finally:
            self.first.set()

    async def over(self, within_s: float = 10.0) -> Outcome:
        """Wait for its end, and raise what it raised."""
        try:
            await asyncio.wait_for(self._task, within_s)
        except TimeoutError:
            raise NotConformingError(f"the generation did not end within {within_s} s") from None
        return self.outcome


behaviour: Final[CaseBook[Bench]] = CaseBook("behaviour")
