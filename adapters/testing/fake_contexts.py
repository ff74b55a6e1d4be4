"""What the fake engine's slots hold of earlier prompts, and its files: `/slots/N?action=save|restore|erase`.

As in llama-server a slot that there is not is taken for another, and a failed restore leaves a slot empty. Of a
context only the prompt counts.
"""

import itertools
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

import msgspec

_REFUSED: Final = "invalid_request_error"
_decode_tokens = msgspec.json.Decoder(list[int]).decode


class SlotContexts:
    """Contexts by slot. `folder` is where they are saved, if they can be; that takes `pause_ms`."""

    def __init__(self, slots: int, folder: str, pause_ms: float) -> None:
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._folder = Path(folder) if folder else None
        self.pause_s = pause_ms / 1000

    def begin(self, slot: int, tokens: list[int], reuse: bool) -> int:
        """A prompt goes into a slot; how much of it was there already. The last token is always computed."""
        held = self._held[slot % len(self._held)]
        pairs = zip(held, tokens[:-1], strict=False)
        cached = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)) if reuse else 0
        held[:] = tokens
        return cached

    def act(self, slot: int, query: str, filename: object) -> tuple[int, dict[str, object]]:
        """Status and body of the answer."""
        action = parse_qs(query).get("action", [""])[0]
        held = self._held[slot % len(self._held)]
        if action == "erase":
            erased = len(held)
            held.clear()
            return 200, {"id_slot": slot, "n_erased": erased}
        if self._folder is None:
            return _refusal(
                501,
                "not_supported_error",
                "This server does not support slots action. Start it with `--slot-save-path`",
            )
        if not isinstance(filename, str) or not filename or "/" in filename:
            return _refusal(400, _REFUSED, "Invalid filename")
        if action == "save":
            return self._save(slot, held, self._folder / filename)
        if action == "restore":
            return self._restore(slot, held, self._folder / filename)
        return _refusal(400, _REFUSED, "Invalid action")

    def _save(self, slot: int, held: list[int], path: Path) -> tuple[int, dict[str, object]]:
        try:
            written = path.write_bytes(msgspec.json.encode(held))
        except OSError:
            return _refusal(500, "server_error", "Unable to save slot")
        return 200, {"id_slot": slot, "filename": path.name, "n_saved": len(held), "n_written": written}

    def _restore(self, slot: int, held: list[int], path: Path) -> tuple[int, dict[str, object]]:
        held.clear()
        try:
            data = path.read_bytes()
            held[:] = _decode_tokens(data)
        except (OSError, msgspec.DecodeError):
            return _refusal(400, _REFUSED, "Unable to restore slot: invalid slot save file")
        return 200, {"id_slot": slot, "filename": path.name, "n_restored": len(held), "n_read": len(data)}


def _refusal(status: int, kind: str, message: str) -> tuple[int, dict[str, object]]:
    return status, {"error": {"code": status, "message": message, "type": kind}}
