"""The data plane over a fake gateway."""

from typing import Any

import pytest

from orchestrator.ingress.app import build_app
from tests.unit.ingress.asgi import SETTINGS, Call, Exchange
from tests.unit.ingress.fake_gateway import FakeGateway


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
