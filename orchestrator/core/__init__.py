"""The scheduler's decisions: pure, synchronous, without clock, I/O or Ray."""
