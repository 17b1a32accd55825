"""Embeddings some rows of which train whole, as those of new tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.active_scope import is_routed, layers_off
from keras_flix.layers.checks import check_runs_once

EMBEDDINGS = (
    keras.layers.Embedding,
    keras.layers.ReversibleEmbedding,
    keras_hub.layers.ReversibleEmbedding,
)
"""The stock classes of token embeddings."""
ROWS, COLUMNS = "flix_token_rows", "flix_token_columns"
IDS = "flix_token_ids"


def names_of_rows(layer: Any) -> list[str]:
    """What the rows of a stock embedding will be called, by its path."""
    tied = getattr(layer, "tie_weights", True)
    return [f"{layer.path}/{name}" for name in ([ROWS] if tied else [ROWS, COLUMNS])]


class TokenRows(_compat.BaseVariablesCheck):
    """Mixin of an embedding of which some tokens' rows train; the class comes after it.

    The base's embeddings stay as they are, and frozen. The rows are variables of their
    own, `(tokens, output_dim)` in float32, that take the place of the base's: where
    tokens are looked up, and in a tied output head. Where the head has weights of its
    own (`tie_weights=False`), there are rows in place of its columns, too.
    """

    plain_class: Any
    token_ids: np.ndarray
    """int32 `(tokens,)`, rising."""
    _base_embeddings: keras.Variable
    _token_tables: Mapping[str, keras.Variable]

    @classmethod
    def from_layer(cls, layer: Any, ids: Sequence[int]) -> TokenRows:
        """Changes a built embedding in place; its rows start as the base's."""
        embeddings = layer.embeddings
        plain: Any = type(layer)
        _compat.change_class(layer, token_rows_class(plain))
        # None of these is for Keras to look into: its files would hold them twice.
        object.__setattr__(layer, "_base_embeddings", embeddings)
        object.__setattr__(layer, "token_ids", np.array(sorted(ids), "int32"))
        tables = {ROWS: ops.take(embeddings, layer.token_ids, axis=0)}
        if not getattr(layer, "tie_weights", True):
            columns = ops.take(layer.reverse_embeddings, layer.token_ids, axis=1)
            tables[COLUMNS] = ops.transpose(columns)
        found = {}
        with _compat.unlocked(layer):
            for name, start in tables.items():
                variable = layer.add_weight(
                    name=name,
                    shape=start.shape,
                    initializer="zeros",
                    dtype="float32",
                    autocast=False,
                )
                variable.assign(ops.cast(start, "float32"))
                found[name] = variable
        object.__setattr__(layer, "_token_tables", found)
        return layer

    def adapter_variables(self) -> dict[str, keras.Variable]:
        """The rows that train, by name."""
        return dict(self._token_tables)

    def adapter_flags(self) -> list[_compat.Flagged]:
        """What trains of it."""
        return [self, *self._token_tables.values()]

    def filled(self) -> dict[int, Callable[[Tensor], Tensor]]:
        """By id of a base's variable, what puts the rows in their places in its value.

        They may be called while the layer has its plain class back.
        """
        ids, tables = self.token_ids, self._token_tables
        found = {
            id(self._base_embeddings): lambda x: with_rows(x, ids, tables[ROWS]),
        }
        if COLUMNS in tables:
            found[id(self.reverse_embeddings)] = lambda x: ops.transpose(
                with_rows(ops.transpose(x), ids, tables[COLUMNS])
            )
        return found

    @property
    def embeddings(self) -> Any:
        """All rows, for those that read them without a call."""
        if id(self) in layers_off():
            return self._base_embeddings
        base = self._base_embeddings
        return with_rows(base, self.token_ids, self._token_tables[ROWS])

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        plain = _compat.plain_twin(self, self.plain_class, logit_soft_cap=None)
        if id(self) in layers_off():
            if not is_routed():
                check_runs_once(self, self._base_embeddings)
            outputs = self._base(plain, inputs, reverse)
        elif reverse:
            outputs = self._logits(plain, inputs)
        else:
            outputs = self._base(plain, inputs, False)
            at, known = _places(self.token_ids, self.input_dim, inputs)
            rows = _compat.take_rows(self._token_tables[ROWS], at)
            rows = ops.cast(rows, outputs.dtype)
            mask = _compat.mask_of(outputs)
            outputs = ops.where(known[..., None], rows, outputs)
            _compat.set_mask(outputs, mask)
        cap = getattr(self, "logit_soft_cap", None) if reverse else None
        if cap is not None:
            outputs = ops.multiply(ops.tanh(ops.divide(outputs, cap)), cap)
        return outputs

    def _base(self, plain: Any, inputs: Tensor, reverse: bool) -> Tensor:
        # Keras' `Embedding` knows no `reverse`.
        options = {"reverse": True} if reverse else {}
        return self.plain_class.call(plain, inputs, **options)

    def _logits(self, plain: Any, inputs: Tensor) -> Tensor:
        logits = self._base(plain, inputs, True)
        rows = self._token_tables.get(COLUMNS, self._token_tables[ROWS])
        if self.reverse_dtype is not None:
            inputs = ops.cast(inputs, self.reverse_dtype)
        own = ops.matmul(inputs, ops.transpose(ops.cast(rows, inputs.dtype)))
        at, known = _places(self.token_ids, self.input_dim)
        own = ops.take(ops.cast(own, logits.dtype), at, axis=-1)
        return ops.where(known, own, logits)

    def save_own_variables(self, store: Any) -> None:
        # Keras reads `embeddings`.
        plain = _compat.plain_twin(self, self.plain_class)
        self.plain_class.save_own_variables(plain, store)
        for name, variable in self._token_tables.items():
            store[name] = variable
        store[IDS] = self.token_ids

    def load_own_variables(self, store: Any) -> None:
        saved = {name: store[name] for name in store.keys()}
        ids = saved.pop(IDS, None)
        rows = {n: saved.pop(n) for n in (ROWS, COLUMNS) if n in saved}
        # Without any, these are plain base weights: the rows stay as they are.
        if ids is not None and not (
            np.array_equal(ids, self.token_ids)
            and rows.keys() == self._token_tables.keys()
        ):
            raise ValueError(
                f"The tokens that train in a weights file must be those of layer "
                f"{self.path!r}. Expected: {self.token_ids[:8].tolist()}. Received: "
                f"{np.asarray(ids)[:8].tolist()}. Load it into a model adapted with "
                "the same `trainable_tokens`."
            )
        super().load_own_variables(saved)
        for name, value in rows.items():
            self._token_tables[name].assign(value)


