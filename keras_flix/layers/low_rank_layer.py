"""What `FlixEinsumDense` and `FlixDense` share: tables, update, state."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.equations import KernelSplit, split_equation
from keras_flix.features import FeatureSchema
from keras_flix.inputs import layer_ids
from keras_flix.low_rank import (
    ActiveValues,
    FeatureTables,
    Tensor,
    combined_matrix,
    low_rank_update,
)
from keras_flix.routing import Routing, current_routing


@dataclasses.dataclass
class Adapter:
    """The low-rank tables of one layer.

    Attributes:
        schema: The axes, with ranks and dropout rates resolved.
        alpha: The scale of a value's update is `alpha / rank`, or 1 if `None`.
        variables: By axis, the variables `A` and `B`.
    """

    schema: FeatureSchema
    alpha: float | None
    variables: dict[str, tuple[keras.Variable, keras.Variable]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def named_variables(self) -> dict[str, keras.Variable]:
        """The variables by a name that is unique in the layer."""
        return {
            f"flix_{name}_{part}": variable
            for name, pair in self.variables.items()
            for part, variable in zip("ab", pair)
        }

    def tables(self) -> list[FeatureTables]:
        """What the update reads."""
        return [
            FeatureTables(
                feature.name,
                *self.variables[feature.name],
                scales=[
                    1.0 if self.alpha is None else self.alpha / rank
                    for rank in feature.ranks
                ],
                shared=feature.always,
            )
            for feature in self.schema
        ]


class LowRankLayer(_compat.BaseVariablesCheck):
    """Mixin of the adapted layers; the layer class comes after it."""

    _flix: Adapter | None = None

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
    ) -> LowRankLayer:
        """Adapts a built layer in place; it stays the same object.

        Args:
            layer: A built layer of the class that this one extends.
            features: The schema, with ranks and dropout rates resolved.
            alpha: See `enable_flix`.
            seed: Seeds the initial tables, together with the layer's path.

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
        with _compat.unlocked(layer):
            layer._add_tables(seed)
        return layer

    def _add_tables(self, seed: int | None = None) -> None:
        """Creates `A` and `B` of every axis; `B` starts at zero."""
        shape = _compat.kernel_shape(self)
        d_in, d_out = self._split().matrix_shape(shape)
        adapter = self._adapter
        seed = _compat.fresh_seed() if seed is None else seed
        for feature in adapter.schema:
            count, rank = len(feature.values), max(feature.ranks)
            a = initial_a(feature.ranks, d_in, (seed, f"{self.path}/{feature.name}"))
            adapter.variables[feature.name] = tuple(
                _compat.add_table(
                    self,
                    name=f"flix_{feature.name}_{part}",
                    shape=table_shape,
                    initializer=initializer,
                )
                for part, table_shape, initializer in (
                    ("a", (count, d_in, rank), _Constant(a)),
                    ("b", (count, rank, d_out), "zeros"),
                )
            )

    def _split(self, input_rank: int | None = None) -> KernelSplit:
        equation = self._low_rank_equation
        if input_rank is None:
            input_rank = len(equation.split(",")[0].replace("...", "b"))
        return split_equation(equation, input_rank)

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
        active = self._active_values(inputs, features, training)
        if active is None:
            return None
        adapter = self._adapter
        kernel_shape = _compat.kernel_shape(self)
        split = self._split(len(inputs.shape))
        if split.input_axes != tuple(range(len(inputs.shape))):
            inputs = ops.transpose(inputs, split.input_axes)
        positions = ops.shape(inputs)[: split.num_positions]
        d_in, _ = split.matrix_shape(kernel_shape)
        x = ops.reshape(inputs, (self._examples(positions[0], active), -1, d_in))
        delta = low_rank_update(x, adapter.tables(), active)
        delta = ops.reshape(delta, (*positions, *split.output_sizes(kernel_shape)))
        if split.output_axes != tuple(range(len(split.output_axes))):
            delta = ops.transpose(delta, split.output_axes)
        return delta

    def _active_values(
        self, inputs: Tensor, features: Mapping[str, Any] | None, training: bool | None
    ) -> Mapping[str, ActiveValues] | None:
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
        return routing.active

    def _examples(self, rows: Tensor, active: Mapping[str, ActiveValues]) -> Tensor:
        """How many examples the leading axis holds.

        Samplers and expert layers repeat examples side by side: the leading
        axis is then a multiple of the batch, example-major.
        """
        for values in active.values():
            batch = values.batch_size
            if isinstance(rows, int) and isinstance(batch, int) and rows % batch:
                raise ValueError(
                    "The features must have one entry per example. Received: "
                    f"{batch} entries for a batch of {rows} in layer "
                    f"{self.path!r}. Pass one entry per example."
                )
            return batch
        return rows

    def kernel_delta(self, combination: Mapping[str, Any]) -> Tensor:
        """The update of one combination of values.

        Args:
            combination: One value (or id) per axis, such as
                `{"task": "qa", "language": "sw"}`; `None` is absent.

        Returns:
            A float32 tensor of the kernel's shape.
        """
        shape = _compat.kernel_shape(self)
        split = self._split()
        d_in, _ = split.matrix_shape(shape)
        ids = self.features.encode_one(combination)
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

    def load_own_variables(self, store: Any) -> None:
        saved = {name: store[name] for name in store.keys()}
        super().load_own_variables(
            {n: v for n, v in saved.items() if not n.startswith("flix_")}
        )
        tables = {n: v for n, v in saved.items() if n.startswith("flix_")}
        if not tables:
            return  # Plain base weights: the adapters stay as they are.
        expected = {n: v.shape for n, v in self._adapter.named_variables.items()}
        found = {n: tuple(v.shape) for n, v in tables.items()}
        if {n: tuple(s) for n, s in expected.items()} != found:
            raise ValueError(
                f"The adapters in a weights file must match layer {self.path!r}. "
                f"Expected: {expected}. Received: {found}. Load it into a model "
                "adapted with the same features and ranks."
            )
        for name, variable in self._adapter.named_variables.items():
            variable.assign(tables[name])


