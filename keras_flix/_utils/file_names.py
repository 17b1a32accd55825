"""Names of files from any text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

DEVICES = re.compile(r"(?i)con|prn|aux|nul|(com|lpt)[0-9]")
"""Names that Windows keeps for devices, whatever follows a dot; some are languages."""


def file_names(
    texts: Iterable[str], other: str, taken: Iterable[str] = (), dots: bool = True
) -> list[str]:
    """A name for each text, unique where case does not count.

    Every file system takes it, and servers as the name of a LoRA.

    Args:
        texts: What the names are made of.
        other: The name of what has no letter of ASCII.
        taken: Names that are others'.
        dots: Whether there may be dots.

    >>> file_names(["qa", "QA", "a/b", "", "nul"], "shared")
    ['qa', 'QA-2', 'a_b', 'shared', '_nul']
    """
    names: list[str] = []
    known = set(taken)
    allowed = "A-Za-z0-9._+-" if dots else "A-Za-z0-9_+-"
    for text in texts:
        safe = re.sub(f"[^{allowed}]", "_", text)[:100].strip(".") or other
        if DEVICES.fullmatch(safe.partition(".")[0]):
            safe = f"_{safe}"
        name = safe
        for number in itertools.count(2):
            if name.casefold() not in known:
                break
            name = f"{safe}-{number}"
        known.add(name.casefold())
        names.append(name)
    return names
