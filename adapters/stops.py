"""Stop strings for engines that leave them in the text: cut out as it streams, wherever frames break them."""

from collections.abc import Sequence


class StopCutter:
    """Feed it text, get what can be sent: all up to the first stop string, or up to what may become one.

    Of several stop strings the one that ends first counts, of those the one that begins first. Holds back less text
    than the longest stop string is long.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._beginnings = tuple({stop[0] for stop in stops})
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that is safe to send. Once `matched` is set, nothing more is."""
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        text = self._held + text
        for beginning in self._beginnings:
            if beginning in text:
                break
        else:  # the usual case
            self._held = ""
            return text
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if found:
            end, _, self.matched = min(found)
            self._held = ""
            return text[: end - len(self.matched)]
        held = next((n for n in range(min(self._longest - 1, len(text)), 0, -1) if self._may_begin(text[-n:])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, when the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)
