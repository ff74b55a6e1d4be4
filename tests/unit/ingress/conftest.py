"""The data plane over a fake gateway."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from orchestrator.ingress import app as ingress_app
from orchestrator.ingress.app import build_app
from orchestrator.ingress.docs import Documents
from tests.unit.ingress.asgi import SETTINGS, Call, Exchange
from tests.unit.ingress.fake_gateway import FakeGateway


@pytest.fixture(scope="package", autouse=True)
def documents() -> Iterator[None]:
    """The OpenAPI documents are the same for each test's app, and ready to send: they are read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingress_app, "Documents", cache(Documents))
        yield


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def app(gateway: FakeGateway) -> Any:
    return build_app(gateway, SETTINGS)


@pytest.fixture
def call(app: Any) -> Call:
    """Run a request to its end."""

    async def run(method: str, path: str, body: Any = b"", **headers: str) -> Exchange:
        return await Exchange(app, method, path, body, **headers).done()

    return run
