"""An engine that is none: seeded text over a real socket, and faults on demand.

It is no engine of the public API: tests, simulations of shells and the conformance suite create it themselves.
"""

from adapters.mock.adapter import MockAdapter
from adapters.mock.faults import HOST_OOM, VRAM_OOM, MockFaults

__all__ = ["HOST_OOM", "VRAM_OOM", "MockAdapter", "MockFaults"]
