"""What `FlixEinsumDense` and `FlixDense` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops, tree

from keras_flix import _compat
from keras_flix.features.input_entries import layer_ids
from keras_flix.features.schema import Dropouts, Features, FeatureSchema, Ranks
from keras_flix.features.targets import check_no_targets
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.active_scope import current_routing, layers_off
from keras_flix.layers.checks import (
    check_backend,
    check_ranks,
    no_features,
    two_loras,
)
from keras_flix.layers.holds_tables import HoldsTables
from keras_flix.layers.low_rank_kernel import LowRankKernel
from keras_flix.layers.quantized import QuantizedCall
from keras_flix.layers.tables import Tables


class LowRankLayer(LowRankKernel, QuantizedCall, HoldsTables):
    """Mixin of the adapted layers; the layer class comes after it."""

    def adapted_kernels(self) -> dict[str, LowRankKernel]:
        """Its only kernel, whose tables need no other name in files."""
        return {"": self}

    def adapter_variables(self) -> dict[str, keras.Variable]:
        """Its tables by name."""
        return self._tables.named_variables

    def _configure_features(
        self,
        features: Features,
        rank: Ranks,
        alpha: float | None,
        scale: str,
        dropout: Dropouts,
    ) -> None:
        check_backend()
        schema = FeatureSchema(features).resolve(rank, dropout, alpha, scale)
        check_no_targets(schema, type(self).__name__)
        if self.lora_rank:
            raise ValueError(two_loras(self))
        if isinstance(self.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy):
            raise ValueError(
                f"A {type(self).__name__} must have a floating-point dtype policy. "
                f"Received: dtype={self.dtype_policy.name!r}. Pass such as "
                "'float32' or 'mixed_bfloat16'."
            )
        self._tables = Tables(schema)
        self._dropout_seed = None
        if any(feature.dropout for feature in schema):
            self._dropout_seed = keras.random.SeedGenerator()

    @classmethod
    def from_layer(
        cls,
        layer: keras.layers.Layer,
        features: FeatureSchema,
        *,
        seed: int = 0,
        key: str | None = None,
        names: Sequence[str] | None = None,
        ranks: Mapping[str, int] | None = None,
    ) -> LowRankLayer:
        """Adapts a built layer in place; it stays the same object.

        Args:
            layer: A built layer of the class that this one extends.
            features: The schema, with ranks, dropout rates and scales resolved. The
                layer is known to be large enough for the ranks, see `check_ranks`.
            seed: Seeds the initial tables, together with `key`.
            key: What tells the layer from others of its model; its path if
                `None`.
            names: Which features it gets tables of; `None` for all.
            ranks: By feature, the rank of all values, where it has one of its own here.

        Returns:
            `layer`, now an instance of this class, with its kernel and bias
            frozen.
        """
        _compat.change_class(layer, cls)
        layer._tables = Tables(features, ranks=ranks or {})
        layer._dropout_seed = None
        for variable in layer.weights:
            variable.trainable = False
        layer._add_tables(seed, key, names)
        return layer

    def _add_tables(
        self,
        seed: int | None = None,
        key: str | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Creates the tables of its features."""
        _compat.protect_values()
        self._tables.kernel_shape = _compat.kernel_shape(self)
        seed = _compat.fresh_seed() if seed is None else seed
        for name in self.features.names if names is None else names:
            self.add_tables(self.features[name], seed, key or self.path)

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.kernel.trainable = False
        check_ranks(self, self.features)
        self._add_tables()
        own = [v for v in _compat.by_gradients(self) if v is not self.kernel]
        self.remember_flags([self, *own])

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
                size = ops.shape(inputs)[0]
                ids = layer_ids(self.features, features, size)
                features = self.features.as_inputs(ids)
            kwargs["features"] = features
        return super().__call__(inputs, *args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # Here, and not when what is built on it runs.
        if id(self) not in layers_off() and kwargs.get("features") is None:
            routed = self.features.routed
            if routed and current_routing(self.features) is None:
                raise ValueError(no_features(self, [f.name for f in routed]))
        return super().compute_output_spec(*args, **kwargs)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(two_loras(self))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "features": self._tables.own_features().get_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        config = dict(config)
        if isinstance(config.get("features"), Mapping):
            config["features"] = FeatureSchema.from_config(config["features"])
        return super().from_config(config)
