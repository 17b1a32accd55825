"""`ExpertKernel`: the kernels of a layer's experts, which are one variable."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.checks import DENSE_EQUATION
from keras_flix.layers.expert_product import expert_product
from keras_flix.layers.holds_tables import HoldsTables
from keras_flix.layers.low_rank_kernel import LowRankKernel
from keras_flix.layers.low_rank_update import (
    combined_matrix,
    low_rank_product,
    low_rank_update,
)
from keras_flix.layers.tables import Tables


class ExpertKernel(LowRankKernel):
    """A variable `(experts, d_in, d_out)`, and an update that its experts share.

    The kernel of expert `e` for an example is `W_e + sum over f of s_f * A_f @ B_f`.
    Tables have the shapes that those of a `Dense` layer have. With `each`, every expert
    has an update of its own, `s_f * A_fe @ B_fe`, see `expert_product`.

    Args:
        holder: The layer that has the variable.
        attribute: Its attribute there.
        path: What names the kernel in files.
        each: Whether each expert has adapters of its own.
    """

    equation = DENSE_EQUATION
    quantization_mode = None
    """Keras quantizes no variables of layers that are KerasHub's own."""

    def __init__(
        self,
        holder: keras.layers.Layer,
        attribute: str,
        path: str,
        each: bool = False,
    ) -> None:
        self._holder = holder
        self.attribute = attribute
        self.path = path
        self.each = each

    def holder(self) -> Any:
        """The layer that has the kernel and the tables among its variables."""
        return self._holder

    @property
    def kernel(self) -> keras.Variable:
        """The variable."""
        return getattr(self._holder, self.attribute)

    @property
    def name(self) -> str:
        """The variable's name."""
        return str(self.kernel.name)

    @property
    def compute_dtype(self) -> str:
        """That of the layer."""
        return str(self._holder.compute_dtype)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """`(experts, d_in, d_out)`."""
        return tuple(self.kernel.shape)

    @property
    def adapted_shape(self) -> tuple[int, ...]:
        """`(d_in, d_out)`, the shape of the update."""
        return self.whole_shape[1:]

    @property
    def own_experts(self) -> int:
        """How many experts have adapters of their own; 1 where all share them."""
        return self.whole_shape[0] if self.each else 1

    def adapt(
        self,
        features: FeatureSchema,
        seed: int,
        key: str,
        names: Sequence[str],
        ranks: Mapping[str, int],
    ) -> None:
        """Gives the kernel tables, and its layer the class that adds their updates.

        Args:
            features: The schema, with ranks, dropout rates and scales resolved.
            seed: Seeds the initial tables, together with `key`.
            key: What tells the kernel from others of its model.
            names: Which features it gets tables of.
            ranks: By feature, the rank of all values, where it has one of its own here.
        """
        layer = self._holder
        if not isinstance(layer, HoldsTables):
            for variable in layer.weights:
                variable.trainable = False
            cls: Any = type(layer)
            _compat.change_class(layer, adapted_class(cls))
            # Past Keras, which would track it.
            object.__setattr__(layer, "_adapted_kernels", types.MappingProxyType({}))
        kernels = {**layer.adapted_kernels(), f"{self.name}:": self}
        object.__setattr__(layer, "_adapted_kernels", types.MappingProxyType(kernels))
        _compat.mark_kernel(self.kernel, self)
        _compat.protect_values()
        self._tables = Tables(
            features,
            kernel_shape=self.adapted_shape,
            ranks=ranks,
            experts=self.own_experts,
        )
        for name in names:
            self.add_tables(features[name], seed, key)

    def rows_of(self, equation: str, inputs: Tensor) -> Tensor:
        """The rows that a product has, those of the first expert where all have own."""
        return inputs[0] if has_experts(equation) else inputs

    def add_update(self, product: Tensor, equation: str, inputs: Tensor) -> Tensor:
        """The product of each expert, with the update of each row's example.

        Args:
            product: `(experts, rows, d_out)`.
            equation: Such as `"th,ehm->etm"`.
            inputs: `(rows, d_in)`, or `(experts, rows, d_in)`: rows in one of the
                `row_orders`.
        """
        experts = ops.shape(inputs)[:1] if has_experts(equation) else ()
        rows = ops.shape(inputs)[len(experts)]
        routing = self._routing(rows)
        if routing.active is None:
            return product
        shape = routing.by_example((rows,), self.row_orders, self.path)
        d_in, d_out = self.adapted_shape
        delta = low_rank_update(
            ops.reshape(inputs, (*experts, *shape, d_in)),
            self._tables.by_feature(),
            routing.active,
            routing.gathered.get(id(self)),
            routing.row_scope,
            self._product(has_experts(equation)),
        )
        if self.each:
            experts = ops.shape(product)[:1]
        return product + ops.reshape(delta, (*experts, rows, d_out))

    def _product(self, own_inputs: bool = False) -> Callable[..., Tensor]:
        """What multiplies activations by the factors of the tables."""
        if not self.each:
            return low_rank_product
        return functools.partial(
            expert_product, experts=self.own_experts, own_inputs=own_inputs
        )

    def kernel_delta(self, combination: Mapping[str, Any]) -> Tensor:
        """The update of one combination for each expert."""
        return ops.broadcast_to(super().kernel_delta(combination), self.whole_shape)

    def delta_of_ids(self, ids: Mapping[str, Any]) -> Tensor:
        """`kernel_delta` of encoded values; `(d_in, d_out)` where experts share it."""
        return combined_matrix(
            self._tables.by_feature(), ids, self.adapted_shape[0], self._product()
        )

    def kernel_norm(self) -> float:
        """The root mean square of the norms of the experts' kernels."""
        return super().kernel_norm() / float(np.sqrt(self.whole_shape[0]))


class HoldsExperts(HoldsTables):
    """Mixin of layers with adapted kernels of experts."""

    _adapted_kernels: Mapping[str, ExpertKernel]

    def adapted_kernels(self) -> Mapping[str, ExpertKernel]:
        """Those that are adapted, by the variable's name."""
        return self._adapted_kernels


@functools.lru_cache(maxsize=1024)
def has_experts(equation: str) -> bool:
    """Whether the input of a product has an axis of experts; raises for other ones.

    >>> has_experts("eti,eih->eth"), has_experts("th,ehm->etm")
    (True, False)
    """
    inputs, _, output = equation.replace(" ", "").partition("->")
    activation, _, kernel = inputs.partition(",")
    if len(kernel) == len(output) == 3 and len({*kernel, *output}) == 4:
        expert, contracted, produced = list(kernel)
        row = output[1]
        if output == f"{expert}{row}{produced}":
            if activation == f"{expert}{row}{contracted}":
                return True
            if activation == f"{row}{contracted}":
                return False
    raise _compat.UnknownUse(
        _compat.unknown_use(f"einsum {equation!r} by the kernels of experts")
    )


@functools.cache
def adapted_class(cls: type) -> type:
    """The class of layers of class `cls` with adapted kernels: the same name."""
    multiplies = _compat.multiplying_class(cls)
    names = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    bases = (HoldsExperts, _compat.NumberedVariables, multiplies)
    return type(cls.__name__, bases, names)