def with_rows(base: Any, ids: np.ndarray, rows: Any) -> Tensor:
    """All rows `(size, output_dim)` of an embedding, some of which are other ones."""
    base = ops.convert_to_tensor(base)
    at, known = _places(ids, base.shape[0])
    rows = ops.cast(ops.take(rows, at, axis=0), base.dtype)
    return ops.where(known[:, None], rows, base)


def _places(
    ids: np.ndarray, size: int, tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Of each token, which of `ids` is its own, and whether one is.

    Of all `size` tokens, or of some.
    """
    # Made where it is used: as a constant, it would be sent there in each call.
    numbers = ops.arange(1, len(ids) + 1, dtype="int32")
    at = ops.convert_to_tensor(ids[:, None], "int32")
    found = ops.scatter_update(ops.zeros((size,), "int32"), at, numbers)
    if tokens is not None:
        tokens = ops.cast(tokens, "int32")
        found = _compat.take_rows(found, tokens)[..., 0]
        # What is out of range is left to the base.
        in_range = ops.logical_and(tokens >= 0, tokens < size)
        found = ops.where(in_range, found, 0)
    return ops.maximum(found - 1, 0), found > 0


@functools.cache
def token_rows_class(cls: type) -> type:
    """The class of a changed embedding: a subclass of the same name."""
    return type(cls.__name__, (TokenRows, cls), {"plain_class": cls})
