"""No engine's own endpoint is served or passed on by the public API (ORCH-3044, OC-ADAPT-5002, OC-ADAPT-5021)."""

from pathlib import Path

import msgspec
import pytest

from orchestrator.ingress.app import build_app
from tests.unit.ingress.asgi import SETTINGS, Exchange
from tests.unit.ingress.fake_gateway import FakeGateway

ENGINE_PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/rerank",
    "/completion",
    "/completions",
    "/chat/completions",
    "/embedding",
    "/embeddings",
    "/rerank",
    "/infill",
    "/props",
    "/slots",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/generate",
    "/generate_stream",
    "/chat_tokenize",
    "/info",
    "/inference/v1/generate",
    "/v2",
    "/v2/health/ready",
    "/v2/models/m/infer",
    "/v2/models/m/generate_stream",
    "/v2/repository/models/m/load",
    "/v1/tasks/../completions",
    "/v1//completions",
)


@pytest.mark.req("ORCH-3044", "OC-ADAPT-5002", "OC-ADAPT-5021")
@pytest.mark.parametrize("path", ENGINE_PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_engines_own_path_is_not_found(method: str, path: str) -> None:
    gateway = FakeGateway()
    exchange = await Exchange(build_app(gateway, SETTINGS), method, path, {"prompt": "x", "max_tokens": 1}).done()
    assert exchange.status == 404, exchange.json
    assert exchange.json["code"] == "NOT_FOUND"
    assert not gateway.tasks


@pytest.mark.req("ORCH-3044")
def test_no_contract_names_an_engines_own_path(root: Path) -> None:
    contracts = sorted((root / "contracts" / "openapi").glob("*.yaml"))
    assert contracts
    for contract in contracts:
        paths = msgspec.yaml.decode(contract.read_bytes())["paths"]
        assert paths
        assert not set(paths) & set(ENGINE_PATHS)
