"""Names of files from any text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable


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

    >>> file_names(["qa", "QA", "a/b", ""], "shared")
    ['qa', 'QA-2', 'a_b', 'shared']
    """
    names: list[str] = []
    known = set(taken)
    allowed = "A-Za-z0-9._+-" if dots else "A-Za-z0-9_+-"
    for text in texts:
        name = safe = re.sub(f"[^{allowed}]", "_", text)[:100].strip(".") or other
        for number in itertools.count(2):
            if name.casefold() not in known:
                break
            name = f"{safe}-{number}"
        known.add(name.casefold())
        names.append(name)
    return names
