"""Optional dependencies, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str, what: str, extra: str) -> Any:
    """A module of an optional dependency.

    Args:
        module: Its full name.
        what: What needs it, for the error.
        extra: The extra of this package that installs it.

    Raises:
        ImportError: If it is not installed.

    >>> needed("nothing.at_all", "The example", "plots")
    Traceback (most recent call last):
    ...
    ImportError: The example needs the package nothing, ...
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{what} needs the package {module.partition('.')[0]}, which is not "
            f"installed. Install it with: pip install 'keras-flix[{extra}]'"
        ) from error
