"""A question that is asked again because its link broke has the answer that it would have had at first."""

import pytest

from contracts.errors import ErrorInfo
from contracts.messages import Cancel, CloseSession, Done, Failed
from orchestrator.cluster.questions import Questions

pytestmark = pytest.mark.req("ORCH-2005", "ORCH-3051")

NO_SUCH = ErrorInfo("NOT_FOUND", "no such session", retriable=False)
BUSY = ErrorInfo("ADMISSION_REJECT", "busy", retriable=True, policy_label="reject")


async def test_a_session_that_is_gone_when_it_is_closed_again_was_closed_the_first_time() -> None:
    questions = Questions()
    closing = questions.add(1, CloseSession(1, "s", "acme"), sent=True)
    questions.unlinked()
    assert questions.linked() == [CloseSession(1, "s", "acme")]
    questions.answered(1, Failed(1, NO_SUCH))
    assert await closing == Done(1)
    questions.drop(1)


@pytest.mark.parametrize(
    ("question", "error", "sent"),
    [
        (CloseSession(1, "s", "acme"), NO_SUCH, False),  # it was never asked before
        (CloseSession(1, "s", "acme"), BUSY, True),
        (Cancel(1, "a", "acme"), NO_SUCH, True),
    ],
)
async def test_other_refusals_stand(question: CloseSession | Cancel, error: ErrorInfo, sent: bool) -> None:
    questions = Questions()
    asking = questions.add(1, question, sent=sent)
    if sent:
        questions.unlinked()
    assert questions.linked() == [question]
    questions.answered(1, Failed(1, error))
    assert await asking == Failed(1, error)
    questions.drop(1)
