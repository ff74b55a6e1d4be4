"""The ASGI application of data and control plane, OrchQueue v1 (ORCH-3044)."""

import asyncio
from contextlib import suppress

import msgspec

from contracts.errors import OrchError
from contracts.gateway import Gateway
from orchestrator.ingress.auth import Authenticator
from orchestrator.ingress.bodies import Bodies
from orchestrator.ingress.control import ControlPlane
from orchestrator.ingress.data_plane import TASKS, DataPlane
from orchestrator.ingress.docs import Documents
from orchestrator.ingress.errors import error_reply, internal, log_failure
from orchestrator.ingress.http import ASGIApp, ClientGone, Handler, Receive, Reply, Request, Scope, Send
from orchestrator.ingress.keyring import Keyring, require
from orchestrator.ingress.keys_file import KeysFile
from orchestrator.ingress.open_streams import OpenStreams
from orchestrator.ingress.result_memory import ResultMemory
from orchestrator.ingress.routes import GUARDED, Route, Router
from orchestrator.ingress.settings import IngressSettings

_encode = msgspec.json.Encoder().encode


def build_app(gateway: Gateway, settings: IngressSettings, memory: ResultMemory | None = None) -> ASGIApp:
    """Both planes over `gateway`. Reads the OpenAPI documents, so raises OSError when one is missing."""
    return Ingress(gateway, settings, memory or ResultMemory())


class Ingress:
    """Authenticates, routes, and turns every failure into the envelope (ORCH-2006)."""

    def __init__(self, gateway: Gateway, settings: IngressSettings, memory: ResultMemory) -> None:
        self._gateway = gateway
        self._protect_metrics = settings.protect_metrics
        keyring = Keyring(settings.keys)
        self._keys_file = (
            KeysFile(settings.keys_file, keyring) if settings.keys_file and settings.auth_enabled else None
        )
        if self._keys_file is not None:
            self._keys_file.load()
        self._auth = Authenticator(settings, keyring)
        documents = Documents(settings.openapi_path, settings.control_openapi_path)
        bodies = Bodies(settings)
        self._data = DataPlane(gateway, settings, bodies, memory, OpenStreams(keyring, settings.streams_max))
        control = ControlPlane(gateway, bodies)
        self._router = Router(
            {
                "/healthz": {"GET": Route(_healthz)},
                "/readyz": {"GET": Route(self._readyz)},
                "/metrics": {"GET": Route(self._metrics)},
                "/docs": {"GET": Route(documents.page)},
                "/openapi.json": {"GET": Route(documents.openapi)},
                "/openapi-control.json": {"GET": Route(documents.control_openapi)},
                **self._data.routes,
                **control.routes,
            },
            {**self._data.item_routes, **control.item_routes},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._handle(Request(scope, receive, send))
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise NotImplementedError(f"no {scope['type']} here")

    async def _handle(self, request: Request) -> None:
        try:
            reply = await self._answer(request)
        except OrchError as error:
            reply = error_reply(error.info)
        except ClientGone:
            return
        except Exception:
            log_failure("request_failed", method=request.method, correlation_id=request.correlation_id)
            reply = None if request.started else error_reply(internal())
        if reply is not None:
            with suppress(OSError):  # the client left
                await request.reply(reply)

    async def _answer(self, request: Request) -> Reply | None:
        try:
            handler = self._admitted(request)
        except OrchError as error:
            if request.path == TASKS and request.method == "POST":
                self._gateway.count_rejected("unknown", error.info.code)
            raise
        return await handler(request)

    def _admitted(self, request: Request) -> Handler:
        """The handler, once the key may use it; everything under /v1 needs one (ORCH-3035), known path or not."""
        guarded = request.path.startswith(GUARDED)
        if guarded:
            request.key = self._auth.key_of(request)
        route = self._router.find(request.method, request.path)
        if guarded:
            require(request.key, route.role)
        return route.handler

    # ---------------------------------------------------------------- service

    async def _readyz(self, request: Request) -> Reply:
        """Probes have no keys: they are told whether, and only who may observe is told of the pools."""
        readiness = await self._gateway.readiness()
        if self._protect_metrics and not self._may_observe(request):
            readiness = msgspec.structs.replace(readiness, pools={})
        return Reply(200 if readiness.ready else 503, _encode(readiness))

    def _may_observe(self, request: Request) -> bool:
        try:
            require(self._auth.key_of(request), "observe")
        except OrchError:
            return False
        return True

    async def _metrics(self, request: Request) -> Reply:
        if self._protect_metrics:
            require(self._auth.key_of(request), "observe")
        return Reply(200, await self._gateway.metrics(), b"text/plain; version=0.0.4; charset=utf-8")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        watching: asyncio.Task[None] | None = None
        while True:  # two messages in a server's life
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self._keys_file is not None:
                    watching = asyncio.create_task(self._keys_file.watch())
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if watching is not None:
                    watching.cancel()
                    await asyncio.wait([watching])
                await self._data.departures.drain()
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _healthz(_request: Request) -> Reply:
    """The process answers; whether tasks can be served is /readyz's matter."""
    return Reply(200, b'{"status":"ok"}')
