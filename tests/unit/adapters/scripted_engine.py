"""An engine in this process for tests of the determinism suite: exact, but for what a test plants in it."""

import asyncio
import hashlib
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import msgspec

from adapters.errors import engine_error, worker_reset
from contracts.engine import (
    Chunk,
    EngineExit,
    EngineMetrics,
    EngineProperties,
    EngineSpec,
    Finish,
    GenerateRequest,
)
from contracts.gpus import MemoryNeed

WORDS = (" sea", " ship", " 🌊", " Grüße", " 猫", " wind", " log", ".")


@dataclass
class Situation:
    """What a planted flaw may look at: which replica, how often it was launched, how many tasks are in flight."""

    replica: str
    launches: int
    in_flight: int
    request: GenerateRequest
    prompt: str


@dataclass
class Script:
    """How the engine is. `flaw` returns the index of the first token that comes out wrong, None for none."""

    flaw: Callable[[Situation], int | None] = lambda _: None
    exact: bool = True
    version: str = "scripted 1"
    slots: int | None = None
    limit: int | None = None
    token_s: float = 0.0
    endless: bool = False
    caches: bool = True
    refuses: Callable[[GenerateRequest], bool] = lambda _: False
    launched: list[str] = field(default_factory=list)


class ScriptedEngine:
    """See `EngineAdapter`. Its process does nothing; when that is killed, streams break."""

    def __init__(self, spec: EngineSpec, script: Script) -> None:
        self._spec = spec
        self._script = script
        self._launches = 0
        self._in_flight = 0
        self._seen: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def memory_need(self) -> MemoryNeed:
        return MemoryNeed(weights_bytes=0, kv_slot_bytes=0, scratch_bytes=0, host_bytes=0)

    async def launch(self) -> None:
        await self.close()
        self._launches += 1
        self._seen.clear()
        self._script.launched.append(self._spec.replica_id)
        self._process = subprocess.Popen(["sleep", "600"])

    async def wait_exit(self) -> EngineExit:
        return EngineExit(status=-signal.SIGKILL)

    async def healthy(self) -> bool:
        return self.pid is not None

    async def properties(self) -> EngineProperties:
        return EngineProperties(
            engine_version=self._script.version,
            model_digest="sha256:0",
            slots=self._script.slots or self._spec.slots,
            ctx=self._spec.ctx,
            exact=self._script.exact,
        )

    async def count_tokens(self, request: GenerateRequest) -> int:
        return len(request.prompt or "")

    async def metrics(self) -> EngineMetrics:
        return EngineMetrics()

    async def cancel(self, attempt_key: str) -> None:
        del attempt_key

    async def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        del attempt_key
        if self._script.refuses(request):
            raise engine_error("INVALID_PARAMS", "not this prompt", engine="scripted", retriable=False)
        if self._in_flight >= (self._script.limit or self._spec.slots):
            raise engine_error("REPLICA_EXHAUSTED", "all slots are taken", engine="scripted", retriable=True)
        prompt = msgspec.json.encode([request.prompt, request.messages]).decode()
        cached = 1 if self._script.caches and self._seen and request.kv_hint != "cold" else 0
        self._seen.add(prompt)
        self._in_flight += 1
        try:
            await asyncio.sleep(0)  # others begin, too
            situation = Situation(self._spec.replica_id, self._launches, self._in_flight, request, prompt)
            wrong_from = self._script.flaw(situation)
            for index in range(request.max_tokens):
                await asyncio.sleep(self._script.token_s)
                if self.pid is None:
                    raise worker_reset("the engine was killed", "scripted")
                yield Chunk(_word(prompt, request.seed, index, wrong=wrong_from is not None and index >= wrong_from))
            if not self._script.endless:
                yield Finish("length", tokens_in=len(prompt), tokens_cached=cached)
        finally:
            self._in_flight -= 1


def _word(prompt: str, seed: int, index: int, *, wrong: bool) -> str:
    digest = hashlib.sha256(f"{prompt}\0{seed}\0{index}".encode()).digest()
    return WORDS[(digest[0] + wrong) % len(WORDS)]
