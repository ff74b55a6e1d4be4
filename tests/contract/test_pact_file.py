"""The committed pacts are what the interactions say, and both planes over a fake gateway keep them."""

import hashlib
from collections.abc import Iterator

import msgspec
import pytest

from contracts import openapi_control_examples as control
from contracts import openapi_examples as ex
from contracts.api import Admission, End, TaskStatus
from contracts.engine import GenerateRequest
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import Tokens
from contracts.tasks import TaskInfo
from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import ALL_ROLES, IngressSettings, Key
from tests.contract.interactions import DOWN_MODEL, KEY, MODEL, SMALL_QUEUE_MODEL
from tests.contract.interactions_control import POOL
from tests.contract.pact_file import PACT_FILES, PactFile
from tests.contract.provider import HttpStates, verify
from tests.contract.serving import serving
from tests.unit.ingress.fake_gateway import FakeGateway

QUEUE_CAPACITY = 2


class FakeCluster(FakeGateway):
    """Test double with the pools that the provider states need: short tasks end at once, long ones never."""

    def __init__(self) -> None:
        super().__init__()
        self.admission["on_time_probability"] = 0.97
        replica = msgspec.structs.replace(control.REPLICA_READY, replica_id=f"{POOL}-0", model_ref=SMALL_QUEUE_MODEL)
        self.healths[POOL] = msgspec.structs.replace(
            control.HEALTHY, pool_id=POOL, model_ref=SMALL_QUEUE_MODEL, replicas=[replica]
        )

    async def submit(self, task: TaskInfo, request: GenerateRequest) -> Admission:
        if task.task_id in self.tasks:
            return await super().submit(task, request)
        if task.model_ref == DOWN_MODEL:
            raise OrchError(ErrorInfo("POOL_UNAVAILABLE", "Down.", task.engine, "down", True, 5000))
        if task.model_ref not in (MODEL, SMALL_QUEUE_MODEL):
            raise OrchError(ErrorInfo("INVALID_PARAMS", "Unknown model.", task.engine, retriable=False))
        if task.ctx > 2048:
            raise OrchError(ErrorInfo("INVALID_PARAMS", "Too much context.", task.engine, retriable=False))
        if task.deadline_ms == 1:
            late = ErrorInfo("DEADLINE_UNMET", "Too late.", task.engine, retriable=False, earliest_deadline_ms=5900)
            raise OrchError(late)
        if task.model_ref == SMALL_QUEUE_MODEL:
            self._make_room(task)
        admission = await super().submit(task, request)
        if task.max_tokens <= 64 and not self._small(task):
            self.feed(task.task_id, ex.STARTED, Tokens(0, [" A", " queue"]), End(2, 35, "stop", 9))
        elif len(self._waiting(task)) <= 1:
            self.feed(task.task_id, ex.STARTED)
        return admission

    def _small(self, task: TaskInfo) -> bool:
        return task.model_ref == SMALL_QUEUE_MODEL

    def _waiting(self, task: TaskInfo) -> list[str]:
        """Live tasks of the task's model, the running one included."""
        return [
            task_id
            for task_id, known in self.tasks.items()
            if known.info.model_ref == task.model_ref and known.outcome is None
        ]

    def _make_room(self, task: TaskInfo) -> None:
        live = self._waiting(task)
        if len(live) <= QUEUE_CAPACITY:
            return
        if task.priority == "interactive":
            raise OrchError(ErrorInfo("ADMISSION_REJECT", "Full.", task.engine, "small", True, 1500, "reject"))
        dropped = ErrorInfo("QUEUE_FULL_DROP_LRU", "Dropped.", task.engine, "small", True, 900, "drop-lru")
        self.feed(live[1], dropped)

    async def status(self, task_id: str, tenant: str) -> TaskStatus:
        status = await super().status(task_id, tenant)
        if status.error and status.error.code == "QUEUE_FULL_DROP_LRU":
            return TaskStatus(
                task_id, "dropped", status.engine, status.model_ref, status.priority, 0, 0, 0, 0, error=status.error
            )
        return status


@pytest.fixture
def base_url() -> Iterator[str]:
    """The service over the fake cluster, on a free port."""
    settings = IngressSettings(keys=(Key("pact", "pact", hashlib.sha256(KEY.encode()).hexdigest(), ALL_ROLES),))
    app = build_app(FakeCluster(), settings)
    with serving(app) as url:
        yield url


@pytest.mark.parametrize("pact_file", PACT_FILES, ids=lambda pact_file: pact_file.provider)
def test_the_committed_pact_is_up_to_date(pact_file: PactFile) -> None:
    again = "run `python -m tests.contract.pact_file`"
    assert pact_file.path.read_text(encoding="utf-8") == pact_file.render(), again
    assert pact_file.render() == pact_file.render()


@pytest.mark.req(
    "ORCH-2001",
    "ORCH-2002",
    "ORCH-2003",
    "ORCH-2004",
    "ORCH-2005",
    "ORCH-2006",
    "ORCH-2007",
    "ORCH-2103",
    "ORCH-2104",
    "ORCH-3035",
    "ORCH-3095",
    "OC-CTRL-2052",
)
# The verifier does not close the socket on which it serves the state handlers.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_service_keeps_the_pacts(base_url: str) -> None:
    states = HttpStates(base_url)
    try:
        verify(base_url, states.handlers(), 5000)
    finally:
        states.close()
