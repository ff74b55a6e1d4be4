"""The actors that a service has by name, and how the scheduler among them is found."""

import asyncio
import contextlib
from typing import Any, Final

import ray

from contracts.messages import Endpoint
from orchestrator.cluster.connection import ChannelError

NAMESPACE: Final = "llorch"
MANAGER: Final = "pool-manager"
SCHEDULER: Final = "scheduler"
#: The second of the two leads when the first is gone, and the first stands by from then on.
STANDBY: Final = "scheduler-standby"
#: How long an answer of the scheduler's actors may take before they are asked once more.
ASK_AGAIN_S: Final = 0.25
#: What only the head node has: a lost GPU node must not take scheduler or manager along.
_ON_THE_HEAD: Final = {"node:__internal_head__": 0.001}


def node_id() -> str:
    return ray.get_runtime_context().get_node_id()  # type: ignore[no-any-return]


def only_one(name: str) -> dict[str, Any]:
    """Options of an actor that the service has one of: it outlives who started it, and Ray starts it again."""
    return {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "max_restarts": -1,
        "max_task_retries": 0,
        "num_cpus": 0,
        "resources": _ON_THE_HEAD,
    }


def schedulers() -> list[Any]:
    """Actors of the service on this cluster that lead or can take over; empty: there is no service."""
    found = []
    for name in (SCHEDULER, STANDBY):
        with contextlib.suppress(ValueError):
            found.append(ray.get_actor(name, namespace=NAMESPACE))
    return found


def find_secret() -> bytes | None:
    """The secret of the service that is on this cluster; None if there is none."""
    found = schedulers()
    if not found:
        return None
    secret: bytes = ray.get(found[0].secret.remote(), timeout=60)
    return secret


async def locate_scheduler() -> Endpoint:
    """Where the scheduler listens now. Raises ChannelError when none of its actors can be asked.

    Whoever stands by answers once it leads. Both are asked again while an answer is due: a call that the last leader's
    death met fails a second later or more, when the next one would have been answered long ago.
    """
    asked: set[asyncio.Future[Endpoint]] = set()
    try:
        actors = schedulers()
        if not actors:
            raise ChannelError("there is no scheduler actor; `llorch up` starts one")
        while True:
            asked |= {asyncio.wrap_future(actor.endpoint.remote().future()) for actor in actors}
            answered, asked = await asyncio.wait(asked, timeout=ASK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
            # Failures last: of calls that end together one answer is enough.
            for answer in sorted(answered, key=lambda each: each.exception() is not None):
                if answer.exception() is None or not asked:
                    return answer.result()
    except ray.exceptions.RayError as failed:
        raise ChannelError(f"the scheduler actor does not answer: {failed}") from failed
    finally:
        for answer in asked:
            answer.cancel()
