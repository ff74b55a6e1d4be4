"""From method and path to a handler and the role that it asks for (ORCH-3044, OC-CTRL-2040)."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from contracts.config import KeyRole
from contracts.errors import ErrorInfo
from orchestrator.ingress.errors import error_reply, refuse
from orchestrator.ingress.http import Handler, ItemHandler, Reply, Request

#: What stands under it needs an API key, known path or not.
GUARDED: Final = "/v1/"


class Route(NamedTuple):
    """What answers. `role` is that of the key, on guarded paths only; None: any key will do."""

    handler: Handler
    role: KeyRole | None = None


class ItemRoute(NamedTuple):
    """The same for a path with an id in it."""

    handler: ItemHandler
    role: KeyRole


#: By path and method.
Routes = Mapping[str, Mapping[str, Route]]
#: By the path before the id and the action behind it, and by method.
ItemRoutes = Mapping[tuple[str, str], Mapping[str, ItemRoute]]


class Router:
    """All routes of an app."""

    def __init__(self, routes: Routes, item_routes: ItemRoutes) -> None:
        self.routes = routes
        self.item_routes = item_routes
        self._collections = tuple({collection: None for collection, _ in item_routes})

    def find(self, method: str, path: str) -> Route:
        """What answers a request. Raises OrchError NOT_FOUND for a path that leads nowhere."""
        methods = self.routes.get(path)
        if methods is not None:
            return methods.get(method) or _wrong_method(methods)
        for collection in self._collections:
            if path.startswith(collection + "/"):
                name, slash, action = path[len(collection) + 1 :].partition("/")
                item_methods = self.item_routes.get((collection, action)) if name and (action or not slash) else None
                if item_methods is not None:
                    found = item_methods.get(method)
                    return _with_name(found, name) if found else _wrong_method(item_methods)
        raise refuse("NOT_FOUND", "There is nothing at this path. GET /docs lists what there is.")


def _with_name(route: ItemRoute, name: str) -> Route:
    async def handle(request: Request) -> Reply | None:
        return await route.handler(request, name)

    return Route(handle, route.role)


def _wrong_method(methods: Mapping[str, object]) -> Route:
    allowed = ", ".join(methods)
    info = ErrorInfo(code="METHOD_NOT_ALLOWED", message=f"This path takes {allowed} only.", retriable=False)
    reply = error_reply(info)
    reply.headers.append((b"allow", allowed.encode()))

    async def handle(_request: Request) -> Reply:
        return reply

    return Route(handle)
