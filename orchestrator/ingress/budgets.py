"""What is left of a session's budgets, as headers of an admission (ORCH-3099, OC-CORE-1024)."""

from contracts.api import Admission
from orchestrator.ingress.http import Headers


def budget_headers(admission: Admission) -> Headers:
    """One header for each budget that is bounded."""
    headers: Headers = []
    if admission.tokens_budget_remaining is not None:
        headers.append((b"x-budget-tokens-remaining", b"%d" % admission.tokens_budget_remaining))
    if admission.time_budget_remaining_ms is not None:
        headers.append((b"x-budget-time-remaining-ms", b"%d" % admission.time_budget_remaining_ms))
    if admission.cost_budget_remaining is not None:
        headers.append((b"x-budget-cost-remaining", f"{admission.cost_budget_remaining:.6f}".encode()))
    return headers
