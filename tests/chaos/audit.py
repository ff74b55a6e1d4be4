"""The audit: from what clients saw, and what the service told at the end, to what is wrong. Pure.

Each check gives the findings, one line each; a run is good when there are none.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from tests.chaos.history import TERMINAL, Reference, TaskHistory
from tests.chaos.plan import TaskPlan

#: Codes with which an accepted task may fail here, and why each is a failure for lack of time: deadlines are
#: generous, so that nothing else is an excuse.
ALLOWED_FAILURES: Final[Mapping[str, str]] = {
    "DEADLINE_UNMET": "its deadline passed before it could be made again",
    "POOL_UNAVAILABLE": "no replica came back before its deadline",
}
FAILED_SHARE_MAX: Final = 0.01


class Check(Struct, frozen=True):
    """One line of the audit: what must hold, what was counted, and what speaks against it."""

    name: str
    counted: str
    findings: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.findings


def audit(
    plans: Sequence[TaskPlan], histories: Sequence[TaskHistory], reference: Mapping[int, Reference]
) -> list[Check]:
    """All checks of a run's tasks. `reference` is by recipe."""
    accepted = [each for each in histories if each.was_admitted]
    by_index = {plan.index: plan for plan in plans}

    def check(name: str, counted: str, findings: Iterator[str]) -> Check:
        return Check(name, counted, tuple(findings))

    finished = sum(each.final_state == "finished" for each in accepted)
    failed = [each for each in accepted if each.final_state in ("failed", "dropped")]
    canceled = sum(each.final_state == "canceled" for each in accepted)
    ends = f"{len(accepted)} accepted = {finished} finished + {canceled} canceled + {len(failed)} failed"
    tokens = sum(len(each.arrivals) for each in accepted)
    # What is lost is told once, and not by every other check as well.
    told = [each for each in accepted if each.final_status == 200]
    attaches = sum(max(0, len(each.attaches) - 1) for each in accepted)
    compared = sum(len(each.stored) for each in accepted)
    bound = f"{len(failed)} of {len(accepted)} (bound 1 %)"
    return [
        check("every task was run by its client", f"{len(histories)} of {len(plans)}", _not_run(plans, histories)),
        check("accepted tasks have an outcome", ends, _lost(accepted)),
        check("no task refused for good", f"{len(histories) - len(accepted)} never accepted", _never(histories)),
        check("indices without gap or repetition", f"{tokens} tokens, {attaches} re-attaches", _misnumbered(accepted)),
        check("same bytes as undisturbed, streamed", f"{tokens} tokens", _different(accepted, by_index, reference)),
        check("same bytes as undisturbed, stored", f"{compared} tokens", _stored(told, by_index, reference)),
        check("clients and service agree on the end", f"{len(told)} tasks", _disagreed(told)),
        check("failures are typed and for lack of time", bound, _bad_failures(failed)),
        check("few fail", bound, _too_many(failed, accepted)),
        check("cancels end as canceled, or finished first", f"{canceled} canceled", _cancels(told)),
        check("clients saw nothing odd", f"{len(histories)} clients", _problems(histories)),
    ]


def _name(each: TaskHistory) -> str:
    return f"task {each.index} ({each.task_id})"


def _not_run(plans: Sequence[TaskPlan], histories: Sequence[TaskHistory]) -> Iterator[str]:
    seen = {each.index for each in histories}
    for plan in plans:
        if plan.index not in seen:
            yield f"task {plan.index} has no history"


def _lost(accepted: Sequence[TaskHistory]) -> Iterator[str]:
    for each in accepted:
        if each.final_status != 200:
            yield f"{_name(each)}: lost, its status is answered with {each.final_status or 'nothing'}"
        elif each.final_state not in TERMINAL:
            yield f"{_name(each)}: never ended, it is {each.final_state}"
        elif not each.finish and not each.code:
            yield f"{_name(each)}: {each.final_state}, but its client was never told"


def _never(histories: Sequence[TaskHistory]) -> Iterator[str]:
    for each in histories:
        if not each.was_admitted:
            yield f"{_name(each)}: never accepted, last answer {each.posts[-1:]}"


