"""One process of a small service without Ray: `python -m tests.powercut.part scheduler|replicas|ingress FOLDER`.

Real: the scheduler with its journal, the channel, the pool manager, replica hosts, the ingress and its listener, each
kind in a process of its own. Not real: the engines, which say `mock` in `engine_version`, and the cluster under them.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from contracts.messages import Endpoint
from contracts.policies import PoolPolicy, QueuePolicy, ResultPolicy, ScalingPolicy, SchedulerConfig, SetPolicy
from orchestrator.cluster.connection import ChannelError
from orchestrator.cluster.gateway import ClusterGateway
from orchestrator.cluster.journal.store import Storage
from orchestrator.cluster.listener import Listener
from orchestrator.cluster.pool_manager import PoolManager
from orchestrator.cluster.scheduler_service import SchedulerService
from orchestrator.ingress.app import build_app
from orchestrator.ingress.settings import IngressSettings
from tests.powercut.fleet import NODE, SPEC, LocalFleet

SECRET: Final = b"s" * 32
CAPACITY: Final = 4096
HOUR_MS: Final = 3_600_000

CONFIG: Final = SchedulerConfig(
    (
        SetPolicy(
            set_id="set",
            engine=SPEC.engine,
            model_refs=(SPEC.model,),
            ctx=SPEC.ctx,
            sampler_profile_version="v1",
            pools=(PoolPolicy("pool", scaling=ScalingPolicy(2, 2, 2), model_ref=SPEC.model, slots=SPEC.slots),),
            capacity=CAPACITY,
            queues=(QueuePolicy("interactive", CAPACITY, "reject"), QueuePolicy("batch", CAPACITY, "reject")),
            wall_timeout_ms=60_000,
            idle_timeout_ms=30_000,
            on_time_percent_min=0,
        ),
    ),
    ResultPolicy(HOUR_MS, 1_000_000, 1 << 30),
)


def _endpoint_file(folder: Path) -> Path:
    return folder / "endpoint"


async def _scheduler(folder: Path) -> None:
    storage = Storage(str(folder / "data"), journal=True, bytes_max=1 << 30)
    service = SchedulerService(CONFIG, SECRET, storage=storage)
    endpoint = await service.start(NODE, "127.0.0.1")
    part = folder / "endpoint.part"
    part.write_bytes(msgspec.json.encode(endpoint))
    part.rename(_endpoint_file(folder))
    await asyncio.Event().wait()


async def _replicas(folder: Path) -> None:
    fleet = LocalFleet(SECRET, lambda: _locate(folder))
    await PoolManager(fleet, SECRET, lambda: _locate(folder), NODE).run()


async def _ingress(folder: Path) -> None:
    gateway = ClusterGateway(SECRET, lambda: _locate(folder), NODE, f"ingress-{os.getpid()}", 1000)
    gateway.start()
    app = build_app(gateway, IngressSettings(auth_enabled=False))
    Listener(app, int((folder / "port").read_text()), 1000).start()
    await asyncio.Event().wait()


async def _locate(folder: Path) -> Endpoint:
    """Where the scheduler listens; an endpoint of one that was killed is refused when it is dialed."""
    try:
        return msgspec.json.decode(_endpoint_file(folder).read_bytes(), type=Endpoint)
    except (FileNotFoundError, msgspec.DecodeError) as none:
        raise ChannelError("no scheduler has said where it listens") from none


_PARTS: Final = {"scheduler": _scheduler, "replicas": _replicas, "ingress": _ingress}

if __name__ == "__main__":
    asyncio.run(_PARTS[sys.argv[1]](Path(sys.argv[2])))
