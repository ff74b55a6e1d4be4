"""A report as text."""

from adapters.testing.determinism.suite import Report

_SHOWN_MAX = 10


def summary(report: Report) -> str:
    """Counts of every scenario, what did not apply and why, what differed and where it was written."""
    key, ledger = report.key, report.ledger
    lines = [
        f"{key.engine_version} on {key.hardware}",
        f"  model {key.model_digest}, sampler profile {key.sampler_profile_version}, "
        f"2 replicas of {report.slots} slots, arguments: {' '.join(key.arguments) or 'none'}",
        "  scenario           seeds prompts compared reused differ failed seconds",
    ]
    for name, count in ledger.counts.items():
        numbers = f"{len(count.seeds):>6}{len(count.prompts):>8}{count.comparisons:>9}{count.reused:>7}"
        numbers += f"{count.differences:>7}{count.failures:>7}{report.seconds.get(name, 0.0):>8.1f}"
        lines.append(f"  {name:<18}{numbers}  {count.note}".rstrip())
    lines.append(f"  goldens: {report.golden}")
    lines += [f"  not applicable: {what}: {why}" for what, why in ledger.not_applicable.items()]
    lines += [f"  failed: {failure}" for failure in ledger.failures[:_SHOWN_MAX]]
    for difference in ledger.differences[:_SHOWN_MAX]:
        where = difference.where
        lines.append(
            f"  differs: {difference.scenario}, {difference.prompt_id}, seed {difference.seed}, token "
            f"{where.token_index}: expected {where.expected[:40]!r}, found {where.found[:40]!r}"
        )
    if report.artefacts:
        lines.append(f"  {len(report.artefacts)} differences written to {report.artefacts[0].parent}")
    verdict = "byte-exact" if report.green else "NOT byte-exact"
    return "\n".join([*lines, f"  {verdict}: {ledger.comparisons} comparisons in {sum(report.seconds.values()):.0f} s"])


def totals(reports: list[Report]) -> str:
    """All engines in one line."""
    counts = [count for report in reports for count in report.ledger.counts.values()]
    seeds = {seed for count in counts for seed in count.seeds}
    prompts = {prompt for count in counts for prompt in count.prompts}
    names = {name for report in reports for name in report.ledger.counts}
    red = sum(not report.green for report in reports)
    return (
        f"{len(reports)} engines x {len(names)} scenarios x {len(seeds)} seeds x {len(prompts)} prompts: "
        f"{sum(count.comparisons for count in counts)} comparisons, "
        f"{sum(count.differences for count in counts)} differences, {red} engines red"
    )
