"""What can be wrong with a run."""


class BrokenPromiseError(Exception):
    """The scheduler broke its contract: answered twice or never, started what had ended, lost a task."""


class TraceError(ValueError):
    """A trace or an event log cannot be read; the message says where and why."""
