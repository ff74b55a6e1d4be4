"""What outlives the scheduler: the records it keeps of tasks, sessions, accounts and pools (ORCH-3051).

A record is the whole of what is known of its subject, so a later one replaces an earlier one, and a journal is no
longer than what is alive. Instants (`_ns`) are those of the clock that the scheduler was stepped with; whoever
keeps the records moves them to the clock of the next one (`moved`).
"""

from msgspec import Struct
from msgspec.structs import replace

from contracts.decisions import Admit, Start, StopReason
from contracts.tasks import Outcome, ReplicaInfo, TaskInfo


class KeptTask(Struct, frozen=True, tag=True, gc=False):
    """An admitted task. `order` is its arrival number, `told` what was answered to its submission.

    From the first start on: `attempt`, `start` and `replica` are those of the last attempt. The first `resume_tokens`
    tokens have the rolling digest `resume_digest`. `losses` counts attempts that died with their replica, `crashes`
    those of them whose engine crashed. `over_attempt` is the last attempt that is known to be over, so that one after
    it may still run; `lost_attempt` the last one that died; `is_failover`: the present one took its place.
    `stop_reason` is why the last attempt was to stop, until it has. `skipped` numbers of attempts were not its own, but
    those of an earlier task of its id. Once `outcome` is there, it ended at `ended_ns`, leaving `transcript_bytes`.
    """

    task: TaskInfo
    order: int
    told: Admit
    admitted_ns: int
    deadline_ns: int
    prompt_tokens: int
    output_tokens: int
    attempt: int = 0
    start: Start | None = None
    replica: ReplicaInfo | None = None
    started_ns: int = 0
    queue_time_ns: int | None = None
    resume_tokens: int = 0
    resume_digest: int = 0
    preemptions: int = 0
    moves: int = 0
    losses: int = 0
    crashes: int = 0
    outcome: Outcome | None = None
    ended_ns: int = 0
    transcript_bytes: int = 0
    over_attempt: int = 0
    lost_attempt: int = 0
    stop_reason: StopReason | None = None
    is_failover: bool = False
    skipped: int = 0


class ForgottenTask(Struct, frozen=True, tag=True, gc=False):
    """Nothing of a task is kept any more."""

    task_id: str


class KeptSession(Struct, frozen=True, tag=True, gc=False):
    """What a session used up, without what its live tasks reserve; its life ends at `until_ns` unless used again.

    One that is `closing` ends with the last of its live tasks. One with live tasks lives on whatever `until_ns` says.
    """

    tenant: str
    session_id: str
    last_ns: int
    until_ns: int
    turns: int
    used_tokens: int
    used_ns: int
    used_micros: int
    closing: bool = False


class ForgottenSession(Struct, frozen=True, tag=True, gc=False):
    """A session was closed, has expired or had to make room."""

    tenant: str
    session_id: str


class KeptAccount(Struct, frozen=True, tag=True, gc=False):
    """The buckets of a tenant, a client or a class: when each is full again (0: it is, or there is none).

    `kind` is "tenant", "client" or "class"; the name of a class has its set's id and a blank before it.
    """

    kind: str
    name: str
    requests_full_ns: int
    tokens_full_ns: int = 0


class KeptReplica(Struct, frozen=True, gc=False):
    """A replica that is ordered, with the incarnation of its actor and where that stands."""

    replica_id: str
    incarnation: int
    node_id: str
    devices: tuple[int, ...]
    slots: int


class KeptGeneration(Struct, frozen=True, gc=False):
    """Replicas of a pool with another model than it serves: they finish what they have, or are a canary."""

    model_ref: str
    replicas: tuple[KeptReplica, ...]


class KeptPool(Struct, frozen=True, tag=True, gc=False):
    """A managed pool: the model it serves, how its replicas are numbered, and those it has.

    `configured_ref` is the model it was configured with, so that a change of the configuration shows. A `drained`
    pool that has replicas is being drained. `others` are beside the replicas that serve it.
    """

    pool_id: str
    model_ref: str
    desired: int
    drained: bool
    ordinal: int
    replicas: tuple[KeptReplica, ...]
    configured_ref: str = ""
    others: tuple[KeptGeneration, ...] = ()


Record = KeptTask | ForgottenTask | KeptSession | ForgottenSession | KeptAccount | KeptPool


class Kept(Struct, frozen=True, gc=False):
    """All that was kept when a scheduler ended: what the next one begins with. Tasks are in no order."""

    tasks: tuple[KeptTask, ...] = ()
    sessions: tuple[KeptSession, ...] = ()
    accounts: tuple[KeptAccount, ...] = ()
    pools: tuple[KeptPool, ...] = ()


def moved(kept: Kept, by_ns: int) -> Kept:
    """The same with every instant moved, to the clock of another boot. Instants may become negative."""
    if not by_ns:
        return kept
    return Kept(
        tuple([_moved_task(task, by_ns) for task in kept.tasks]),
        tuple([replace(each, last_ns=each.last_ns + by_ns, until_ns=each.until_ns + by_ns) for each in kept.sessions]),
        tuple([_moved_account(account, by_ns) for account in kept.accounts]),
        kept.pools,
    )


def _moved_task(task: KeptTask, by_ns: int) -> KeptTask:
    return replace(
        task,
        admitted_ns=task.admitted_ns + by_ns,
        deadline_ns=task.deadline_ns + by_ns,
        started_ns=task.started_ns + by_ns if task.attempt else 0,
        ended_ns=task.ended_ns + by_ns if task.outcome is not None else 0,
    )


def _moved_account(account: KeptAccount, by_ns: int) -> KeptAccount:
    return replace(
        account,
        requests_full_ns=account.requests_full_ns + by_ns if account.requests_full_ns else 0,
        tokens_full_ns=account.tokens_full_ns + by_ns if account.tokens_full_ns else 0,
    )
