"""`llorch pools`, `pool health`, `drain`, `reload`, `promote`, `rollback`, `capabilities`: the control plane.

Plain text, or the bodies of the HTTP API with `--json`. `--wait` comes back when it is over.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

import msgspec
import typer

from contracts.control import PoolHealth
from contracts.errors import OrchError
from orchestrator.cli_pools_text import capabilities_text, health_text, pools_text, reload_text, state_of
from orchestrator.cli_server import Key, Url, finish, server, stderr
from orchestrator.cli_submit import ADVICE, CANNOT_CONNECT, FAILED, OK, show_no_server
from orchestrator.client import Client
from orchestrator.client_errors import CannotConnectError

WAIT_POLL_S: Final = 0.5
#: After a drain's deadline the stops are answered and the engines end.
DRAIN_GRACE_S: Final = 60
#: The service gives a reload up by itself (`reload_timeout_ms`); this bounds the wait for that.
RELOAD_WAIT_MAX_S: Final = 3_600

PoolId = Annotated[str, typer.Argument(help="the pool's id")]
AsJson = Annotated[bool, typer.Option("--json", help="the answer's body as JSON")]
#: An exit status once it is over, None while it is not.
Settled = Callable[[PoolHealth], int | None]

pool = typer.Typer(no_args_is_help=True, help="Look at one pool.")


def pools(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List the pools: what they serve, how many replicas are ready, what waits, what went wrong last."""

    async def work(client: Client) -> int:
        healths = await client.pools()
        _show(healths if as_json else pools_text(healths))
        return OK

    _run(url, key, work)


@pool.command("health")
def pool_health(pool_id: PoolId, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show a pool, its replicas and its last error."""

    async def work(client: Client) -> int:
        health = await client.pool_health(pool_id)
        _show(health if as_json else health_text(health))
        return OK

    _run(url, key, work)


def drain(
    pool_id: PoolId,
    deadline_ms: Annotated[int, typer.Option("--deadline-ms", min=0, help="how long admitted work may go on")],
    wait: Annotated[bool, typer.Option("--wait", help="come back when the pool is empty")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Empty a pool and stop it; `llorch reload` brings it back."""

    async def work(client: Client) -> int:
        accepted = await client.drain(pool_id, deadline_ms)
        if wait:
            wait_s = deadline_ms / 1000 + DRAIN_GRACE_S
            return await _wait(client, pool_id, wait_s, _drain_settled, as_json)
        _show(
            accepted if as_json else f"{pool_id} is being drained; `llorch pool health {pool_id}` shows how far it is"
        )
        return OK

    _run(url, key, work)


def reload(
    pool_id: PoolId,
    model: Annotated[str, typer.Argument(help="a model that the configuration names for the pool's engine")],
    canary: Annotated[
        int | None, typer.Option("--canary", min=1, max=99, help="percent of the sessions until promoted")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="come back when it serves, or was rolled back")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Have a pool serve another model: beside the old one until it is ready, or not at all."""

    async def work(client: Client) -> int:
        accepted = await client.reload(pool_id, model, canary)
        if wait:
            return await _wait(client, pool_id, RELOAD_WAIT_MAX_S, _reload_settled(model), as_json)
        _show(accepted if as_json else f"{pool_id} loads {model}; `llorch pool health {pool_id}` shows how far it is")
        return OK

    _run(url, key, work)


def promote(pool_id: PoolId, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Have a pool's canary take over."""

    async def work(client: Client) -> int:
        accepted = await client.promote(pool_id)
        _show(accepted if as_json else f"the canary of {pool_id} takes over")
        return OK

    _run(url, key, work)


def rollback(pool_id: PoolId, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Undo a pool's last reload, under way or done."""

    async def work(client: Client) -> int:
        accepted = await client.rollback(pool_id)
        _show(accepted if as_json else f"{pool_id} goes back; `llorch pool health {pool_id}` shows how far it is")
        return OK

    _run(url, key, work)


def capabilities(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show what the engines here can serve."""

    async def work(client: Client) -> int:
        found = await client.capabilities()
        _show(found if as_json else capabilities_text(found))
        return OK

    _run(url, key, work)


def add_commands(app: typer.Typer) -> None:
    """Put these commands under `llorch`."""
    for command in (pools, drain, reload, promote, rollback, capabilities):
        app.command()(command)
    app.add_typer(pool, name="pool")


def _run(url: str | None, key: str | None, work: Callable[[Client], Awaitable[int]]) -> None:
    address, api_key = server(url, key)
    finish(_answer(address, api_key, work))


async def _answer(url: str, key: str, work: Callable[[Client], Awaitable[int]]) -> int:
    async with Client(url, key) as client:
        try:
            return await work(client)
        except OrchError as error:
            _say(f"{error.info.code}: {error.info.message}")
            if error.info.code in ("UNAUTHENTICATED", "FORBIDDEN"):
                _say(f"  {ADVICE[error.info.code]}")
            return FAILED
        except CannotConnectError as error:
            show_no_server(stderr(), url, error)
            return CANNOT_CONNECT


async def _wait(client: Client, pool_id: str, wait_s: float, settled: Settled, as_json: bool) -> int:
    """Look at the pool until it is settled; what was asked for goes on when nobody waits any more."""
    try:
        for _ in range(math.ceil(wait_s / WAIT_POLL_S)):
            health = await client.pool_health(pool_id)
            status = settled(health)
            if status is not None:
                _show(health if as_json else pools_text([health]))
                return status
            await asyncio.sleep(WAIT_POLL_S)
    except asyncio.CancelledError:
        _say(f"not waiting any more; it goes on: llorch pool health {pool_id}")
        raise
    _say(f"{pool_id} is still {state_of(health)} after {wait_s:.0f} s; it goes on: llorch pool health {pool_id}")
    return FAILED


def _drain_settled(health: PoolHealth) -> int | None:
    if health.drained:
        return OK
    if health.draining:
        return None
    _say(f"the drain of {health.pool_id} was given up for another request: the pool is {state_of(health)}")
    return FAILED


def _reload_settled(model: str) -> Settled:
    def settled(health: PoolHealth) -> int | None:
        if health.reload is None or health.reload.model_ref != model:
            _say(f"another request took over; last reload of {health.pool_id}: {reload_text(health)}")
            return FAILED
        if health.reload.state == "rolled_back":
            _say(
                f"rolled back; {health.pool_id} serves {health.model_ref}: {health.reload.why or 'no reason was given'}"
            )
            return FAILED
        if health.reload.state == "canary":
            _say(f"the canary serves: `llorch promote {health.pool_id}` or `llorch rollback {health.pool_id}`")
        return None if health.reload.state == "loading" else OK

    return settled


def _show(body: str | msgspec.Struct | list[PoolHealth]) -> None:
    typer.echo(body if isinstance(body, str) else msgspec.json.format(msgspec.json.encode(body), indent=2))


def _say(text: str) -> None:
    typer.echo(text, err=True)
