"""Which row each subject has: known here, so that sqlite needs no index of keys.

Task ids are random, so an index of them is a tree that each new one changes somewhere else: most of the pages that an
admission would write. Rows are numbered in the order in which their subjects come up, and new ones lie side by side.
"""

from collections.abc import Iterable

from orchestrator.cluster.journal.rows import TABLES, Subject


class Places:
    """The row numbers of all subjects that have a row, or had one in a transaction that failed.

    A number is given once and stays until its row is known to be gone, whatever becomes of transactions between.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, dict[bytes, int]] = {table: {} for table in TABLES}
        self._last = 0

    def found(self, subject: Subject, number: int) -> None:
        """A row was read."""
        table, key = subject
        self._numbers[table][key] = number
        self._last = max(self._last, number)

    def given(self, subject: Subject) -> int:
        """The number of a subject's row; a new one if it has none."""
        table, key = subject
        number = self._numbers[table].get(key)
        if number is None:
            number = self._last = self._numbers[table][key] = self._last + 1
        return number

    def known(self, subject: Subject) -> int | None:
        """The number of a subject's row; None if there is no such row."""
        table, key = subject
        return self._numbers[table].get(key)

    def gone(self, subjects: Iterable[Subject]) -> None:
        """That there are no such rows any more is durable."""
        for table, key in subjects:
            self._numbers[table].pop(key, None)
