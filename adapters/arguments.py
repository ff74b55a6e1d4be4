"""What a pool's extra arguments tell an engine, as far as it changes what the engine takes."""

from collections.abc import Sequence


def last_value(arguments: Sequence[str], *names: str) -> str | None:
    """The value of the last argument that goes by one of `names`; None where there is none.

    A value is the next word, or follows an equals sign.
    """
    found = None
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            found = value if equals else next(iter(arguments[index + 1 : index + 2]), None)
    return found
