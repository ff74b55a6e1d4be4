"""A discrete-event world around the scheduler's core: the same decisions, without Ray and without waiting."""
