"""Prompts as `/generate_stream` has to get them, and how many tokens they are.

That route always adds the tokenizer's special tokens. A chat template writes the start token itself, which would then
stand there twice, unlike on TGI's own chat route: so it is taken off the front of what the template made.
"""

from adapters.http_client import EngineClient
from adapters.tgi import calls
from adapters.tgi.protocol import Templated, invalid
from contracts.api import Message
from contracts.engine import GenerateRequest


class Prompts:
    """The prompts of one running engine."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._start: str | None = None

    async def text(self, request: GenerateRequest) -> str:
        """The prompt of a completion. Raises EngineError (INVALID_PARAMS) for other workloads and no prompt."""
        if request.workload != "completion" or request.inputs is not None:
            raise invalid(f"this pool serves completions, not {request.workload}")
        if request.messages is not None:
            return await self._templated(request.messages)
        if not request.prompt:
            raise invalid("this engine cannot begin a text out of nothing; give a prompt")
        return request.prompt

    async def count(self, text: str) -> int:
        """How many tokens the engine makes of a prompt, those that it adds included."""
        return len(await calls.tokenize(self._client, text))

    async def _templated(self, messages: list[Message]) -> str:
        chat = await calls.chat_tokenize(self._client, messages)
        if self._start is None:
            self._start = await self._doubled_start(chat)
        return chat.templated_text.removeprefix(self._start)

    async def _doubled_start(self, chat: Templated) -> str:
        """What the template begins with and the tokenizer adds once more; empty where there is no such thing."""
        bare = [token.id for token in chat.tokenize_response]
        added = [token.id for token in await calls.tokenize(self._client, chat.templated_text)]
        return chat.tokenize_response[0].text if bare and added == [bare[0], *bare] else ""
