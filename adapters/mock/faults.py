"""What the mock engine does wrong, and when."""

from typing import Final

from msgspec import Struct

#: Last words from which `adapters.faults` tells an exhausted GPU from an exhausted host.
VRAM_OOM: Final = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB: cudaMalloc failed: out of memory"
HOST_OOM: Final = "terminate called after throwing an instance of 'std::bad_alloc'"


class MockFaults(Struct, frozen=True):
    """Delays in milliseconds, and faults; `…_after` counts the tokens of one generation before the fault.

    `stall_after`: silence on an open connection. `truncate_after`: the stream ends in order, but for its last frame.
    `garbage_after`: a frame that is no JSON. `miscount_after`: the count of tokens runs backwards. `die_after`: the
    engine dies as if killed. `fail_at_launch`: it never comes up. In both cases `last_words` is what it said last.
    `lie_in_health`: dead, it still answers its health check. `keep_slots`: what is broken off goes on in its slot.
    """

    launch_ms: float = 0
    first_token_ms: float = 0
    token_ms: float = 0
    stall_after: int | None = None
    truncate_after: int | None = None
    garbage_after: int | None = None
    miscount_after: int | None = None
    die_after: int | None = None
    fail_at_launch: bool = False
    last_words: str = ""
    lie_in_health: bool = False
    keep_slots: bool = False
