"""Which session's context each slot holds, and which contexts lie in files (ORCH-3009, ORCH-3021, ORCH-3023).

A session goes back to the slot that holds its context. Where that slot is needed for another one, the context is to
be saved first, and to be restored when the session comes again. This is the bookkeeping alone; sessions go by the
names of their files. A context is in one place at a time: what goes into a slot leaves its file, and the other way
round. Whatever is wrong here can only cost time, since the engine itself compares a prompt with what a slot holds.
"""

import hashlib
from collections import OrderedDict
from typing import Final

#: Fewer tokens are computed anew about as fast.
SAVED_TOKENS_MIN: Final = 256
FILES_MAX: Final = 64
FILES_BYTES_MAX: Final = 1024 * 1024 * 1024
#: No session lives longer without a task (ORCH-3021), so that older contexts belong to nobody.
KEPT_NS_MAX: Final = 600 * 1_000_000_000


def session_name(session_id: str) -> str:
    """What stands for a session in file names: a digest, since an id is the client's own; "" for no session."""
    return hashlib.sha256(session_id.encode(errors="surrogatepass")).hexdigest() if session_id else ""


class Turn:
    """An attempt's time in a slot. `tokens` is how many the slot is known to hold of the session's context.

    Before the prompt is sent, the context of `save` is to be saved and that of `restore` to be restored; "": none.
    """

    __slots__ = ("name", "restore", "save", "slot", "tokens")

    def __init__(self, slot: int, name: str) -> None:
        self.slot = slot
        self.name = name
        self.save = ""
        self.restore = ""
        self.tokens = 0


class _Held:
    """What a slot holds; no name: nobody's context."""

    __slots__ = ("name", "tokens", "used_ns")

    def __init__(self) -> None:
        self.name = ""
        self.tokens = 0
        self.used_ns = 0


class _File:
    """A saved context. It is busy while it is written or read, and then stays."""

    __slots__ = ("busy", "saved_ns", "size_bytes")

    def __init__(self, size_bytes: int, saved_ns: int) -> None:
        self.size_bytes = size_bytes
        self.saved_ns = saved_ns
        self.busy = True


class Sessions:
    """The sessions of one engine process. Without `saves` nothing is ever to be saved.

    `token_bytes` is what a token takes in a file, as far as it is known beforehand.
    """

    def __init__(self, slots: int, *, saves: bool, token_bytes: int = 0) -> None:
        self._saves = saves
        self._token_bytes = token_bytes
        self._held = [_Held() for _ in range(slots)]
        self._files: OrderedDict[str, _File] = OrderedDict()  # least recently saved first

    @property
    def files(self) -> list[str]:
        """The names of the files that are of use, those under way included."""
        return list(self._files)

    @property
    def files_bytes(self) -> int:
        """What the files take; of those under way what they are expected to."""
        return sum(file.size_bytes for file in self._files.values())

    def file_bytes(self, name: str) -> int:
        """The size of the session's file, which there is."""
        return self._files[name].size_bytes

    def slot_of(self, name: str) -> int | None:
        """The slot that holds the session's context, or will when the attempt in it ends."""
        return next((n for n, held in enumerate(self._held) if name and held.name == name), None)

    def costly(self, now_ns: int) -> list[int]:
        """The slots whose contexts are worth keeping."""
        return [n for n, held in enumerate(self._held) if _is_kept(held, now_ns)]

    def begin(self, slot: int, name: str, now_ns: int) -> Turn:
        """A free slot is given to an attempt of the session; `end` is to follow."""
        self._expire(now_ns)
        turn, held = Turn(slot, name), self._held[slot]
        if name and held.name == name:
            turn.tokens = held.tokens
        else:
            file = self._files.get(name)
            if file is not None and not file.busy:
                file.busy = True
                turn.restore = name
            if self._saves and _is_kept(held, now_ns) and self._book(held.name, held.tokens, now_ns):
                turn.save = held.name
        self._disown(name)
        held.name, held.tokens, held.used_ns = name, turn.tokens, now_ns
        return turn

    def forget(self, name: str) -> None:
        """The session's context is not wanted any more, wherever it is."""
        self._disown(name)
        file = self._files.get(name)
        if file is not None and not file.busy:
            del self._files[name]

    def saved(self, turn: Turn, tokens: int, written_bytes: int) -> None:
        """The turn's `save` is done; nothing written: it failed."""
        name, turn.save = turn.save, ""
        file = self._files[name]
        # The session may have begun anew in another slot meanwhile.
        if written_bytes <= 0 or self.slot_of(name) is not None:
            del self._files[name]
            return
        file.size_bytes, file.busy = written_bytes, False
        self._token_bytes = max(self._token_bytes, -(-written_bytes // max(tokens, 1)))
        self._make_room(0, 0)

    def restored(self, turn: Turn, tokens: int) -> None:
        """The turn's `restore` is done, and the slot holds so many tokens; 0: it failed. The file is used up."""
        del self._files[turn.restore]
        turn.restore = ""
        turn.tokens = tokens

    def end(self, turn: Turn, now_ns: int) -> None:
        """The engine has let go of the slot. What was not done of the turn is given up."""
        if turn.save:
            del self._files[turn.save]  # perhaps half written
        if turn.restore and self.slot_of(turn.name) in (None, turn.slot):
            self._files[turn.restore].busy = False
        elif turn.restore:
            del self._files[turn.restore]
        held = self._held[turn.slot]
        if held.name == turn.name:  # else a later turn of the session took its place
            held.name = turn.name if turn.tokens else ""
            held.tokens, held.used_ns = turn.tokens, now_ns

    def _disown(self, name: str) -> None:
        for held in self._held:
            if name and held.name == name:
                held.name, held.tokens = "", 0

    def _expire(self, now_ns: int) -> None:
        while self._files:
            name, file = next(iter(self._files.items()))
            if file.busy or now_ns - file.saved_ns < KEPT_NS_MAX:
                return
            del self._files[name]

    def _book(self, name: str, tokens: int, now_ns: int) -> bool:
        """Make room for the session's file; False where there is none to be had."""
        before = self._files.get(name)
        if before is not None and before.busy:
            return False
        self._files.pop(name, None)
        size_bytes = tokens * self._token_bytes
        if size_bytes > FILES_BYTES_MAX or not self._make_room(1, size_bytes):
            return False
        self._files[name] = _File(size_bytes, now_ns)
        return True

    def _make_room(self, count: int, size_bytes: int) -> bool:
        """Drop files, the least recently saved first, until so many more fit; False where all others are busy."""
        while len(self._files) + count > FILES_MAX or self.files_bytes + size_bytes > FILES_BYTES_MAX:
            oldest = next((name for name, file in self._files.items() if not file.busy), None)
            if oldest is None:
                return False
            del self._files[oldest]
        return True


def _is_kept(held: _Held, now_ns: int) -> bool:
    return bool(held.name) and held.tokens >= SAVED_TOKENS_MIN and now_ns - held.used_ns < KEPT_NS_MAX
