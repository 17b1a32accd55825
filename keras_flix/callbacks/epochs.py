"""In which epochs a callback does its work."""

from __future__ import annotations


def checked_epochs(every: int) -> int:
    """The number of epochs; raises unless it is positive."""
    if every < 1:
        raise ValueError(
            "`every` must be a positive number of epochs. Received: "
            f"every={every}. 1 is each epoch."
        )
    return every
