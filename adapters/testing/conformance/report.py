"""What a conformance run found: a line a case, and a table of engines."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

Verdict = Literal["passed", "failed", "not applicable"]


class Result(Struct, frozen=True):
    """One case with one engine. `reason` is why it failed, or why it does not apply."""

    engine: str
    case: str
    verdict: Verdict
    reason: str = ""
    wall_ms: float = 0.0


def table(results: Iterable[Result]) -> str:
    """Engines with their counts, then every case that failed or does not apply, with its reason."""
    results = list(results)
    engines = list(dict.fromkeys(result.engine for result in results))
    width = max((len(engine) for engine in engines), default=6)
    lines = [f"{'engine':<{width}}  passed  failed  not applicable  cases   wall s"]
    for engine in engines:
        own = [result for result in results if result.engine == engine]
        count = Counter(result.verdict for result in own)
        wall_s = sum(result.wall_ms for result in own) / 1000
        lines.append(
            f"{engine:<{width}}  {count['passed']:>6}  {count['failed']:>6}  {count['not applicable']:>14}"
            f"  {len(own):>5}  {wall_s:>7.1f}"
        )
    for verdict in ("not applicable", "failed"):
        named = [result for result in results if result.verdict == verdict]
        if named:
            lines += ["", f"{verdict}:", *(f"  {one.engine}: {one.case}: {one.reason}" for one in named)]
    total = Counter(result.verdict for result in results)
    lines += [
        "",
        f"{len(results)} cases with {len(engines)} engines: {total['passed']} passed, {total['failed']} failed, "
        f"{total['not applicable']} not applicable",
    ]
    return "\n".join(lines)
