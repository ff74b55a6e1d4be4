"""What a conformance case is: a name, what it shows, what it needs, and how it is run."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

S = TypeVar("S")


class NotConformingError(AssertionError):
    """An adapter does not do what the protocol asks for; the message says what it did instead."""


def expect(condition: object, message: str) -> None:
    """Fail the case with `message` unless `condition` holds."""
    if not condition:
        raise NotConformingError(message)


class Case(Generic[S]):
    """One case. `needs` are capabilities: where an engine lacks one, the case does not apply and says why."""

    def __init__(self, name: str, about: str, needs: tuple[str, ...], run: Callable[[S], Awaitable[None]]) -> None:
        self.name = name
        self.about = about
        self.needs = needs
        self.run = run


class CaseBook(Generic[S]):
    """The cases of one kind, in the order in which they are written down."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.cases: list[Case[S]] = []

    def case(self, *needs: str) -> Callable[[Callable[[S], Awaitable[None]]], Callable[[S], Awaitable[None]]]:
        """Enter a coroutine function under its name; its docstring says what it shows."""

        def enter(run: Callable[[S], Awaitable[None]]) -> Callable[[S], Awaitable[None]]:
            about = (run.__doc__ or "").strip()
            self.cases.append(Case(f"{self.kind}.{run.__name__}", about, needs, run))
            return run

        return enter
