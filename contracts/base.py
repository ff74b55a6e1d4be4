"""What every event, command and channel message is made of: frozen, tagged msgspec structs."""

from msgspec import Struct


class Event(Struct, frozen=True, tag=True, gc=False):
    """Something that happened; told to the core once, with the time it was learnt."""


class Command(Struct, frozen=True, tag=True, gc=False):
    """Something the shell must do. Carries the set's id, so that sets can live on other shards.

    Commands that choose say why in one line: `why` is made of their fields, so it costs nothing unread.
    """

    set_id: str


class Frame(Struct, frozen=True, tag=True, gc=False):
    """Base of every channel message."""
