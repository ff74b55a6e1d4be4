"""Tenants as a metric's label: there may be any number of them, and of series there must not."""

from typing import Final

#: Values of the label `tenant`, with the one that takes the rest.
TENANT_LABELS_MAX: Final = 256
OTHER: Final = "other"


class TenantLabels:
    """The first tenants are named, so that series do not come and go; all others share a label."""

    def __init__(self) -> None:
        self._named: dict[str, None] = {}

    def of(self, tenant: str) -> str:
        """The label of a tenant."""
        if tenant not in self._named and len(self._named) < TENANT_LABELS_MAX - 1:
            self._named[tenant] = None
        return tenant if tenant in self._named else OTHER

    def shares(self, shares: list[tuple[str, str, str, float]]) -> dict[tuple[str, str], float]:
        """Shares (set, class, tenant, share) by the labels tenant and class: the mean over sets that served any."""
        served = [line for line in shares if line[3] > 0]
        sets = len({set_id for set_id, *_ in served})
        summed: dict[tuple[str, str], float] = {}
        for _, priority, tenant, share in served:
            key = (self.of(tenant), priority)
            summed[key] = summed.get(key, 0.0) + share / sets
        return summed
