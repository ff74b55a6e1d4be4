"""Counting a prompt's tokens before its task is let in (ORCH-3015, OC-CORE-1021)."""

from msgspec.structs import replace

from contracts.engine import EngineAdapter, GenerateRequest
from orchestrator.core.admission import SPECIAL_TOKENS_MAX


async def count_prompt(adapter: EngineAdapter, request: GenerateRequest, ctx: int) -> int:
    """Tokens of the prompt, or of the longest of several inputs. Raises EngineError.

    Inputs with fewer bytes than `ctx` has room for fit whatever their tokens are, so only the others are counted.
    """
    if request.inputs is None:
        return await adapter.count_tokens(request)
    query_bytes = len((request.prompt or "").encode())
    longest = 0
    for text in request.inputs:
        if query_bytes + len(text.encode()) + SPECIAL_TOKENS_MAX > ctx:
            longest = max(longest, await adapter.count_tokens(replace(request, inputs=[text])))
    return longest
