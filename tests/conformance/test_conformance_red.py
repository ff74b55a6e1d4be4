"""The suite can go red: adapters that are broken on purpose are caught, each by the case that is there for it."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec.structs import replace

from adapters.attempts import Attempts
from adapters.http_client import EngineClient
from adapters.mock import MockAdapter, MockFaults
from adapters.testing.conformance.dialects.mock import MockDialect
from adapters.testing.conformance.engines import SUBJECTS
from adapters.testing.conformance.runner import run_behaviour, run_wire
from adapters.testing.conformance.subject import Bench
from contracts.engine import Chunk, EngineAdapter, EngineError, EngineSpec, Finish, GenerateRequest
from tests.conformance.plan import behaviour_case, wire_case


class SwallowsTruncation(MockAdapter):
    """Makes an end of a stream that just stopped."""

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        try:
            async for item in super().generate(attempt_key, request):
                yield item
        except EngineError as error:
            if "before it was complete" not in error.info.message and "broke" not in error.info.message:
                raise
            yield Finish("stop", tokens_in=5)


class SplitsCharacters(MockAdapter):
    """Decodes bytes piece by piece, as if every piece were whole characters."""

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        async for item in super().generate(attempt_key, request):
            if isinstance(item, Chunk):
                data = item.text.encode()
                text = "".join(data[n : n + 2].decode(errors="replace") for n in range(0, len(data), 2))
                yield replace(item, text=text)
            else:
                yield item


class IgnoresCancel(MockAdapter):
    """Says that it canceled, and goes on."""

    async def cancel(self, attempt_key: str) -> None:
        del attempt_key


class TrustsTheClose(MockAdapter):
    """Frees a slot as soon as the connection is closed, whatever the engine says."""

    def _new_attempts(self, client: EngineClient) -> Attempts:
        async def is_released(attempt: object) -> bool:
            del attempt
            return True

        del client
        return Attempts("mock", self._spec.slots, self._alive, is_released)


class CountsFrames(MockAdapter):
    """Takes each frame for a token."""

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        async for item in super().generate(attempt_key, request):
            yield replace(item, tokens=1) if isinstance(item, Chunk) else item


class DropsInBandErrors(MockAdapter):
    """Looks for errors in the status only."""

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        try:
            async for item in super().generate(attempt_key, request):
                yield item
        except EngineError as error:
            if "a peer says" not in error.info.message:
                raise
            yield Finish("stop", tokens_in=5)


class EndsTwice(MockAdapter):
    """Says its end twice."""

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        async for item in super().generate(attempt_key, request):
            yield item
            if isinstance(item, Finish):
                yield item


class RaisesItsOwn(MockAdapter):
    """Lets an exception of its parser out."""

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        try:
            async for item in super().generate(attempt_key, request):
                yield item
        except EngineError as error:
            raise ValueError("cannot parse") from error


class TakesTooMany(MockAdapter):
    """Sends more than the engine runs."""

    def __init__(self, spec: EngineSpec, faults: MockFaults | None = None) -> None:
        super().__init__(replace(spec, slots=spec.slots + 1), faults)


class IgnoresSeeds(MockAdapter):
    """Gives every task the same seed."""

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        async for item in super().generate(attempt_key, replace(request, seed=0)):
            yield item


class LeavesStopsIn(MockAdapter):
    """Leaves the stop string in the text."""

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        async for item in super().generate(attempt_key, request):
            if isinstance(item, Finish) and item.stop_sequence:
                yield Chunk(item.stop_sequence)
            yield item


@pytest.mark.req("OC-ADAPT-5001", "OC-ADAPT-5010", "ORCH-3025", "ORCH-3026")
@pytest.mark.parametrize(
    ("broken", "case"),
    [
        (SwallowsTruncation, "wire.no_end_marker"),
        (SwallowsTruncation, "wire.broken_off_anywhere"),
        (SplitsCharacters, "wire.whole"),
        (IgnoresCancel, "wire.cancel_amid_a_stall"),
        (IgnoresCancel, "wire.cancel_before_the_answer"),
        (TrustsTheClose, "wire.a_slot_that_is_kept"),
        (CountsFrames, "wire.many_tokens_a_frame"),
        (DropsInBandErrors, "wire.errors_amid_a_stream"),
        (EndsTwice, "wire.whole"),
        (RaisesItsOwn, "wire.garbage_frames"),
        (RaisesItsOwn, "wire.refusals"),
        (TakesTooMany, "wire.no_more_than_the_slots"),
        (LeavesStopsIn, "wire.a_stop_string"),
    ],
)
async def test_a_broken_adapter_is_caught_on_the_wire(broken: Callable[[EngineSpec], EngineAdapter], case: str) -> None:
    class Dialect(MockDialect):
        def create(self, spec: EngineSpec) -> EngineAdapter:
            return broken(spec)

    result = await run_wire(Dialect(), wire_case(case))
    assert result.verdict == "failed"
    assert result.reason
    # The same case passes with the adapter as it should be.
    assert (await run_wire(MockDialect(), wire_case(case))).verdict == "passed"
    await _settle()


@pytest.mark.req("OC-ADAPT-5010", "ORCH-3017", "ORCH-3045")
@pytest.mark.parametrize(
    ("broken", "case"),
    [
        (SplitsCharacters, "behaviour.whole_characters"),
        (IgnoresCancel, "behaviour.canceled_amid_the_text"),
        (CountsFrames, "behaviour.tokens_are_counted"),
        (IgnoresSeeds, "behaviour.seeds"),
        (LeavesStopsIn, "behaviour.stop_strings"),
        (EndsTwice, "behaviour.one_end"),
    ],
)
async def test_a_broken_adapter_is_caught_by_what_it_does(
    broken: Callable[[EngineSpec, MockFaults], EngineAdapter], case: str
) -> None:
    sound = SUBJECTS["mock"]()
    bench = Bench(replace(sound, create=lambda spec: broken(spec, MockFaults(token_ms=1))))
    try:
        result = await run_behaviour(bench, behaviour_case(case))
    finally:
        await bench.close()
    assert result.verdict == "failed"
    assert result.reason
    await _settle()


@pytest.mark.req("ORCH-3025")
async def test_an_engine_that_stalls_or_truncates_is_no_conforming_one() -> None:
    sound = SUBJECTS["mock"]()
    for faults in (MockFaults(truncate_after=3), MockFaults(garbage_after=3), MockFaults(die_after=3)):
        bench = Bench(replace(sound, create=lambda spec, faults=faults: MockAdapter(spec, faults)))
        try:
            assert (await run_behaviour(bench, behaviour_case("behaviour.max_tokens"))).verdict == "failed"
        finally:
            await bench.close()


async def _settle() -> None:
    """A failed case leaves readers behind; end them here, so that none is left to the next test."""
    own = asyncio.current_task()
    left = [task for task in asyncio.all_tasks() if task is not own]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
