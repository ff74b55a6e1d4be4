"""The checks between a submission and its place in the queue, cheapest first; none of them changes anything.

Each answers with the envelope that the client will see. What passes all of them is charged in one
go when it is admitted, so a refused task uses up nothing (ORCH-3077).
"""

from typing import Final

from contracts.errors import ErrorInfo
from contracts.tasks import RESULT_BYTES_MAX, TaskInfo
from orchestrator.core import refusals
from orchestrator.core.records import TaskRecord, ceil_ms
from orchestrator.core.refusals import invalid, limited
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State

#: What an engine may put around an input and between query and document: start, end, separator, end.
SPECIAL_TOKENS_MAX: Final = 4
#: By how much, in percent, the text of an embedding may be shorter than that of another one.
RESULT_SLACK_PERCENT: Final = 20


def check_service(state: State) -> ErrorInfo | None:
    """Refuse everything while the service is about to end, or could not keep what it accepts (ORCH-3051)."""
    if state.is_ending:
        return refusals.restarting()
    return refusals.not_durable(state.journal_down) if state.journal_down else None


def check_token_budget(task: TaskInfo) -> ErrorInfo | None:
    """Refuse what cannot fit, however short its prompt is (ORCH-3015, OC-CORE-1021)."""
    if task.output_max_tokens >= task.ctx:
        return invalid(f"max_tokens {task.max_tokens} leaves no room for a prompt in ctx {task.ctx}", task.engine)
    return None


def check_result_size(home: ReplicaSet, task: TaskInfo) -> ErrorInfo | None:
    """Refuse an embedding whose numbers would surely be too many to keep, judged by the self-test's."""
    if task.workload != "embedding" or home.pin is None:
        return None
    least_bytes = task.items * home.pin.result_bytes * (100 - RESULT_SLACK_PERCENT) // 100
    if least_bytes <= RESULT_BYTES_MAX:
        return None
    fit = RESULT_BYTES_MAX // home.pin.result_bytes
    return invalid(
        f"the embeddings of {task.items} inputs are over the limit of {RESULT_BYTES_MAX} bytes; "
        f"send at most {fit} inputs in a task",
        task.engine,
    )


def must_be_measured(task: TaskInfo) -> bool:
    """Whether only counting the prompt's tokens can tell if it fits.

    A prompt has at most one token per byte and one more at its beginning. Templated prompts grow
    by an amount that only the engine knows. Of several inputs each has to fit by itself.
    """
    if not task.decodes:
        return task.longest_input_bytes + SPECIAL_TOKENS_MAX > task.ctx
    return task.templated or task.max_tokens + task.prompt_bytes + 1 > task.ctx


def check_measured(task: TaskInfo, prompt_tokens: int) -> ErrorInfo | None:
    """Refuse a prompt that was counted and does not fit (ORCH-3015, OC-CORE-1021)."""
    if not task.decodes and prompt_tokens > task.ctx:
        return invalid(f"the longest input has {prompt_tokens} tokens and ctx is {task.ctx}; shorten it", task.engine)
    if prompt_tokens + task.output_max_tokens > task.ctx:
        return invalid(
            f"prompt of {prompt_tokens} tokens + max_tokens {task.max_tokens}"
            f" = {prompt_tokens + task.max_tokens} is over ctx {task.ctx}",
            task.engine,
        )
    return None


def check_limits(state: State, record: TaskRecord) -> ErrorInfo | None:
    """Budgets, rates, quotas and breakers, in this order (ORCH-3006, 3036, 3040, 3077, 3099, OC-CORE-1023)."""
    now_ns, task, home, quota = state.now_ns, record.task, record.home, record.quota
    sessions = state.sessions
    session = sessions.find(now_ns, task.tenant, task.session_id)
    over = sessions.refusal(session, record.asked_tokens)
    if over is not None:
        left_ns = 0 if session is None else sessions.ttl_left_ns(now_ns, session)
        return limited(home, f"a budget is used up: {over}", ceil_ms(left_ns), retriable=left_ns > 0)
    client = state.quotas.client(task.client)
    if client is not None and (wait_ns := client.wait_ns(now_ns)):
        return limited(home, f"over the rate of client {task.client or 'without a key'}", ceil_ms(wait_ns))
    rate = home.class_rates.get(task.priority)
    if rate is not None and (wait_ns := rate.wait_ns(now_ns)):
        return limited(home, f"over the rate of class {task.priority}", ceil_ms(wait_ns))
    wait_ns, bound = quota.wait_ns(now_ns, record.asked_tokens)
    if wait_ns:
        return limited(home, f"over {bound}", ceil_ms(wait_ns))
    if not quota.fits(record.kv_bytes):
        return invalid(
            f"the task may need {record.kv_bytes} bytes of KV, tenant {task.tenant} has {quota.policy.kv_mb} MB;"
            " ask for a smaller max_tokens",
            task.engine,
        )
    if home.breakers:
        wait_ns = home.breakers.wait_ns(task.priority, now_ns)
        if wait_ns:
            return limited(
                home, f"class {task.priority} fails its objective at present; load is shed", ceil_ms(wait_ns)
            )
    return None


def charge(state: State, record: TaskRecord) -> None:
    """An admitted task is charged to its client, class, tenant and session."""
    now_ns, task, home = state.now_ns, record.task, record.home
    client = state.quotas.client(task.client)
    if client is not None:
        client.take(now_ns)
    rate = home.class_rates.get(task.priority)
    if rate is not None:
        rate.take(now_ns)
    record.quota.admit(now_ns, record.asked_tokens)
    record.session = state.sessions.open(now_ns, task.tenant, task.session_id)
    state.sessions.reserve(record.session, record.asked_tokens)
    if home.breakers:
        home.breakers.admitted(task.priority, now_ns)