def _misnumbered(accepted: Sequence[TaskHistory]) -> Iterator[str]:
    """Each connection begins after what it asked for and counts up by one; together they tell each index once."""
    for each in accepted:
        expected = {number: attach.after + 1 for number, attach in enumerate(each.attaches)}
        known: set[int] = set()
        for number, i, _, _ in each.arrivals:
            if i != expected.get(number, 0):
                yield f"{_name(each)}: connection {number} told token {i} where {expected.get(number, 0)} was due"
            if i in known:
                yield f"{_name(each)}: token {i} was told twice"
            known.add(i)
            expected[number] = i + 1
        if missing := sorted(set(range(max(known, default=-1) + 1)) - known):
            yield f"{_name(each)}: tokens {missing[:5]} are missing"


def _different(
    accepted: Sequence[TaskHistory], plans: Mapping[int, TaskPlan], reference: Mapping[int, Reference]
) -> Iterator[str]:
    for each in accepted:
        told = sorted((i, text) for _, i, text, _ in each.arrivals)
        yield from _compare(each, told, each.finish, reference[plans[each.index].recipe])


def _stored(
    accepted: Sequence[TaskHistory], plans: Mapping[int, TaskPlan], reference: Mapping[int, Reference]
) -> Iterator[str]:
    for each in accepted:
        yield from _compare(each, each.stored, each.stored_end, reference[plans[each.index].recipe])
        # What was canceled may have lost its tokens with a replica, and then that is told.
        told = (each.finish, "NOT_FOUND") if each.finish == "canceled" else (each.finish,)
        if each.finish and each.stored_end not in told:
            yield f"{_name(each)}: the stored stream ends in {each.stored_end or 'nothing'}, not in {each.finish}"


def _compare(each: TaskHistory, told: Sequence[tuple[int, str]], finish: str, good: Reference) -> Iterator[str]:
    """Each token as in the reference; whole, and ended alike, where the task was neither cut short nor failed."""
    for i, text in told:
        right = good.tokens[i] if 0 <= i < len(good.tokens) else None
        if text != right:
            yield f"{_name(each)}: token {i} is {text!r}, undisturbed {right!r}"
            return
    if finish in ("stop", "length"):
        if len(told) != len(good.tokens):
            yield f"{_name(each)}: {len(told)} tokens, undisturbed {len(good.tokens)}"
        if finish != good.finish:
            yield f"{_name(each)}: ended by {finish}, undisturbed by {good.finish}"


def _disagreed(accepted: Sequence[TaskHistory]) -> Iterator[str]:
    """What the stream said was the end is what the status says: one outcome, told alike everywhere."""
    for each in accepted:
        if each.finish and each.final_finish != each.finish:
            yield f"{_name(each)}: the stream ended by {each.finish}, the status says {each.final_finish or 'nothing'}"
        if each.finish and each.final_state not in ("finished", "canceled"):
            yield f"{_name(each)}: the stream ended by {each.finish}, the status says {each.final_state or 'nothing'}"
        if each.code and each.final_code != each.code:
            yield f"{_name(each)}: the stream failed with {each.code}, the status says {each.final_code or 'nothing'}"


def _bad_failures(failed: Sequence[TaskHistory]) -> Iterator[str]:
    for each in failed:
        if each.final_code not in ALLOWED_FAILURES:
            yield f"{_name(each)}: {each.final_code or 'no code'}: {each.final_message}"


def _too_many(failed: Sequence[TaskHistory], accepted: Sequence[TaskHistory]) -> Iterator[str]:
    if len(failed) > FAILED_SHARE_MAX * len(accepted):
        yield f"{len(failed)} of {len(accepted)} failed"


def _cancels(accepted: Sequence[TaskHistory]) -> Iterator[str]:
    for each in accepted:
        if each.cancel_taken and each.final_state not in ("canceled", "finished"):
            yield f"{_name(each)}: canceled, but ended as {each.final_state}"
        if each.final_state == "canceled" and each.cancel_sent_s < 0:
            yield f"{_name(each)}: canceled, but nobody asked for that"
        if each.cancel_sent_s >= 0 and not each.cancel_taken and not each.finish:
            yield f"{_name(each)}: its cancel was never answered"


def _problems(histories: Sequence[TaskHistory]) -> Iterator[str]:
    for each in histories:
        yield from (f"{_name(each)}: {problem}" for problem in each.problems)
