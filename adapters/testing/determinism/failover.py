"""An engine is killed while it streams, the other replica does the work again (ORCH-3050).

What had been delivered must be how the second text begins, byte for byte: that is what lets a service go on with a
stream after its engine died.
"""

import asyncio

from adapters.testing.determinism.bench import Bench
from adapters.testing.determinism.replicas import Replica, all_of
from adapters.testing.determinism.tasks import Task
from adapters.testing.determinism.transcript import Recording, Transcript
from contracts.engine import EngineError

#: Engines that take longer to come up are killed less often.
_LAUNCH_SLOW_S = 20.0
_KILLS_OF_SLOW_MAX = 2
#: Engines are killed earlier and later in a stream, in turn.
_TOKENS_BEFORE_MAX = 4


async def failover(bench: Bench, name: str) -> None:
    """Kill A with all slots in use, as often as the plan has it; B does over what A had, and A comes up again."""
    if bench.a.spec.endpoint or bench.a.pid is None:
        bench.ledger.passes_over(name, "the engine's process is not this side's to kill")
        return
    kills = min(bench.plan.kills, _KILLS_OF_SLOW_MAX) if bench.a.launch_s > _LAUNCH_SLOW_S else bench.plan.kills
    tasks = bench.plan.dealt(bench.prompts, 5)
    # Engines of one slot would take a kill for every task; the longest have most to lose.
    if bench.slots == 1:
        tasks.sort(key=lambda task: -task.request.max_tokens)
    groups = [tasks[at : at + bench.slots] for at in range(0, len(tasks), bench.slots)][:kills]
    interrupted = 0
    for turn, group in enumerate(groups):
        interrupted += await _one_kill(bench, name, group, tokens=1 + turn % _TOKENS_BEFORE_MAX)
    bench.ledger.count(name).note = f"{len(groups)} kills, {interrupted} streams cut after their first token"
    if interrupted == 0:
        bench.ledger.fail(name, "no stream was under way when its engine was killed, so nothing was proven")


async def _one_kill(bench: Bench, name: str, group: list[Task], tokens: int) -> int:
    """How many streams had delivered something and were cut."""
    parts = await _killed(bench, name, bench.a, group, tokens)
    again: dict[str, Transcript] = {}

    def keep(task: Task, found: Transcript) -> None:
        again[task.name] = found

    await all_of(
        bench.b.run_all(group, bench.slots, keep, lambda task, why: bench.lost(name, bench.b, task, why)),
        bench.a.restart(),
    )
    for task in group:
        found = again.get(task.name)
        if found is None:
            continue
        bench.compare(name, bench.b, task, found)
        delivered = parts[task.name].so_far()
        if delivered.tokens:
            bench.ledger.compare(name, bench.b.name, task, delivered, found.cut_like(delivered))
    return sum(0 < part.tokens < again[key].tokens for key, part in parts.items() if key in again)


async def _killed(bench: Bench, name: str, replica: Replica, group: list[Task], tokens: int) -> dict[str, Recording]:
    """What each stream had delivered when the engine was killed: once half of them had so many tokens."""
    enough = (len(group) + 1) // 2
    parts: dict[str, Recording] = {}

    def kill_when_enough() -> None:
        if sum(part.tokens >= tokens for part in parts.values()) == enough and replica.pid is not None:
            replica.kill()

    async def stream(task: Task) -> None:
        try:
            await replica.run(task, parts[task.name])
        except EngineError as error:
            if error.info.code != "WORKER_RESET":
                bench.lost(name, replica, task, f"WORKER_RESET was due for a killed engine, and not {error}")
        except TimeoutError:
            bench.lost(name, replica, task, "the stream of a killed engine did not end")

    parts.update((task.name, Recording(kill_when_enough)) for task in group)
    await asyncio.gather(*(stream(task) for task in group))
    return parts
