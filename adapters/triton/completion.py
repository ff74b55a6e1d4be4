"""One completion: asking for it over either transport, and reading it to its end."""

from collections.abc import AsyncIterator, Mapping

from adapters.attempts import Attempt
from adapters.errors import engine_error
from adapters.http_client import EngineClient
from adapters.stream import read_frames
from adapters.triton.frames import Frame, frame_of_event
from adapters.triton.grpc_stream import GrpcClient, read_grpc
from adapters.triton.inputs import READ_OUTPUTS
from adapters.triton.protocol import ENGINE, ModelConfig, error_of, is_dead
from adapters.triton.text import Text
from adapters.triton.wire import WireError, infer_request
from contracts.engine import Chunk, Finish

Responses = AsyncIterator[list[Frame]]


async def open_responses(
    attempt: Attempt, server: GrpcClient | EngineClient, config: ModelConfig, inputs: Mapping[str, object]
) -> Responses | None:
    """The responses to one request; None where it was canceled meanwhile.

    Raises EngineError: INVALID_PARAMS for a value that an input cannot hold, and what the server refuses.
    """
    if isinstance(server, GrpcClient):
        try:
            message = infer_request(config, inputs, [name for name in READ_OUTPUTS if config.has_output(name)])
        except WireError as error:
            raise engine_error("INVALID_PARAMS", str(error), engine=ENGINE, retriable=False) from None
        call = await attempt.run(attempt.keep(server.open(message)))
        return None if call is None else read_grpc(attempt, call)
    path = f"/v2/models/{config.name}/generate_stream"
    response = await attempt.run(attempt.keep(server.open(path, inputs)))
    return None if response is None else read_frames(attempt, response, frame_of_event, ENGINE)


async def read_text(attempt: Attempt, responses: Responses, text: Text) -> AsyncIterator[Chunk | Finish]:
    """Chunks, then one `Finish`; over without it only when the attempt is canceled (ORCH-3026).

    Raises EngineError for what the model tells, and WORKER_RESET for a stream that stops or cannot be read.
    """
    async for frames in responses:
        for frame in frames:
            if frame.error:
                attempt.finished = not is_dead(frame.error)
                raise error_of(frame.error)
            chunk = text.take(frame)
            if chunk is not None:
                yield chunk
            if attempt.canceled:
                return
            if text.stopped:
                break
        if text.stopped:
            break
    if attempt.canceled:
        return
    # A model that was not told of the stop string works on; closing its connection ends that.
    attempt.finished = not text.stopped
    rest = text.rest()
    if rest is not None:
        yield rest
        if attempt.canceled:
            return
    yield text.finish()
