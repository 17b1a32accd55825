"""What is on or off."""

from __future__ import annotations

from typing import Any


def checked_switch(name: str, value: Any) -> bool:
    """`value` as a bool; raises unless it is true or false (1 and 0 are, too).

    A text such as `"no"`, out of a file, would be true, and `None` false.

    Args:
        name: What the argument is called, for messages.
        value: What was given.
    """
    # Not of arrays, which have as many answers as entries.
    if getattr(value, "shape", ()) or value not in (True, False):
        raise ValueError(
            f"`{name}` must be true or false. Received: {name}={value!r}. Write one "
            "of them, without quotes."
        )
    return bool(value)
