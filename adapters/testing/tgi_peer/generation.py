"""One generation of the peer: which tokens it makes, and when TGI's stopping criteria end it."""

import re
from typing import Final

from adapters.testing.fake_text import start_state
from adapters.testing.tgi_peer.bodies import (
    FinishReason,
    GenerateRequest,
    StreamDetails,
    StreamResponse,
    Token,
    tokens_limit,
)
from adapters.testing.tgi_peer.options import PeerOptions
from adapters.testing.tgi_peer.vocabulary import END_ID, Detokenizer, drawn, is_special, whole_text

#: A word of the prompt that says after how many tokens the model ends its text.
_LENGTH: Final = re.compile(r"\bfake-length=([1-9]\d{0,8})\b")
_OUTPUT_CHARS_MAX: Final = 300
_OUTPUT_CHARS_KEPT: Final = 200


class Generation:
    """Makes a token a call of `step`; over when `finish_reason` is set."""

    def __init__(self, asked: GenerateRequest, input_length: int, options: PeerOptions) -> None:
        self.asked = asked
        self.input_length = input_length
        self.finish_reason: FinishReason | None = None
        self.tokens: list[Token] = []
        wanted = asked.parameters
        self.seed = wanted.seed if wanted.sampled else None
        self._limit = tokens_limit(wanted, input_length, options)
        self._state = start_state(asked.inputs, self.seed or 0, wanted.shaping if wanted.sampled else "greedy")
        told = _LENGTH.search(asked.inputs)
        self._length = int(told[1]) if told else None
        self._units = 0
        self._pending: list[int] = []
        self._detokenizer = Detokenizer()
        self._stops = [re.compile(f"{re.escape(stop)}$") for stop in wanted.stop]
        self._output = ""

    @property
    def generated_text(self) -> str:
        text = whole_text([token.id for token in self.tokens])
        return self.asked.inputs + text if self.asked.parameters.return_full_text else text

    def step(self) -> StreamResponse:
        """The next token as a frame, the last one with the whole text."""
        id_ = self._next_id()
        token = Token(id_, self._detokenizer.text(id_), -(id_ % 97 + 1) / 64, is_special(id_))
        self.tokens.append(token)
        self.finish_reason = self._stopped(token)
        if self.finish_reason is None:
            return StreamResponse(len(self.tokens), token, None, None)
        details = StreamDetails(self.finish_reason, len(self.tokens), self.seed, self.input_length)
        return StreamResponse(
            len(self.tokens), token, self.generated_text, details if self.asked.parameters.details else None
        )

    def _next_id(self) -> int:
        if self._length is not None and len(self.tokens) + 1 >= self._length:
            return END_ID
        if not self._pending:
            self._pending = list(drawn(self._state, self._units))
            self._units += 1
        return self._pending.pop(0)

    def _stopped(self, token: Token) -> FinishReason | None:
        """In TGI's order. A stop string counts only where the output ends with it, special tokens included."""
        if len(self.tokens) >= self._limit:
            return "length"
        if token.id == END_ID:
            return "eos_token"
        self._output += token.text
        if len(self._output) > _OUTPUT_CHARS_MAX:
            self._output = self._output[-_OUTPUT_CHARS_KEPT:]
        return "stop_sequence" if any(stop.search(self._output) for stop in self._stops) else None
