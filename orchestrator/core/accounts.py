"""What tenants, clients and classes have used of their rates, after a recovery (ORCH-3006, ORCH-3077)."""

from contracts.journal import KeptAccount
from orchestrator.core.journal import class_account
from orchestrator.core.quotas import Gcra
from orchestrator.core.state import State


def restore(state: State, kept: KeptAccount) -> None:
    """Let buckets fill up from where they were; those that are full by now, or not configured, are left out."""
    now_ns = state.now_ns
    if kept.requests_full_ns <= now_ns and kept.tokens_full_ns <= now_ns:
        return
    if kept.kind == "tenant":
        quota = state.quotas.tenant(kept.name)
        if quota is not None:
            _fill(quota.rate, kept.requests_full_ns)
            _fill(quota.tokens, kept.tokens_full_ns)
    elif kept.kind == "client":
        _fill(state.quotas.client(kept.name), kept.requests_full_ns)
    else:
        for home in state.sets:
            for priority, rate in home.class_rates.items():
                if class_account(home.policy.set_id, priority) == kept.name:
                    _fill(rate, kept.requests_full_ns)


def _fill(bucket: Gcra | None, full_ns: int) -> None:
    if bucket is not None:
        bucket.full_ns = full_ns
