"""The ASGI application of data and control plane, OrchQueue v1 (ORCH-3044)."""

import asyncio
from contextlib import suppress

import msgspec
import structlog

from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import Gateway
from orchestrator.ingress.admission_log import log_admission, log_refusal
from orchestrator.ingress.auth import Authenticator
from orchestrator.ingress.budgets import budget_headers
from orchestrator.ingress.control import ControlPlane
from orchestrator.ingress.docs import Documents
from orchestrator.ingress.errors import error_reply, internal, log_failure, refuse
from orchestrator.ingress.http import (
    ASGIApp,
    BodyTooLarge,
    ClientGone,
    Handler,
    Headers,
    ItemHandler,
    Receive,
    Reply,
    Request,
    Scope,
    Send,
)
from orchestrator.ingress.result_memory import ResultMemory
from orchestrator.ingress.results import Events, first_wanted, gathered
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

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode

_TASKS = "/v1/tasks"
_SESSIONS = "/v1/sessions"


def build_app(gateway: Gateway, settings: IngressSettings, memory: ResultMemory | None = None) -> ASGIApp:
    """Both planes over `gateway`. Reads the OpenAPI documents, so raises OSError when one is missing."""
    return Ingress(gateway, settings, memory or ResultMemory())


class Ingress:
    """Routes, authenticates, and turns every failure into the envelope (ORCH-2006)."""

    def __init__(self, gateway: Gateway, settings: IngressSettings, memory: ResultMemory) -> None:
        self._gateway = gateway
        self._memory = memory
        self._settings = settings
        self._auth = Authenticator(settings)
        self._departures = Departures(gateway, settings.cancel_timeout_ms)
        documents = Documents(settings.openapi_path, settings.control_openapi_path)
        control = ControlPlane(gateway, settings.body_max_bytes)
        self._routes: dict[str, dict[str, Handler]] = {
            _TASKS: {"POST": self._submit},
            "/healthz": {"GET": _healthz},
            "/readyz": {"GET": self._readyz},
            "/metrics": {"GET": self._metrics},
            "/docs": {"GET": documents.page},
            "/openapi.json": {"GET": documents.openapi},
            "/openapi-control.json": {"GET": documents.control_openapi},
            **control.routes,
        }
        #: By the path before the id and the action behind it.
        self._item_routes: dict[tuple[str, str], dict[str, ItemHandler]] = {
            (_TASKS, ""): {"GET": self._status},
            (_TASKS, "stream"): {"GET": self._stream},
            (_TASKS, "cancel"): {"POST": self._cancel},
            (_SESSIONS, ""): {"GET": self._session, "DELETE": self._close_session},
            **control.item_routes,
        }
        self._collections = tuple({collection: None for collection, _ in self._item_routes})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._handle(Request(scope, receive, send))
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise NotImplementedError(f"no {scope['type']} here")

    async def _handle(self, request: Request) -> None:
        try:
            reply = await self._route(request)
        except OrchError as error:
            reply = error_reply(error.info)
        except ClientGone:
            return
        except Exception:
            log_failure("request_failed", path=request.path, correlation_id=request.correlation_id)
            reply = None if request.started else error_reply(internal())
        if reply is not None:
            with suppress(OSError):  # the client left
                await request.reply(reply)

    async def _route(self, request: Request) -> Reply | None:
        """Find and run the handler; everything under /v1 needs a key (ORCH-3035), known path or not."""
        path = request.path
        if path.startswith("/v1/"):
            self._authenticate(request)
        methods = self._routes.get(path)
        if methods is not None:
            handler = methods.get(request.method)
            return await handler(request) if handler else _wrong_method(methods)
        for collection in self._collections:
            if path.startswith(collection + "/"):
                name, slash, action = path[len(collection) + 1 :].partition("/")
                item_methods = self._item_routes.get((collection, action)) if name and (action or not slash) else None
                if item_methods is not None:
                    item_handler = item_methods.get(request.method)
                    return await item_handler(request, name) if item_handler else _wrong_method(item_methods)
        raise refuse("NOT_FOUND", "There is nothing at this path. GET /docs lists what there is.")

    def _authenticate(self, request: Request) -> None:
        try:
            request.tenant, request.client = self._auth.caller(request.headers)
        except OrchError as error:
            if request.path == _TASKS and request.method == "POST":
                self._gateway.count_rejected("unknown", error.info.code)
            raise

    # ------------------------------------------------------------------ tasks

    async def _submit(self, request: Request) -> Reply | None:
        """`POST /v1/tasks` (ORCH-2001): 202 with the admission, or the whole stream in one call."""
        one_call = request.wants_events()
        after = last_event_id(request.headers)
        submission = await self._read_submission(request, one_call)
        task, events = submission.task, None
        try:
            if one_call:
                after = first_wanted(after, task.workload)
                admission, opened = await self._gateway.open(task, submission.request, after)
                events = gathered(opened, task, self._memory)
            else:
                admission = await self._gateway.submit(task, submission.request)
        except OrchError as error:
            log_refusal(task, error.info)
            raise
        except asyncio.CancelledError:
            # The submission may be on its way already; whoever asked for one call has left it.
            if one_call:
                self._departures.left(task.task_id, task.tenant, request.correlation_id)
            raise
        log_admission(task, admission)
        headers: Headers = [(b"location", b"%b/%b" % (_TASKS.encode(), task.task_id.encode()))]
        headers += budget_headers(admission)
        if events is None:
            return Reply(202, _encode(admission), headers=headers)
        headers += [
            (b"x-queue-position", b"%d" % admission.queue_position),
            (b"x-predicted-start-ms", b"%d" % admission.predicted_start_ms),
            (b"x-backoff-ms", b"%d" % admission.backoff_ms),
        ]
        await self._send_stream(request, task.task_id, events, headers)
        return None

    async def _read_submission(self, request: Request, one_call: bool) -> Submission:
        """Body to task; what is refused here never reaches the scheduler, so it is counted here."""
        body, limit = b"", self._settings.body_max_bytes
        try:
            body = await request.read_body(limit)
            return parse_submission(body, request.tenant, request.correlation_id, one_call, request.client)
        except BodyTooLarge:
            self._gateway.count_rejected("unknown", "PAYLOAD_TOO_LARGE")
            raise refuse("PAYLOAD_TOO_LARGE", f"The body is over {limit} bytes. Send a shorter prompt.") from None
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
        events = self._gateway.stream(task_id, request.tenant, first_wanted(after, task.workload))
        await self._send_stream(request, task_id, gathered(events, task, self._memory), [])

    async def _send_stream(self, request: Request, task_id: str, events: Events, headers: Headers) -> None:
        stream = EventStream(request, self._settings.keepalive_ms)
        complete = False
        try:
            complete = await stream.serve(events, headers)
        finally:
            await release(events)
            # Also when the server cancels this coroutine, which is how some tell of a disconnect.
            if not complete:
                self._departures.left(task_id, request.tenant, request.correlation_id)

    # --------------------------------------------------------------- sessions

    async def _session(self, request: Request, name: str) -> Reply:
        """ORCH-2004."""
        return Reply(200, _encode(await self._gateway.session(parse_session_id(name), request.tenant)))

    async def _close_session(self, request: Request, name: str) -> Reply:
        """ORCH-2005."""
        await self._gateway.close_session(parse_session_id(name), request.tenant)
        return Reply(204, b"")

    # ---------------------------------------------------------------- service

    async def _readyz(self, _request: Request) -> Reply:
        readiness = await self._gateway.readiness()
        return Reply(200 if readiness.ready else 503, _encode(readiness))

    async def _metrics(self, _request: Request) -> Reply:
        return Reply(200, await self._gateway.metrics(), b"text/plain; version=0.0.4; charset=utf-8")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:  # two messages in a server's life
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self._departures.drain()
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _healthz(_request: Request) -> Reply:
    """The process answers; whether tasks can be served is /readyz's matter."""
    return Reply(200, b'{"status":"ok"}')


def _wrong_method(methods: dict[str, Handler] | dict[str, ItemHandler]) -> Reply:
    allowed = ", ".join(methods)
    info = ErrorInfo(code="METHOD_NOT_ALLOWED", message=f"This path takes {allowed} only.", retriable=False)
    reply = error_reply(info)
    reply.headers.append((b"allow", allowed.encode()))
    return reply
