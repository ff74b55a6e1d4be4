"""The control plane over HTTP: pools, replica sets, capabilities (ORCH-2101..2104, ORCH-3095, ORCH-3096).

What changes a pool is answered with 202 once the scheduler has taken it on, and logged with who asked.
"""

import re
from collections.abc import Awaitable
from typing import Final

import msgspec
import structlog

from contracts.api import API_VERSION
from contracts.control import Capabilities, DrainRequest, PoolHealth, ReloadRequest
from contracts.errors import OrchError
from contracts.gateway import POOL_ID_PATTERN, PoolAccepted, PoolGateway
from orchestrator.ingress.bodies import Bodies, Body, read_json
from orchestrator.ingress.errors import refuse
from orchestrator.ingress.http import Reply, Request
from orchestrator.ingress.routes import ItemRoute, Route

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode
_pool_id = re.compile(POOL_ID_PATTERN)

DRAIN: Final = msgspec.json.Decoder(DrainRequest)
RELOAD: Final = msgspec.json.Decoder(ReloadRequest)

POOLS: Final = "/v1/pools"


class ControlPlane:
    """Handlers of the control plane's paths: `observe` to look, `operate` to change, any key for capabilities."""

    def __init__(self, gateway: PoolGateway, bodies: Bodies) -> None:
        self._gateway = gateway
        self._bodies = bodies
        self.routes: dict[str, dict[str, Route]] = {
            POOLS: {"GET": Route(self._pools, "observe")},
            "/v1/replicasets": {"GET": Route(self._replica_sets, "observe")},
            "/v1/capabilities": {"GET": Route(self._capabilities)},
        }
        self.item_routes: dict[tuple[str, str], dict[str, ItemRoute]] = {
            (POOLS, "health"): {"GET": ItemRoute(self._health, "observe")},
            (POOLS, "drain"): {"POST": ItemRoute(self._drain, "operate")},
            (POOLS, "reload"): {"POST": ItemRoute(self._reload, "operate")},
            (POOLS, "promote"): {"POST": ItemRoute(self._promote, "operate")},
            (POOLS, "rollback"): {"POST": ItemRoute(self._rollback, "operate")},
        }

    async def _pools(self, _request: Request) -> Reply:
        return Reply(200, _encode(await list_pools(self._gateway)))

    async def _health(self, _request: Request, name: str) -> Reply:
        """ORCH-2103, OC-CTRL-2001."""
        return Reply(200, _encode(await self._gateway.pool_health(parse_pool_id(name))))

    async def _drain(self, request: Request, name: str) -> Reply:
        """ORCH-2101, OC-CTRL-2002."""
        pool_id = parse_pool_id(name)
        asked = await self._read(request, DRAIN)
        return await self._accept(request, "drain", pool_id, self._gateway.drain_pool(pool_id, asked))

    async def _reload(self, request: Request, name: str) -> Reply:
        """ORCH-2102, OC-CTRL-2003."""
        pool_id = parse_pool_id(name)
        asked = await self._read(request, RELOAD)
        return await self._accept(request, "reload", pool_id, self._gateway.reload_pool(pool_id, asked))

    async def _promote(self, request: Request, name: str) -> Reply:
        """ORCH-3033."""
        pool_id = parse_pool_id(name)
        return await self._accept(request, "promote", pool_id, self._gateway.promote_pool(pool_id))

    async def _rollback(self, request: Request, name: str) -> Reply:
        """ORCH-3033: one action, without a body."""
        pool_id = parse_pool_id(name)
        return await self._accept(request, "rollback", pool_id, self._gateway.rollback_pool(pool_id))

    async def _replica_sets(self, _request: Request) -> Reply:
        """ORCH-2104, OC-CTRL-2004."""
        return Reply(200, _encode(await self._gateway.replica_sets()))

    async def _capabilities(self, _request: Request) -> Reply:
        """ORCH-3095, OC-CTRL-2060."""
        return Reply(200, _encode(await versioned_capabilities(self._gateway)))

    async def _read(self, request: Request, decoder: msgspec.json.Decoder[Body]) -> Body:
        return read_json(decoder, await self._bodies.read(request))

    async def _accept(self, request: Request, action: str, pool_id: str, work: Awaitable[None]) -> Reply:
        accepted = await accept(action, pool_id, work, request.tenant, request.client, request.correlation_id)
        location = f"{POOLS}/{pool_id}/health".encode()
        return Reply(202, _encode(accepted), headers=[(b"location", location)])


def parse_pool_id(text: str) -> str:
    """A pool's id from a path. Raises OrchError NOT_FOUND for what no pool can be called."""
    if not _pool_id.fullmatch(text):
        raise refuse("NOT_FOUND", "There is no such pool: an id is 1 to 63 of a-z, 0-9, `.`, `_`, `-`. GET /v1/pools.")
    return text


async def list_pools(gateway: PoolGateway) -> list[PoolHealth]:
    """Health of every pool, in the order of their ids; asked one by one, so that a listing cannot crowd the link."""
    sets = await gateway.replica_sets()
    return [await gateway.pool_health(pool_id) for pool_id in sorted({name for one in sets for name in one.pools})]


async def versioned_capabilities(gateway: PoolGateway) -> Capabilities:
    """With the version of this ingress: that of the API and the documents it serves (ORCH-3096, OC-CTRL-2061)."""
    return msgspec.structs.replace(await gateway.capabilities(), api_version=API_VERSION)


async def accept(
    action: str, pool_id: str, work: Awaitable[None], tenant: str, client: str, correlation_id: str
) -> PoolAccepted:
    """Wait until a request is taken on or refused, and log which, and who asked for it."""
    log = _log.bind(action=action, pool_id=pool_id, tenant_id=tenant, client=client, correlation_id=correlation_id)
    try:
        await work
    except OrchError as error:
        log.info("pool_request_refused", code=error.info.code, why=error.info.message)
        raise
    log.info("pool_request_accepted")
    return PoolAccepted(pool_id)
