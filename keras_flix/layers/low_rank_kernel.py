"""`LowRankKernel`: what adapted layers and adapted kernels of experts share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.features.feature import Feature
from keras_flix.features.input_entries import layer_ids
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.active_scope import Routing, current_routing, layers_off
from keras_flix.layers.checks import (
    check_runs_once,
    check_same_split,
    layer_equation,
    matrix_shape,
    no_features,
)
from keras_flix.layers.einsum_split import flatten_kernel
from keras_flix.layers.low_rank_update import (
    ActiveValues,
    combined_matrix,
    gather_tables,
    low_rank_update,
)
from keras_flix.layers.row_orders import EACH_ROW, SHARED, Orders
from keras_flix.layers.tables import Constant, Tables, initial_a


class LowRankKernel(_compat.Mixin):
    """What adapted layers and adapted kernels of experts share."""

    _tables: Tables
    equation: str
    row_orders: Orders | None = None
    """The orders of the rows in calls without `features=`; `None` if unknown."""

    # A method: Keras' files follow all attributes and properties that are layers.
    def holder(self) -> Any:
        """The layer that has the kernel and the tables among its variables."""
        return self

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The logical shape of the whole kernel."""
        return self._tables.kernel_shape

    @property
    def features(self) -> FeatureSchema:
        """The schema of the layer's features."""
        return self._tables.schema

    @staticmethod
    def initial_tables(
        ranks: tuple[int, ...],
        d_in: int,
        d_out: int,
        seed: tuple[int, str],
        experts: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Initial `A` and `B` of values: their product is zero, and `B` itself."""
        b = np.zeros((len(ranks), max(ranks) * experts, d_out), "float32")
        return initial_a(ranks, d_in, seed, experts), b

    def gather_ahead(
        self, active: Mapping[str, ActiveValues]
    ) -> tuple[Tensor, Tensor] | None:
        """The tables of each example for all calls of a routing, see `Routing`."""
        return gather_tables(self._tables.by_feature(), active, self.compute_dtype)

    def add_tables(self, feature: Feature, seed: int, key: str) -> None:
        """Creates `A` and `B` of a feature.

        Of each expert, where these have adapters of their own.
        """
        seeds = (seed, f"{key}/{feature.name}")
        own = feature.with_rank(self._tables.ranks.get(feature.name))
        a, b = self.initial_tables(
            own.ranks, *matrix_shape(self), seeds, self._tables.experts
        )
        with _compat.unlocked(self.holder()):
            self._tables.variables[feature.name] = tuple(
                _compat.add_table(
                    self.holder(),
                    name=f"flix_{feature.name}_{part}",
                    shape=start.shape,
                    initializer=Constant(start) if start.any() else "zeros",
                    key=key,
                )
                for part, start in zip("ab", (a, b))
            )

    def add_update(self, product: Tensor, equation: str, inputs: Tensor) -> Tensor:
        """The product with the kernel, where another layer computes it by itself."""
        delta = self.low_rank_output(inputs, equation=equation)
        return product if delta is None else product + delta

    def low_rank_output(
        self,
        inputs: Tensor,
        features: Mapping[str, Any] | None = None,
        training: bool | None = None,
        equation: str | None = None,
    ) -> Tensor | None:
        """What the active values add to the layer's linear output.

        Args:
            inputs: The layer's input, its rows in one of the `row_orders`.
            features: Values or ids by feature, each one for all rows or one per
                row; or `None` to take those of the model's current input.
            training: Whether feature dropout applies.
            equation: What the kernel's product with `inputs` is; `None` for the
                layer's own.

        Returns:
            A tensor of the linear output's shape, or `None` where the
            adapters are switched off.
        """
        routing = self._routing(ops.shape(inputs)[0], features, training)
        if routing.active is None:
            return None
        flat = flatten_kernel(
            equation or self.equation, len(inputs.shape), self._tables.kernel_shape
        )
        if equation is not None:
            check_same_split(flat, *layer_equation(self))
        if flat.input_axes is not None:
            inputs = ops.transpose(inputs, flat.input_axes)
        batch = routing.batch
        orders = routing.orders or self.row_orders or ()
        if batch is not None and SHARED in orders and inputs.shape[0] == 1:
            # Each example's update makes something else of it.
            inputs = ops.broadcast_to(inputs, (batch, *ops.shape(inputs)[1:]))
        positions = ops.shape(inputs)[: flat.split.num_positions]
        shape = routing.by_example(positions, self.row_orders, self.path)
        x = ops.reshape(inputs, (*shape, flat.d_in))
        delta = low_rank_update(
            x,
            self._tables.by_feature(),
            routing.active,
            routing.gathered.get(id(self)),
            routing.row_scope,
        )
        delta = ops.reshape(delta, (*positions, *flat.output_sizes))
        if flat.output_axes is not None:
            delta = ops.transpose(delta, flat.output_axes)
        return delta

    def _routing(
        self,
        rows: Tensor,
        features: Mapping[str, Any] | None = None,
        training: bool | None = None,
    ) -> Routing:
        """The routing of a call for so many rows."""
        schema = self._tables.schema
        around = current_routing(schema)
        if id(self) in layers_off():
            if around is None:
                check_runs_once(self, self.kernel)
            return Routing(schema, None)
        routing = around if features is None else None
        if routing is None:
            if features is None and schema.routed:
                raise ValueError(no_features(self, [f.name for f in schema.routed]))
            ids = layer_ids(schema, features or {}, rows)
            routing = Routing.from_ids(
                schema,
                ids,
                batch_size=rows,
                dropout_seed=self._dropout_seed if training else None,
                trained=self._tables.trained(),
                orders=EACH_ROW,
            )
        routing.ran.add(id(self))
        if around is not None:
            around.ran.add(id(self))
        return routing

    def kernel_delta(self, combination: Mapping[str, Any]) -> Tensor:
        """The update of one combination of values.

        Args:
            combination: One value (or id) per feature, such as
                `{"task": "qa", "language": "sw"}`; `None` is absent.

        Returns:
            A float32 tensor of the kernel's shape.
        """
        return self.delta_of_ids(self.features.encode_one(combination))

    def delta_of_ids(self, ids: Mapping[str, Any]) -> Tensor:
        """`kernel_delta` of encoded values: ids of a batch of one, by feature."""
        shape = self._tables.kernel_shape
        flat = flatten_kernel(*layer_equation(self), shape)
        matrix = combined_matrix(self._tables.by_feature(), ids, flat.d_in)
        axes = flat.split.kernel_axes
        unfolded = ops.reshape(matrix, [shape[axis] for axis in axes])
        return ops.transpose(unfolded, flat.split.unflatten_axes())

    def kernel_norm(self) -> float:
        """The Frobenius norm of the base's kernel; NaN if it is not in floats."""
        if self.quantization_mode is not None:
            return float("nan")
        kernel = _compat.to_host(ops.cast(self.kernel, "float32"))
        return float(np.linalg.norm(kernel.astype("float64")))
