"""Packages whose names come out of their modules on first use (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from keras_flix._utils.renamed import warn_renamed


def lazy_names(
    package: str, origins: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """What a package takes as its `__getattr__` and `__dir__`.

    Args:
        package: The package's own `__name__`.
        origins: By public name, the module that it is in; or the module that it
            is, where that ends in the name.
        renamed: Names of earlier versions, which warn, and what they are now.

    Returns:
        Both functions. `dir` lists the public names and nothing else.
    """

    def get(name: str) -> Any:
        if renamed is not None and name in renamed:
            now = renamed[name]
            warn_renamed(f"`{package}.{name}`", f"`{now}`")
            return getattr(sys.modules[package], now)
        if name not in origins:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(origins[name])
        whole = origins[name].rpartition(".")[2] == name and not hasattr(module, name)
        value = module if whole else getattr(module, name)
        # In place of a module of the same name, which the import has put there.
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(origins)
