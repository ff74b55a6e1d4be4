"""Request and response bodies of the peer, after TGI's OpenAPI document, and what TGI refuses of them."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from adapters.testing.tgi_peer.options import PeerOptions
from adapters.testing.tgi_peer.vocabulary import SimpleToken

FinishReason = Literal["length", "eos_token", "stop_sequence"]
Natural = Annotated[int, Meta(ge=0)]

#: TGI generates a longer text in rounds of this many tokens, and so may make more than were asked for.
ROUND_TOKENS: Final = 1024


class Parameters(Struct, frozen=True):
    best_of: Natural | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: Natural | None = None
    return_full_text: bool | None = None
    stop: list[str] = []
    truncate: Natural | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: Natural | None = None
    top_n_tokens: Natural | None = None

    @property
    def sampled(self) -> bool:
        """Whether the engine samples; a temperature of 1 alone does not make it."""
        warped = (self.temperature or 1.0) != 1.0 or bool(self.top_k) or self.top_p is not None
        return self.do_sample or warped or self.typical_p is not None

    @property
    def shaping(self) -> str:
        """What of the parameters shapes the text."""
        return repr((self.temperature, self.repetition_penalty, self.frequency_penalty, self.top_k, self.top_p))


class GenerateRequest(Struct, frozen=True):
    inputs: str
    parameters: Parameters = Parameters()
    stream: bool = False


class Message(Struct, frozen=True):
    role: str
    content: str = ""


class ChatRequest(Struct, frozen=True):
    messages: list[Message]


class Token(Struct, frozen=True):
    id: int
    text: str
    logprob: float
    special: bool


class StreamDetails(Struct, frozen=True):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamResponse(Struct, frozen=True):
    index: int
    token: Token
    generated_text: str | None
    details: StreamDetails | None


class Details(Struct, frozen=True):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[Token]
    tokens: list[Token]
    best_of_sequences: None = None


class GenerateResponse(Struct, frozen=True):
    generated_text: str
    details: Details | None


class ChatTokenizeResponse(Struct, frozen=True):
    tokenize_response: list[SimpleToken]
    templated_text: str


class ErrorResponse(Struct, frozen=True):
    error: str
    error_type: str


class Info(Struct, frozen=True):
    model_id: str
    model_sha: str | None
    max_concurrent_requests: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    model_pipeline_tag: str | None = "text-generation"
    max_best_of: int = 2
    validation_workers: int = 2
    max_client_batch_size: int = 4
    router: str = "tgi-peer (this is NOT text-generation-router)"
    version: str = "3.3.6-peer"
    sha: str | None = None
    docker_label: str | None = None


encode: Final = msgspec.json.Encoder().encode
decode_generate: Final = msgspec.json.Decoder(GenerateRequest).decode
decode_chat: Final = msgspec.json.Decoder(ChatRequest).decode


def stream_refusal(parameters: Parameters) -> str | None:
    """What TGI refuses of a stream before it looks at anything else."""
    if (parameters.best_of or 1) != 1:
        return "`best_of` != 1 is not supported when streaming tokens"
    if parameters.decoder_input_details:
        return "`decoder_input_details` == true is not supported when streaming tokens"
    return None


def refusal(asked: GenerateRequest, input_length: int, options: PeerOptions) -> str | None:
    """Why TGI would refuse the request, in its words and its order; None where it would not."""
    wanted = asked.parameters
    checks = (
        (wanted.temperature is not None and wanted.temperature <= 0, "`temperature` must be strictly positive"),
        (
            wanted.repetition_penalty is not None and wanted.repetition_penalty <= 0,
            "`repetition_penalty` must be strictly positive",
        ),
        (
            not -2 <= (wanted.frequency_penalty or 0.0) <= 2,
            "`frequency_penalty` must be >= -2.0 and <= 2.0",
        ),
        (not _inside(wanted.top_p), "`top_p` must be > 0.0 and < 1.0"),
        (not _inside(wanted.typical_p), "`typical_p` must be > 0.0 and < 1.0"),
        (wanted.top_k is not None and wanted.top_k <= 0, "`top_k` must be strictly positive"),
        (wanted.max_new_tokens == 0, "`max_new_tokens` must be strictly positive"),
        (
            len(wanted.stop) > options.max_stop_sequences,
            f"`stop` supports up to {options.max_stop_sequences} stop sequences. Given: {len(wanted.stop)}",
        ),
        (not asked.inputs, "`inputs` cannot be empty"),
    )
    for refused, message in checks:
        if refused:
            return message
    new_tokens = min(_new_tokens(wanted, input_length, options), ROUND_TOKENS)
    if input_length + new_tokens > options.max_total_tokens:
        return (
            f"`inputs` tokens + `max_new_tokens` must be <= {options.max_total_tokens}. "
            f"Given: {input_length} `inputs` tokens and {new_tokens} `max_new_tokens`"
        )
    if input_length > options.input_tokens_max:
        return f"`inputs` must have less than {options.input_tokens_max} tokens. Given: {input_length}"
    return None


def tokens_limit(wanted: Parameters, input_length: int, options: PeerOptions) -> int:
    """How many tokens TGI makes at most: whole rounds, as long as each finds room in the context."""
    new_tokens = _new_tokens(wanted, input_length, options)
    round_tokens = min(new_tokens, ROUND_TOKENS)
    limit = round_tokens
    while limit < new_tokens and input_length + limit + round_tokens <= options.max_total_tokens:
        limit += round_tokens
    return limit


def _new_tokens(wanted: Parameters, input_length: int, options: PeerOptions) -> int:
    if wanted.max_new_tokens is not None:
        return wanted.max_new_tokens
    return max(options.max_total_tokens - input_length, 0)


def _inside(value: float | None) -> bool:
    return value is None or 0.0 < value < 1.0
