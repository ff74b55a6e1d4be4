"""What may not change a byte: company, another process, the prompt's cache, a new process (ORCH-3045, ORCH-3050).

Each scenario compares with the reference, which is every task by itself on replica A. Work on A and on B goes on at
the same time where it can: they are two processes, and that is how a set runs.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from adapters.testing.determinism.bench import REFERENCE, Bench
from adapters.testing.determinism.failover import failover
from adapters.testing.determinism.replicas import Replica, all_of
from adapters.testing.determinism.tasks import Plan, Task
from adapters.testing.determinism.transcript import Recording, Transcript
from contracts.engine import EngineError

Scenario = Callable[[Bench, str], Awaitable[None]]


async def alone(bench: Bench, name: str) -> None:
    """Every task by itself: on A for the reference, on B to compare, in another order there.

    A goes prompt by prompt and B seed by seed, so that what their caches hold differs all along.
    """
    tasks = bench.plan.tasks(bench.prompts)
    by_prompt = [task for prompt in bench.prompts for task in tasks if task.prompt_id == prompt]
    found: dict[str, tuple[Task, Transcript]] = {}

    def keep(task: Task, transcript: Transcript) -> None:
        found[task.name] = (task, transcript)

    await all_of(
        bench.make_reference(by_prompt),
        bench.b.run_all(tasks, 1, keep, lambda task, why: bench.lost(name, bench.b, task, why)),
    )
    for task, transcript in found.values():
        bench.compare(name, bench.b, task, transcript)


async def concurrent(bench: Bench, name: str) -> None:
    """All slots in use on both replicas, prompts and lengths mixed; seeds get other prompts on B, in another order."""
    if bench.slots == 1:
        await _one_at_a_time(bench, name)
        return
    bench.ledger.count(name).note = f"{bench.slots} slots in use"
    await all_of(
        bench.compare_all(name, bench.a, bench.plan.dealt(bench.prompts, 0), bench.slots),
        bench.compare_all(name, bench.b, bench.plan.dealt(bench.prompts, 4)[::-1], bench.slots),
    )


async def _one_at_a_time(bench: Bench, name: str) -> None:
    """An engine whose batches are not exact is exact because it has none: a second task is refused (OC-TEST-7002)."""
    first = max(bench.plan.tasks(bench.prompts), key=lambda task: task.request.max_tokens)
    refused: list[str] = []
    begun = asyncio.Event()
    running = asyncio.create_task(bench.a.run(first, Recording(begun.set)))
    waiting = asyncio.create_task(begun.wait())
    try:
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            try:
                await bench.a.run(first)
            except EngineError as error:
                refused.append(error.info.code)
        bench.compare(name, bench.a, first, await running)
    except (EngineError, TimeoutError) as error:
        bench.lost(name, bench.a, first, str(error))
    finally:
        waiting.cancel()
        running.cancel()
        await asyncio.gather(waiting, running, return_exceptions=True)
    if refused == ["REPLICA_EXHAUSTED"]:
        reason = "one task at a time: serialised by the adapter, and REPLICA_EXHAUSTED proven for a second task"
        bench.ledger.passes_over(name, reason)
    else:
        bench.ledger.fail(
            name, f"a second task had to be refused beside the first, and was not ({refused or 'served'})"
        )


async def cache_off(bench: Bench, name: str) -> None:
    """Prompts computed anew, half of the tasks on either replica; the reference had most of them cached."""
    tasks = [task.cold() for task in bench.plan.dealt(bench.prompts, 1)]

    def compare_on(replica: Replica) -> Callable[[Task, Transcript], None]:
        def compare(task: Task, found: Transcript) -> None:
            bench.compare(name, replica, task, found)
            if found.tokens_cached:
                bench.ledger.fail(name, f"{task.prompt_id}/{task.seed}: {found.tokens_cached} cached tokens were used")

        return compare

    def lost_on(replica: Replica) -> Callable[[Task, str], None]:
        return lambda task, why: bench.lost(name, replica, task, why)

    await all_of(
        *(
            replica.run_all(tasks[half::2], 1, compare_on(replica), lost_on(replica))
            for half, replica in enumerate((bench.a, bench.b))
        )
    )


async def cache_of_a_part(bench: Bench, name: str) -> None:
    """On A a prompt that goes on where an earlier one ended, on B the whole of it, computed anew."""
    pairs = bench.plan.continuations()
    cached: dict[int, Transcript] = {}
    whole: dict[int, Transcript] = {}

    async def go_on() -> None:
        for begin, task in pairs:
            await bench.a.run(Task(task.prompt_id, task.seed, begin))
            cached[task.seed] = await bench.a.run(task)

    async def anew() -> None:
        for _, task in pairs:
            whole[task.seed] = await bench.b.run(task.cold())

    try:
        await all_of(go_on(), anew())
    except (EngineError, TimeoutError) as error:
        bench.ledger.fail(name, str(error))
        return
    for _, task in pairs:
        bench.ledger.compare(name, bench.a.name, task, whole[task.seed], cached[task.seed])
    if not bench.ledger.count(name).reused:
        bench.ledger.passes_over(f"{name} (reuse)", "the engine reports no cached tokens; compared all the same")


async def restarted(bench: Bench, name: str) -> None:
    """B ends and another process takes its place."""
    if bench.b.spec.endpoint:
        bench.ledger.passes_over(name, "attached to a server that is not this side's to end")
        return
    await bench.b.restart()
    await bench.compare_all(name, bench.b, bench.plan.dealt(bench.prompts, 3), 1)


#: By name, in the order in which they are run. Goldens are compared after the first.
SCENARIOS: Final[dict[str, Scenario]] = {
    REFERENCE: alone,
    "concurrent": concurrent,
    "cache off": cache_off,
    "cache of a part": cache_of_a_part,
    "restart": restarted,
    "failover": failover,
}


def chosen(plan: Plan) -> dict[str, Scenario]:
    """The plan's scenarios; the reference is always among them. Raises ValueError for one that there is not."""
    unknown = sorted(set(plan.scenarios) - SCENARIOS.keys())
    if unknown:
        raise ValueError(f"there is no scenario {unknown[0]!r}; there is: {', '.join(SCENARIOS)}")
    return {name: run for name, run in SCENARIOS.items() if not plan.scenarios or name in (REFERENCE, *plan.scenarios)}
