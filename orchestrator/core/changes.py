"""What changed in a step of what is kept, where no command tells of it."""

from orchestrator.core.residency import SessionKey


class Changes:
    """Subjects whose records a step changed; `journal.records` adds those that commands tell of.

    Dicts for their order; they are emptied when the next step begins, so that they are bounded by one step.
    """

    __slots__ = ("any", "pools", "sessions", "tasks")

    def __init__(self) -> None:
        self.any = False
        self.tasks: dict[str, None] = {}
        self.sessions: dict[SessionKey, None] = {}
        self.pools: dict[str, None] = {}

    def task(self, task_id: str) -> None:
        """Something about a task changed."""
        self.any = True
        self.tasks[task_id] = None

    def session(self, key: SessionKey) -> None:
        """A session is closing or gone."""
        self.any = True
        self.sessions[key] = None

    def pool(self, pool_id: str) -> None:
        """Something about a managed pool changed."""
        self.any = True
        self.pools[pool_id] = None

    def clear(self) -> None:
        """Begin a step."""
        self.any = False
        self.tasks.clear()
        self.sessions.clear()
        self.pools.clear()
