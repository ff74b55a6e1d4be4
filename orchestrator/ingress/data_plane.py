"""The data plane over HTTP: submit, follow and cancel tasks, look at and end sessions (ORCH-2001..2005)."""

import asyncio
from typing import Final

import msgspec

from contracts.errors import OrchError
from contracts.gateway import Gateway
from orchestrator.ingress.admission_log import log_admission, log_refusal
from orchestrator.ingress.bodies import Bodies
from orchestrator.ingress.budgets import budget_headers
from orchestrator.ingress.http import Headers, Reply, Request
from orchestrator.ingress.open_streams import OpenStreams, StreamSlot
from orchestrator.ingress.result_memory import ResultMemory
from orchestrator.ingress.results import Events, first_wanted, gathered
from orchestrator.ingress.routes import ItemRoute, Route
from orchestrator.ingress.settings import IngressSettings
from orchestrator.ingress.sse import last_event_id
from orchestrator.ingress.streaming import Departures, EventStream, release
from orchestrator.ingress.submission import (
    Submission,
    engine_of,
    parse_session_id,
    parse_submission,
    parse_task_id,
)

_encode = msgspec.json.Encoder().encode

TASKS: Final = "/v1/tasks"
SESSIONS: Final = "/v1/sessions"


class DataPlane:
    """Handlers of the data plane's paths; all need the role `submit`."""

    def __init__(
        self,
        gateway: Gateway,
        settings: IngressSettings,
        bodies: Bodies,
        memory: ResultMemory,
        open_streams: OpenStreams,
    ) -> None:
        self._gateway = gateway
        self._memory = memory
        self._keepalive_ms = settings.keepalive_ms
        self._bodies = bodies
        self._open_streams = open_streams
        self.departures = Departures(gateway, settings.cancel_timeout_ms)
        self.routes: dict[str, dict[str, Route]] = {TASKS: {"POST": Route(self._submit, "submit")}}
        self.item_routes: dict[tuple[str, str], dict[str, ItemRoute]] = {
            (TASKS, ""): {"GET": ItemRoute(self._status, "submit")},
            (TASKS, "stream"): {"GET": ItemRoute(self._stream, "submit")},
            (TASKS, "cancel"): {"POST": ItemRoute(self._cancel, "submit")},
            (SESSIONS, ""): {
                "GET": ItemRoute(self._session, "submit"),
                "DELETE": ItemRoute(self._close_session, "submit"),
            },
        }

    # ------------------------------------------------------------------ tasks

    async def _submit(self, request: Request) -> Reply | None:
        """`POST /v1/tasks` (ORCH-2001): 202 with the admission, or the whole stream in one call."""
        one_call = request.wants_events()
        after = last_event_id(request.headers)
        submission = await self._read_submission(request, one_call)
        if one_call:
            await self._submit_and_stream(request, submission, after)
            return None
        try:
            admission = await self._gateway.submit(submission.task, submission.request)
        except OrchError as error:
            log_refusal(submission.task, error.info)
            raise
        log_admission(submission.task, admission)
        return Reply(202, _encode(admission), headers=_location(submission) + budget_headers(admission))

    async def _submit_and_stream(self, request: Request, submission: Submission, after: int) -> None:
        """The stream's place comes first: a task is not admitted whose stream would be refused."""
        task = submission.task
        try:
            slot = self._open_streams.take(request.key)
        except OrchError as error:
            self._gateway.count_rejected(task.engine, error.info.code)
            log_refusal(task, error.info)
            raise
        with slot:
            try:
                after = first_wanted(after, task.workload)
                admission, opened = await self._gateway.open(task, submission.request, after)
                events = gathered(opened, task, self._memory)
            except OrchError as error:
                log_refusal(task, error.info)
                raise
            except asyncio.CancelledError:
                # The submission may be on its way already; whoever asked for one call has left it.
                self.departures.left(task.task_id, task.tenant, request.correlation_id)
                raise
            log_admission(task, admission)
            headers = _location(submission) + budget_headers(admission)
            headers += [
                (b"x-queue-position", b"%d" % admission.queue_position),
                (b"x-predicted-start-ms", b"%d" % admission.predicted_start_ms),
                (b"x-backoff-ms", b"%d" % admission.backoff_ms),
            ]
            await self._send_stream(request, task.task_id, events, headers, slot)

    async def _read_submission(self, request: Request, one_call: bool) -> Submission:
        """Body to task; what is refused here never reaches the scheduler, so it is counted here."""
        body = b""
        try:
            body = await self._bodies.read(request)
            return parse_submission(body, request.tenant, request.correlation_id, one_call, request.client)
        except OrchError as error:
            self._gateway.count_rejected(engine_of(body), error.info.code)
            raise

    async def _status(self, request: Request, name: str) -> Reply:
        return Reply(200, _encode(await self._gateway.status(parse_task_id(name), request.tenant)))

    async def _cancel(self, request: Request, name: str) -> Reply:
        """ORCH-2003: when the 204 is sent, no token of the task will follow (ORCH-3026, OC-CTRL-2012)."""
        await self._gateway.cancel(parse_task_id(name), request.tenant)
        return Reply(204, b"")

    async def _stream(self, request: Request, name: str) -> None:
        """ORCH-2002. Asks for the task first: an unknown one is a 404, not a stream with an error in it."""
        task_id, after = parse_task_id(name), last_event_id(request.headers)
        task = await self._gateway.task_info(task_id, request.tenant)
        with self._open_streams.take(request.key) as slot:
            events = self._gateway.stream(task_id, request.tenant, first_wanted(after, task.workload))
            await self._send_stream(request, task_id, gathered(events, task, self._memory), [], slot)

    async def _send_stream(
        self, request: Request, task_id: str, events: Events, headers: Headers, slot: StreamSlot
    ) -> None:
        stream = EventStream(request, self._keepalive_ms)
        slot.end_with = stream.end_with
        complete = False
        try:
            slot.check()
            complete = await stream.serve(events, headers)
        finally:
            await release(events)
            # Also when the server cancels this coroutine, which is how some tell of a disconnect.
            if not complete:
                self.departures.left(task_id, request.tenant, request.correlation_id)

    # --------------------------------------------------------------- sessions

    async def _session(self, request: Request, name: str) -> Reply:
        """ORCH-2004."""
        return Reply(200, _encode(await self._gateway.session(parse_session_id(name), request.tenant)))

    async def _close_session(self, request: Request, name: str) -> Reply:
        """ORCH-2005."""
        await self._gateway.close_session(parse_session_id(name), request.tenant)
        return Reply(204, b"")


def _location(submission: Submission) -> Headers:
    return [(b"location", b"%b/%b" % (TASKS.encode(), submission.task.task_id.encode()))]
