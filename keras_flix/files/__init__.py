"""Adapters outside of a model: files, the base they belong to, hubs."""

from typing import TYPE_CHECKING

from keras_flix._utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from keras_flix.files.adapter_file import (
        Adapters as Adapters,
        read_adapters as read_adapters,
    )

ORIGINS = {
    "Adapters": "keras_flix.files.adapter_file",
    "read_adapters": "keras_flix.files.adapter_file",
}
__all__ = sorted(ORIGINS)
if not TYPE_CHECKING:
    # Type checkers would take any name for one of the package.
    __getattr__, __dir__ = lazy_names(__name__, ORIGINS)
