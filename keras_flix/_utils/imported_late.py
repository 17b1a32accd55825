"""What is imported when it is used: what many things do that need no Keras."""

from __future__ import annotations

import importlib
from typing import Any


def imported_late(name: str) -> Any:
    """What a module defines, imported now: the module before the colon.

    >>> imported_late("json.decoder:JSONDecoder")
    <class 'json.decoder.JSONDecoder'>
    """
    module, _, own = name.partition(":")
    return getattr(importlib.import_module(module), own)
