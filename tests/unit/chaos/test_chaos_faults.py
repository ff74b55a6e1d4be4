"""Faults as they are done: what could not be done is told as such."""

from typing import cast

import pytest

from tests.chaos.cluster import ChaosCluster
from tests.chaos.faults import Faults
from tests.chaos.plan import FaultPlan
from tests.chaos.watch import Watch

#: One more than Linux ever gives.
DEAD = 2**22 + 1


class Late:
    """A watch that looked before its processes died."""

    def alive(self, _kind: str) -> dict[int, str]:
        return {DEAD: "head"}

    def is_whole(self, _kind: str) -> bool:
        return True


@pytest.mark.req("ORCH-3051")
@pytest.mark.parametrize("kind", ["kill engine", "kill node", "end replica", "stop scheduler", "disk full"])
def test_who_died_before_its_turn_is_nobodys_victim(kind: str) -> None:
    faults = Faults(cast(ChaosCluster, None), cast(Watch, Late()), lambda: 7.0)
    faults._do(FaultPlan(7.0, kind, 0.0, 1000))
    (record,) = faults.records
    assert record.note.startswith("not done: ProcessLookupError")
    assert not record.victim
