"""Queue, batch and counters of the peer: who may run, who waits, and what `/metrics` says of it."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from adapters.testing.tgi_peer.bodies import ErrorResponse, GenerateRequest, StreamResponse, refusal
from adapters.testing.tgi_peer.generation import Generation
from adapters.testing.tgi_peer.options import PeerOptions
from adapters.testing.tgi_peer.vocabulary import tokenize

_LOOK_S: Final = 0.01


class RefusedError(Exception):
    """The peer refuses a request, or fails at it, with this status and body."""

    def __init__(self, status: int, error: str, error_type: str) -> None:
        super().__init__(error)
        self.status = status
        self.body = ErrorResponse(error, error_type)


class Batches:
    """Runs generations, `max_batch_size` at a time; of the others `max_concurrent_requests` less those wait."""

    def __init__(self, options: PeerOptions) -> None:
        self._options = options
        self._permits = options.max_concurrent_requests
        self._room = asyncio.Semaphore(options.max_batch_size)
        self._waiting = 0
        self._running = 0
        # As with TGI's recorder, a sample is there once it was touched.
        self._samples: Counter[str] = Counter()

    async def run(self, asked: GenerateRequest, gone: Callable[[], bool]) -> AsyncGenerator[StreamResponse]:
        """The frames of one generation. Ends early when the client is `gone`. Raises RefusedError."""
        self._samples["tgi_request_count"] += 1
        if self._permits == 0:
            raise self._refused(429, "Model is overloaded", "overloaded")
        self._permits -= 1
        try:
            input_length = len(tokenize(asked.inputs))
            reason = refusal(asked, input_length, self._options)
            if reason is not None:
                raise self._refused(422, f"Input validation error: {reason}", "validation")
            self._observe("tgi_request_input_length", input_length)
            generation = Generation(asked, input_length, self._options)
            self._wait(1)
            try:
                await self._room.acquire()
            finally:
                self._wait(-1)
            try:
                async with aclosing(self._steps(generation, gone)) as frames:
                    async for frame in frames:
                        yield frame
            finally:
                self._room.release()
        finally:
            self._permits += 1

    async def _steps(self, generation: Generation, gone: Callable[[], bool]) -> AsyncGenerator[StreamResponse]:
        """Prefill, which nothing breaks off and which does not count as in the batch yet, then decoding."""
        self._samples['tgi_batch_inference_count{method="prefill"}'] += 1
        await asyncio.sleep(self._options.first_token_ms / 1000)
        self._samples['tgi_batch_inference_success{method="prefill"}'] += 1
        self._batch(1)
        try:
            async with aclosing(self._decode(generation, gone)) as frames:
                async for frame in frames:
                    yield frame
        finally:
            self._batch(-1)

    async def _decode(self, generation: Generation, gone: Callable[[], bool]) -> AsyncGenerator[StreamResponse]:
        options = self._options
        while generation.finish_reason is None:
            made = len(generation.tokens)
            if made == options.die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if made == options.fail_after:
                raise self._refused(424, f"Request failed during generation: {options.fail_text}", "generation")
            while made == options.stall_after and not gone():
                await asyncio.sleep(_LOOK_S)
            if gone():
                self._samples['tgi_request_failure{err="dropped"}'] += 1
                return
            yield generation.step()
            await asyncio.sleep(options.token_ms / 1000)
        self._observe("tgi_request_generated_tokens", len(generation.tokens))
        self._samples["tgi_request_success"] += 1

    def metrics(self) -> str:
        """All samples so far in the Prometheus text format."""
        return "".join(f"{name} {value}\n" for name, value in self._samples.items())

    def refused(self, error: str) -> RefusedError:
        """A refusal that comes before a request is let in."""
        return self._refused(422, f"Input validation error: {error}", "validation")

    def _refused(self, status: int, error: str, error_type: str) -> RefusedError:
        self._samples[f'tgi_request_failure{{err="{error_type}"}}'] += 1
        return RefusedError(status, error, error_type)

    def _observe(self, name: str, value: int) -> None:
        self._samples[f"{name}_sum"] += value
        self._samples[f"{name}_count"] += 1

    def _wait(self, change: int) -> None:
        self._waiting += change
        self._samples["tgi_queue_size"] = self._waiting

    def _batch(self, change: int) -> None:
        self._running += change
        self._samples["tgi_batch_current_size"] = self._running
