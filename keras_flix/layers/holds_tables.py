"""`HoldsTables`: a layer that has tables of adapters among its variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras

from keras_flix import _compat

if TYPE_CHECKING:
    from keras_flix.layers.low_rank_kernel import LowRankKernel


class HoldsTables(_compat.BaseVariablesCheck, _compat.KeepsFrozen):
    """Mixin of layers with adapted kernels; the layer class comes after it."""

    plain_class: type

    # Methods: Keras' files follow all attributes and properties that hold layers.
    def adapted_kernels(self) -> Mapping[str, LowRankKernel]:
        """The adapted kernels by a name that is unique in the layer."""
        raise NotImplementedError

    def adapter_variables(self) -> dict[str, keras.Variable]:
        """The variables of all tables by a name that is unique in the layer."""
        return {
            f"flix_{name}{rest}": variable
            for name, kernel in self.adapted_kernels().items()
            for full, variable in kernel._tables.named_variables.items()
            for rest in [full.removeprefix("flix_")]
        }

    def _adapter_flags(self) -> list[_compat.Flagged]:
        return [self, *self.adapter_variables().values()]

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        for name, variable in self.adapter_variables().items():
            store[name] = variable
        store["flix_schema"] = self._any_tables.stamp()

    def load_own_variables(self, store: Any) -> None:
        saved = {name: store[name] for name in store.keys()}
        base = {n: v for n, v in saved.items() if not n.startswith("flix_")}
        tables = {n: v for n, v in saved.items() if n.startswith("flix_")}
        stamp = tables.pop("flix_schema", None)
        if stamp is not None:
            self._any_tables.check_stamp(stamp, self.path)
        own = self.adapter_variables()
        expected = {n: tuple(v.shape) for n, v in own.items()}
        found = {n: tuple(v.shape) for n, v in tables.items()}
        # Without any, these are plain base weights: the adapters stay as they are.
        if tables and expected != found:
            raise ValueError(
                f"The adapters in a weights file must match layer {self.path!r}. "
                f"Expected: {expected}. Received: {found}. Load it into a model "
                "adapted with the same features and ranks."
            )
        super().load_own_variables(base)
        for name in tables:
            own[name].assign(tables[name])

    @property
    def _any_tables(self) -> Any:
        # The features are the same for all of a layer's kernels.
        return next(iter(self.adapted_kernels().values()))._tables
