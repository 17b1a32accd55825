"""What Keras' files call classes of this package, known to Keras without them.

A saved model names its classes, `keras_flix>FlixDense`. Keras looks the names up in
its registry, where the decorator of a class puts it once its module is imported. Until
then a stand-in is there, which imports the module when a file asks for the class.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

BACKENDS = (
    "Adapters need one of the backends 'jax', 'tensorflow' and 'torch': set "
    "KERAS_BACKEND, or `backend` in Keras' file keras.json, to one of these."
)
"""Keras' own error for the name of a backend that it does not know lists none."""


def register(origins: Mapping[str, str]) -> None:
    """Puts stand-ins into Keras' registry: now, or once Keras is imported.

    Args:
        origins: By registered name, `package>Name`, the module of the class.
    """
    after_import("keras", lambda: _register(origins), BACKENDS)


def _register(origins: Mapping[str, str]) -> None:
    registry = importlib.import_module("keras").saving.get_custom_objects()
    for name, module in origins.items():
        # The class itself, if it is there already.
        registry.setdefault(name, _stand_in(name, module))


def _stand_in(name: str, module: str) -> type:
    class_name = name.rpartition(">")[2]

    def from_config(cls: type, config: dict[str, Any]) -> Any:
        return getattr(importlib.import_module(module), class_name).from_config(config)

    return type(class_name, (), {"from_config": classmethod(from_config)})


def after_import(name: str, action: Callable[[], None], note: str = "") -> None:
    """Does something now if a module is imported, or else right after it will be.

    A ValueError of that import gets the note.
    """
    # None is how tests keep a module from being imported.
    if sys.modules.get(name) is not None:
        action()
    else:
        sys.meta_path.insert(0, _Watcher(name, action, note))


class _Watcher:
    """Finds one module by the finders behind it, and acts once it has run."""

    def __init__(self, name: str, action: Callable[[], None], note: str) -> None:
        self.name, self.action, self.note = name, action, note

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            # Another import may find it yet.
            sys.meta_path.insert(0, self)
            return None
        run = spec.loader.exec_module

        def run_and_act(module: Any) -> None:
            try:
                run(module)
            except ValueError as error:
                if self.note:
                    error.add_note(self.note)
                raise
            self.action()

        spec.loader.exec_module = run_and_act  # type: ignore[method-assign]
        return spec
