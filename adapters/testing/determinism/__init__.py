"""Proof that the same task gives the same bytes, whichever replica serves it and whatever else it serves.

`python -m adapters.testing.determinism --engine llamacpp` runs it; `examine` does from a program, with any adapter.
"""

from adapters.testing.determinism.suite import Report, examine
from adapters.testing.determinism.summary import summary, totals
from adapters.testing.determinism.tasks import PLAN_DEFAULT, PLAN_FULL, Plan

__all__ = ["PLAN_DEFAULT", "PLAN_FULL", "Plan", "Report", "examine", "summary", "totals"]
