"""Embeddings whose rows depend on features."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.active_scope import Routing, is_routed, layers_off
from keras_flix.layers.checks import DENSE_EQUATION, two_loras
from keras_flix.layers.embedding_update import looked_up, projected
from keras_flix.layers.holds_tables import HoldsTables
from keras_flix.layers.low_rank_kernel import LowRankKernel
from keras_flix.layers.low_rank_update import ActiveValues, active_alone
from keras_flix.layers.row_orders import SHARED
from keras_flix.layers.tables import Tables, initial_a


class LowRankEmbedding(LowRankKernel, HoldsTables):
    """Mixin of an adapted embedding; the layer class comes after it.

    The embeddings of an example are `E + sum over f in F(x) of s_f * A_f @ B_f`, `A_f`
    of shape `(input_dim, rank)` and `B_f` `(rank, output_dim)`: where tokens are looked
    up, and in an output head that has the same weights (`tie_weights=True`), as with
    Keras' own `enable_lora`. A head with weights of its own stays the base's.

    `A` starts at zero and `B` does not, as in PEFT: so tokens that training never sees
    keep the base's rows.
    """

    plain_class: Any
    equation = DENSE_EQUATION

    @classmethod
    def from_layer(
        cls,
        layer: Any,
        features: FeatureSchema,
        *,
        seed: int,
        key: str,
        names: Sequence[str],
        ranks: Mapping[str, int] | None = None,
    ) -> LowRankEmbedding:
        """Adapts a built embedding in place; for the arguments see `LowRankLayer`."""
        plain: Any = type(layer)
        _compat.change_class(layer, adapted_embedding_class(plain))
        for variable in layer.weights:
            variable.trainable = False
        _compat.protect_values()
        layer._tables = Tables(
            features, kernel_shape=_compat.kernel_shape(layer), ranks=ranks or {}
        )
        for name in names:
            layer.add_tables(features[name], seed, key)
        return layer

    # Methods: Keras' files follow all attributes and properties that hold layers.
    def adapted_kernels(self) -> dict[str, LowRankKernel]:
        """Its only kernel, whose tables need no other name in files."""
        return {"": self}

    @property
    def kernel(self) -> Any:
        """The base's embeddings."""
        return self._embeddings

    @property
    def embeddings(self) -> Any:
        """The base's embeddings, for those that read them without a call."""
        if is_routed() and id(self) not in layers_off():
            raise _compat.UnknownUse(
                "An adapted embedding has other rows for each example, which only its "
                f"calls look up. Received: layer {self.path!r}, whose `embeddings` "
                "another layer reads. Leave it out of `targets`."
            )
        return self.plain_class.embeddings.fget(self)

    def add_tables(self, feature: Feature, seed: int, key: str) -> None:
        super().add_tables(feature, seed, key)
        a, _ = self._tables.variables[feature.name]
        a.is_looked_up_by_token = True

    @staticmethod
    def initial_tables(
        ranks: tuple[int, ...],
        d_in: int,
        d_out: int,
        seed: tuple[int, str],
        experts: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`A` of zeros, and `B` as `A` of other layers, so of std `d_out**-0.5`."""
        b = initial_a(ranks, d_out, seed).transpose(0, 2, 1)
        return np.zeros((len(ranks), d_in, max(ranks)), "float32"), b

    def gather_ahead(
        self, active: Mapping[str, ActiveValues]
    ) -> tuple[Tensor, Tensor] | None:
        # For a tied head only; few tokens are looked up where they come.
        return super().gather_ahead(active) if self._is_tied else None

    @property
    def _is_tied(self) -> bool:
        return bool(getattr(self, "tie_weights", False))

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        return self._adapted("call", inputs, reverse)

    def quantized_call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        """The quantized base's output plus the update, in floating point."""
        return self._adapted("quantized_call", inputs, reverse)

    def _adapted(self, entry: str, inputs: Tensor, reverse: bool) -> Tensor:
        # The cap comes after the update.
        plain = _compat.plain_twin(self, self.plain_class, logit_soft_cap=None)
        # Keras' `Embedding` knows no `reverse`.
        options = {"reverse": True} if reverse else {}
        outputs = getattr(self.plain_class, entry)(plain, inputs, **options)
        if not reverse or self._is_tied:
            mask = _compat.mask_of(outputs)
            delta = self._update(inputs, reverse)
            if delta is not None:
                outputs = outputs + ops.cast(delta, outputs.dtype)
            if mask is not None:
                _compat.set_mask(outputs, mask)
        cap = getattr(self, "logit_soft_cap", None) if reverse else None
        if cap is not None:
            outputs = ops.multiply(ops.tanh(ops.divide(outputs, cap)), cap)
        return outputs

    def _update(self, inputs: Tensor, reverse: bool) -> Tensor | None:
        """What the active values add; `None` where the adapters are switched off."""
        routing = self._routing(ops.shape(inputs)[0])
        if routing.active is None:
            return None
        if reverse:
            reverse_dtype = getattr(self, "reverse_dtype", None)
            x = ops.cast(inputs, reverse_dtype or self.compute_dtype)
            shape = ops.shape(x)[:-1]
        else:
            x = ops.cast(inputs, "int32")
            shape = ops.shape(x)
        x, positions, grouped = self._by_example(x, shape, routing)
        tables = self._tables.by_feature()
        if not reverse:
            delta = looked_up(
                ops.reshape(x, grouped),
                tables,
                routing.active,
                self.compute_dtype,
                routing.row_scope,
            )
            return ops.reshape(delta, (*positions, self.output_dim))
        delta = projected(
            ops.reshape(x, (*grouped, self.output_dim)),
            tables,
            routing.active,
            routing.gathered.get(id(self)),
            routing.row_scope,
        )
        return ops.reshape(delta, (*positions, self.input_dim))

    def _by_example(
        self, x: Tensor, shape: tuple[Any, ...], routing: Routing
    ) -> tuple[Tensor, tuple[Any, ...], tuple[Any, ...]]:
        """`x`, the lengths of its positions, and those by example."""
        batch = routing.batch
        orders = routing.orders or self.row_orders or ()
        if batch is not None and SHARED in orders and x.shape[0] == 1:
            x = ops.broadcast_to(x, (batch, *ops.shape(x)[1:]))
            shape = (batch, *shape[1:])
        return x, shape, routing.by_example(shape, self.row_orders, self.path)

    def delta_of_ids(self, ids: Mapping[str, Any]) -> Tensor:
        """`kernel_delta` of encoded values: the update of all tokens."""
        tables, active = active_alone(self._tables.by_feature(), ids)
        tokens = ops.arange(self.input_dim, dtype="int32")[None]
        return looked_up(tokens, tables, active, "float32")[0]

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(two_loras(self))


def is_looked_up_by_token(table: Any) -> bool:
    """Whether it is the `A` of an embedding, whose gradient always is a dense one."""
    return getattr(table, "is_looked_up_by_token", False)


@functools.cache
def adapted_embedding_class(cls: type) -> type:
    """The class of an adapted embedding: a subclass of the same name."""
    return type(cls.__name__, (LowRankEmbedding, cls), {"plain_class": cls})
