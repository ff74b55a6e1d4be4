"""The conformance suite that every engine adapter has to pass. docs/adapters.md says how to run it on another one."""

from adapters.testing.conformance.dialect import Dialect, End, Piece, Trouble
from adapters.testing.conformance.report import Result, table
from adapters.testing.conformance.runner import BEHAVIOUR_CASES, WIRE_CASES, run_behaviour, run_wire
from adapters.testing.conformance.subject import Bench, Subject

__all__ = [
    "BEHAVIOUR_CASES",
    "WIRE_CASES",
    "Bench",
    "Dialect",
    "End",
    "Piece",
    "Result",
    "Subject",
    "Trouble",
    "run_behaviour",
    "run_wire",
    "table",
]