class _Constant(keras.initializers.Initializer):
    """An initial value computed in numpy: the same on every backend."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def __call__(self, shape: Any, dtype: Any = None) -> Tensor:
        return ops.convert_to_tensor(self.value, dtype=dtype)


def initial_a(ranks: tuple[int, ...], d_in: int, seed: tuple[int, str]) -> np.ndarray:
    """Initial `A` of one axis, `(values, d_in, rank)`: normal, std `d_in**-0.5`.

    Columns beyond a value's own rank are zero, and as `B` starts at zero too,
    they never get a gradient.
    """
    generator = np.random.default_rng([seed[0], zlib.crc32(seed[1].encode())])
    a = generator.normal(size=(len(ranks), d_in, max(ranks))) / np.sqrt(d_in)
    beyond = np.arange(max(ranks)) >= np.asarray(ranks)[:, None]
    return np.where(beyond[:, None, :], 0.0, a).astype("float32")


def check_ranks(layer: Any, features: FeatureSchema) -> None:
    """Raises if a value's rank is above the layer's dims."""
    d_in, d_out = matrix_shape(layer)
    for feature in features:
        if max(feature.ranks) > min(d_in, d_out):
            raise ValueError(
                f"The rank of feature {feature.name!r} must be at most "
                f"{min(d_in, d_out)}, the smaller dim of layer {layer.path!r} "
                f"({d_in} in, {d_out} out). Received: rank={max(feature.ranks)}. "
                "Lower the rank, or leave the layer out of the targets."
            )


def matrix_shape(layer: Any) -> tuple[int, int]:
    """`(d_in, d_out)` of a built layer's flattened kernel."""
    split = split_equation(*layer_equation(layer))
    return split.matrix_shape(_compat.kernel_shape(layer))


def layer_equation(layer: Any) -> tuple[str, int]:
    """The einsum equation of an `EinsumDense` or `Dense`, and its input rank."""
    equation = getattr(layer, "equation", DENSE_EQUATION)
    return equation, len(equation.split(",")[0].replace("...", "b"))


DENSE_EQUATION = "...d,df->...f"


def check_alpha(alpha: Any) -> float | None:
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not np.isscalar(alpha) or not alpha > 0:
        raise ValueError(
            f"`alpha` must be a positive number or None. Received: alpha={alpha!r}. "
            "None means a scale of 1."
        )
    return float(alpha)
