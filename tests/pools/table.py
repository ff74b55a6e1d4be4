"""The table that `make test-pools` prints: what was killed in which state, and how long it took to be back."""


class Table:
    """Rows of (what, state, figure, note)."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, str]] = []

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, what: str, state: str, seconds: float, note: str = "") -> None:
        self._rows.append((what, state, f"{seconds:.2f} s", note))

    def lines(self) -> list[str]:
        head = ("what happened", "while", "took", "")
        rows = [head, *self._rows]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


TABLE = Table()
