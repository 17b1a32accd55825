"""What `FlixEinsumDense` and `FlixDense` share: tables, update, state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_flix import _compat
from keras_flix.features.feature import Feature, check_alpha
from keras_flix.features.input_entries import layer_ids
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.active_scope import Routing, current_routing
from keras_flix.layers.checks import check_ranks, matrix_shape, two_loras
from keras_flix.layers.einsum_split import KernelSplit, split_equation
from keras_flix.layers.low_rank_update import (
    ActiveValues,
    combined_matrix,
    low_rank_update,
)
from keras_flix.layers.quantized import QuantizedCall
from keras_flix.layers.tables import Adapter, Constant, initial_a


class LowRankLayer(QuantizedCall, _compat.BaseVariablesCheck):
    """Mixin of the adapted layers; the layer class comes after it."""

    _flix: Adapter | None = None
    plain_class: type

    @property
    def features(self) -> FeatureSchema:
        """The schema of the layer's features."""
        return self._adapter.schema

    @property
    def _adapter(self) -> Adapter:
        assert self._flix is not None
        return self._flix

    @property
    def _low_rank_equation(self) -> str:
        raise NotImplementedError

    def _configure_features(
        self,
        features: Any,
        rank: Any,
        alpha: float | None,
        dropout: Any,
    ) -> None:
        schema = FeatureSchema(features).resolve(rank, dropout)
        if self.lora_rank:
            raise ValueError(two_loras(self))
        if isinstance(self.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy):
            raise ValueError(
                f"A {type(self).__name__} must have a floating-point dtype policy. "
                f"Received: dtype={self.dtype_policy.name!r}. Pass such as "
                "'float32' or 'mixed_bfloat16'."
            )
        self._flix = Adapter(schema, check_alpha(alpha))
        self._dropout_seed = None
        if any(feature.dropout for feature in schema):
            self._dropout_seed = keras.random.SeedGenerator()

    @classmethod
    def from_layer(
        cls,
        layer: keras.layers.Layer,
        features: FeatureSchema,
        *,
        alpha: float | None = None,
        seed: int = 0,
        key: str | None = None,
    ) -> LowRankLayer:
        """Adapts a built layer in place; it stays the same object.

        Args:
            layer: A built layer of the class that this one extends.
            features: The schema, with ranks and dropout rates resolved.
            alpha: See `enable_flix`.
            seed: Seeds the initial tables, together with `key`.
            key: What tells the layer from others of its model; its path if
                `None`.

        Returns:
            `layer`, now an instance of this class, with its kernel and bias
            frozen.
        """
        check_ranks(layer, features)
        _compat.change_class(layer, cls)
        layer._flix = Adapter(features, check_alpha(alpha))
        layer._dropout_seed = None
        for variable in layer.weights:
            variable.trainable = False
        layer._add_tables(seed, key)
        return layer

    def _add_tables(self, seed: int | None = None, key: str | None = None) -> None:
        """Creates the tables of every axis."""
        check_ranks(self, self.features)
        seed = _compat.fresh_seed() if seed is None else seed
        for feature in self.features:
            self.add_axis(feature, seed, key or self.path)

    def add_axis(self, feature: Feature, seed: int, key: str) -> None:
        """Creates `A` and `B` of an axis; `B` starts at zero."""
        d_in, d_out = matrix_shape(self)
        count, rank = len(feature.values), max(feature.ranks)
        a = initial_a(feature.ranks, d_in, (seed, f"{key}/{feature.name}"))
        with _compat.unlocked(self):
            self._adapter.variables[feature.name] = tuple(
                _compat.add_table(
                    self,
                    name=f"flix_{feature.name}_{part}",
                    shape=table_shape,
                    initializer=initializer,
                    key=key,
                )
                for part, table_shape, initializer in (
                    ("a", (count, d_in, rank), Constant(a)),
                    ("b", (count, rank, d_out), "zeros"),
                )
            )

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.kernel.trainable = False
        self._add_tables()

    def call(
        self,
        inputs: Tensor,
        features: Mapping[str, Any] | None = None,
        training: bool | None = None,
    ) -> Tensor:
        x = self._linear(inputs)
        delta = self.low_rank_output(inputs, features, training)
        if delta is not None:
            # `ops.add` would take one for no examples for a bias, on TensorFlow.
            x = x + delta
        # As in the stock layers, so that without a delta the bits are theirs.
        if self.bias is not None:
            x = ops.add(x, self.bias)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def _linear(self, inputs: Tensor) -> Tensor:
        """The base kernel's part of the output."""
        raise NotImplementedError

    def _split(self, input_rank: int | None = None) -> KernelSplit:
        equation = self._low_rank_equation
        if input_rank is None:
            input_rank = len(equation.split(",")[0].replace("...", "b"))
        return split_equation(equation, input_rank)

    def __call__(
        self,
        inputs: Tensor,
        *args: Any,
        features: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if features is not None:
            leaves = tree.flatten([inputs, features])
            if not any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
                # Keras refuses arrays of strings, and tensors beside scalars.
                features = layer_ids(self.features, features, ops.shape(inputs)[0])
            kwargs["features"] = features
        return super().__call__(inputs, *args, **kwargs)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(two_loras(self))

    def low_rank_output(
        self, inputs: Tensor, features: Mapping[str, Any] | None, training: bool | None
    ) -> Tensor | None:
        """What the active values add to the layer's linear output.

        Args:
            inputs: The layer's input, batch first.
            features: Values or ids by axis, or `None` to take those of the
                model's current input.
            training: Whether feature dropout applies.

        Returns:
            A tensor of the linear output's shape, or `None` where the
            adapters are switched off.
        """
        routing = self._routing(inputs, features, training)
        active = routing.active
        if active is None:
            return None
        adapter = self._adapter
        kernel_shape = _compat.kernel_shape(self)
        split = self._split(len(inputs.shape))
        if split.input_axes != tuple(range(len(inputs.shape))):
            inputs = ops.transpose(inputs, split.input_axes)
        inputs = self._repeat_shared(inputs, active)
        positions = ops.shape(inputs)[: split.num_positions]
        d_in, _ = split.matrix_shape(kernel_shape)
        x = ops.reshape(inputs, self._by_example(positions, active, d_in))
        delta = low_rank_update(
            x,
            adapter.tables(routing.row_scope),
            active,
            routing.gathered.get(id(self)),
        )
        delta = ops.reshape(delta, (*positions, *split.output_sizes(kernel_shape)))
        if split.output_axes != tuple(range(len(split.output_axes))):
            delta = ops.transpose(delta, split.output_axes)
        return delta

    def _routing(
        self, inputs: Tensor, features: Mapping[str, Any] | None, training: bool | None
    ) -> Routing:
        schema = self.features
        routing = None
        if features is None:
            routing = current_routing(schema)
            if routing is None and schema.routed:
                raise ValueError(
                    f"Layer {self.path!r} must know the features "
                    f"{[f.name for f in schema.routed]} of each example. "
                    "Received: none, since it runs outside of a call of the "
                    "model that `enable_flix` adapted. Call that model, pass "
                    "`features=` to the layer, or use `adapters_disabled`."
                )
        if routing is None:
            ids = layer_ids(schema, features or {}, ops.shape(inputs)[0])
            routing = Routing.from_ids(
                schema,
                ids,
                batch_size=ops.shape(inputs)[0],
                dropout_seed=self._dropout_seed if training else None,
            )
        routing.ran.add(id(self))
        return routing

    def _repeat_shared(
        self, inputs: Tensor, active: Mapping[str, ActiveValues]
    ) -> Tensor:
        """Gives each example its own copy of an input that all examples share.

        Relative position embeddings come with a leading axis of one. Each
        example's update makes something else of them.
        """
        rows = inputs.shape[0]
        if not isinstance(rows, int) or rows != 1 or not active:
            return inputs
        batch = next(iter(active.values())).batch_size
        return ops.broadcast_to(inputs, (batch, *ops.shape(inputs)[1:]))

    def _by_example(
        self, positions: Any, active: Mapping[str, ActiveValues], d_in: int
    ) -> tuple[Tensor, Tensor, int]:
        """The shape `(batch, positions, d_in)` that gives each example its rows.

        Samplers and expert layers repeat examples side by side: the leading
        axis is then a multiple of the batch, example-major.
        """
        rows = batch = positions[0]
        for values in active.values():
            batch = values.batch_size
            break
        # Exporters have lengths of their own kind, neither ints nor tensors.
        static = not (ops.is_tensor(rows) or ops.is_tensor(batch))
        batch_or_one = max(batch, 1) if static else ops.maximum(batch, 1)
        if static and rows % batch_or_one:
            raise ValueError(
                "The features must have one entry per example. Received: "
                f"{batch} entries for a batch of {rows} in layer {self.path!r}. "
                "Pass one entry per example."
            )
        # Not -1: where lengths are only known as the graph runs, it would take
        # a batch that is no multiple of the entries.
        return batch, math.prod(positions[1:], start=rows // batch_or_one), d_in

    def kernel_delta(self, combination: Mapping[str, Any]) -> Tensor:
        """The update of one combination of values.

        Args:
            combination: One value (or id) per axis, such as
                `{"task": "qa", "language": "sw"}`; `None` is absent.

        Returns:
            A float32 tensor of the kernel's shape.
        """
        return self.delta_of_ids(self.features.encode_one(combination))

    def delta_of_ids(self, ids: Mapping[str, Any]) -> Tensor:
        """`kernel_delta` of encoded values: ids of a batch of one, by axis."""
        shape = _compat.kernel_shape(self)
        split = self._split()
        d_in, _ = split.matrix_shape(shape)
        matrix = combined_matrix(self._adapter.tables(), ids, d_in)
        unfolded = ops.reshape(matrix, [shape[axis] for axis in split.kernel_axes])
        return ops.transpose(unfolded, split.unflatten_axes())

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "features": self.features.get_config(),
            "alpha": self._adapter.alpha,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        config = dict(config)
        if isinstance(config.get("features"), Mapping):
            config["features"] = FeatureSchema.from_config(config["features"])
        return super().from_config(config)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        for name, variable in self._adapter.named_variables.items():
            store[name] = variable
        store["flix_schema"] = self._adapter.stamp()

    def load_own_variables(self, store: Any) -> None:
        saved = {name: store[name] for name in store.keys()}
        base = {n: v for n, v in saved.items() if not n.startswith("flix_")}
        tables = {n: v for n, v in saved.items() if n.startswith("flix_")}
        stamp = tables.pop("flix_schema", None)
        if stamp is not None and not np.array_equal(stamp, self._adapter.stamp()):
            raise ValueError(
                f"The features in a weights file must match layer {self.path!r}. "
                f"Expected: {self._adapter.stamp().tobytes().decode()}. Received: "
                f"{np.asarray(stamp).tobytes().decode()}. Load it into a model "
                "adapted with the same features, values in the same order."
            )
        own = self._adapter.named_variables
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
