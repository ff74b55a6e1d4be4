"""Which cases run with which engine, and which do not apply."""

from functools import cache

from adapters.testing.conformance.cases import Case
from adapters.testing.conformance.dialect import Dialect
from adapters.testing.conformance.engines import DIALECTS, SUBJECTS
from adapters.testing.conformance.runner import BEHAVIOUR_CASES, WIRE_CASES
from adapters.testing.conformance.stage import WireStage
from adapters.testing.conformance.subject import Bench, Subject


@cache
def subject(name: str) -> Subject:
    """Made once: finding an engine takes time."""
    return SUBJECTS[name]()


def dialect(name: str) -> Dialect:
    return DIALECTS[name]()


def wire_case(name: str) -> Case[WireStage]:
    return next(case for case in WIRE_CASES if case.name == name)


def behaviour_case(name: str) -> Case[Bench]:
    return next(case for case in BEHAVIOUR_CASES if case.name == name)
