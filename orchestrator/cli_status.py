"""`llorch status`: is the cluster ready, what is it doing, how is my task."""

from collections import defaultdict

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from contracts.errors import OrchError
from orchestrator.cli_submit import CANNOT_CONNECT, FAILED, OK, show_error, show_no_server
from orchestrator.client import Client
from orchestrator.client_errors import CannotConnectError

#: Metrics worth a line, and the label they are told apart by.
SHOWN = {
    "queue_depth": "priority",
    "tasks_enqueued_total": "priority",
    "tasks_started_total": "priority",
    "tasks_rejected_total": "reason",
    "tasks_canceled_total": "reason",
    "tokens_out_total": "pool_id",
    "preemptions_total": "mode",
    "deadlines_met_ratio": "priority",
}


async def status(url: str, key: str, task_id: str | None, out: Console, err: Console) -> int:
    """Show the cluster, or one task; returns the exit status (FAILED also when the cluster is not ready)."""
    async with Client(url, key) as client:
        try:
            return await _task(client, task_id, out) if task_id else await _cluster(client, out)
        except OrchError as error:
            show_error(err, error.info)
            return FAILED
        except CannotConnectError as error:
            show_no_server(err, url, error)
            return CANNOT_CONNECT


async def _task(client: Client, task_id: str, out: Console) -> int:
    table = Table(show_header=False, box=None)
    for name, value in msgspec.to_builtins(await client.status(task_id)).items():
        table.add_row(name, str(value))
    out.print(table)
    return OK


async def _cluster(client: Client, out: Console) -> int:
    readiness = await client.readiness()
    out.print("ready" if readiness.ready else "not ready", style="green" if readiness.ready else "yellow")
    pools = Table(show_header=False, box=None)
    for pool_id, state in sorted(readiness.pools.items()):
        pools.add_row(f"  pool {pool_id}", state)
    out.print(pools)
    figures = Table(show_header=False, box=None)
    for name, value in figures_of(await client.metrics()):
        figures.add_row(f"  {name}", f"{value:g}")
    out.print(figures)
    return OK if readiness.ready else FAILED


def figures_of(text: str) -> list[tuple[str, float]]:
    """Sums of the shown metrics by their telling label, from a metrics page."""
    sums: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = SHOWN.get(sample.name)
            if label is not None:
                sums[f"{sample.name} {sample.labels.get(label, '')}".rstrip()] += sample.value
    return sorted(sums.items())
