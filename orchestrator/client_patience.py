"""How often the client tries again, and how long it waits between: exponential backoff with a bound."""

import asyncio
from typing import Final

#: Attempts in a row that bring nothing before it is given up. Where nothing of the service was ever heard, the URL may
#: be wrong; a service that was has about a minute to be there again.
ATTEMPTS_MAX: Final = 6
ATTEMPTS_AGAIN_MAX: Final = 16
#: The pause after the first attempt. Each is twice as long as the one before, up to so many times the first.
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_RATIO_MAX: Final = 25


class Patience:
    """Of one submission or one stream, over all its connections."""

    __slots__ = ("_first_s", "fruitless")

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        #: Attempts in a row that brought nothing.
        self.fruitless = 0

    def failed(self, *, brought_something: bool) -> None:
        """Count an attempt that did not reach its end."""
        self.fruitless = 1 if brought_something else self.fruitless + 1

    def is_over(self, *, was_heard: bool) -> bool:
        """Whether the last attempt was one too many; `was_heard`: the service itself answered something before."""
        return self.fruitless >= (ATTEMPTS_AGAIN_MAX if was_heard else ATTEMPTS_MAX)

    async def wait(self, asked_s: float = 0.0) -> None:
        """Before the next attempt; at least for as long as the service asks, within the longest pause."""
        pause_s = max(self._first_s * 2 ** (self.fruitless - 1), asked_s)
        await asyncio.sleep(min(pause_s, self._first_s * BACKOFF_RATIO_MAX))
