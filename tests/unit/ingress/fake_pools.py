"""Test double: the control plane's half of a `Gateway`, in memory. Drains and reloads are over at once."""

import msgspec

from contracts import openapi_control_examples as ex
from contracts.control import (
    Capabilities,
    DrainRequest,
    PoolHealth,
    Reload,
    ReloadRequest,
    ReplicaSetStatus,
)
from contracts.errors import ErrorInfo, OrchError


class FakePools:
    """`healths` are the pools that there are; `asked` is what was taken on; `control_error` is raised by everything."""

    def __init__(self) -> None:
        self.healths: dict[str, PoolHealth] = {ex.HEALTHY.pool_id: ex.HEALTHY}
        #: What pools can be reloaded to; empty: anything.
        self.models = {ex.HEALTHY.model_ref, ex.NEXT_MODEL}
        self.told_api_version = ex.CAPABILITIES.api_version
        self.asked: list[tuple[str, str, object]] = []
        self.control_error: Exception | None = None

    async def pool_health(self, pool_id: str) -> PoolHealth:
        return self._pool(pool_id)

    async def drain_pool(self, pool_id: str, request: DrainRequest) -> None:
        pool = self._pool(pool_id)
        self.asked.append(("drain", pool_id, request))
        self.healths[pool_id] = msgspec.structs.replace(pool, live=False, ready=False, drained=True)

    async def reload_pool(self, pool_id: str, request: ReloadRequest) -> None:
        pool = self._pool(pool_id)
        if self.models and request.new_model_ref not in self.models:
            known = ", ".join(sorted(self.models))
            message = f"model `{request.new_model_ref}` is not configured for llamacpp; known are: {known}"
            raise OrchError(ErrorInfo("INVALID_PARAMS", message, pool.engine, pool_id, False))
        self.asked.append(("reload", pool_id, request))
        state = "done" if request.canary_percent is None else "canary"
        self.healths[pool_id] = msgspec.structs.replace(
            pool, reload=Reload(request.new_model_ref, state, request.canary_percent), drained=False
        )

    async def promote_pool(self, pool_id: str) -> None:
        self._settle("promote", pool_id, ("canary",))

    async def rollback_pool(self, pool_id: str) -> None:
        self._settle("rollback", pool_id, ("loading", "canary", "done"))

    async def replica_sets(self) -> list[ReplicaSetStatus]:
        if self.control_error:
            raise self.control_error
        return [
            msgspec.structs.replace(ex.REPLICA_SET, pools=list(reversed(self.healths))),
            msgspec.structs.replace(ex.REPLICA_SET, id="llamacpp/other", pools=list(self.healths)[:1]),
        ]

    async def capabilities(self) -> Capabilities:
        if self.control_error:
            raise self.control_error
        return msgspec.structs.replace(ex.CAPABILITIES, api_version=self.told_api_version)

    def _settle(self, action: str, pool_id: str, states: tuple[str, ...]) -> None:
        pool = self._pool(pool_id)
        if pool.reload is None or pool.reload.state not in states:
            message = f"pool `{pool_id}` has nothing to {action}"
            raise OrchError(ErrorInfo("CONFLICT", message, pool.engine, pool_id, False))
        self.asked.append((action, pool_id, None))
        self.healths[pool_id] = msgspec.structs.replace(pool, reload=None)

    def _pool(self, pool_id: str) -> PoolHealth:
        if self.control_error:
            raise self.control_error
        if pool_id not in self.healths:
            known = ", ".join(self.healths)
            raise OrchError(ErrorInfo("NOT_FOUND", f"no pool `{pool_id}`; there are: {known}", retriable=False))
        return self.healths[pool_id]
