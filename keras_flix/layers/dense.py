"""`FlixDense`: a `Dense` whose kernel depends on features."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_flix.features.schema import Dropouts, Features, Ranks
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.checks import DENSE_EQUATION
from keras_flix.layers.low_rank_layer import LowRankLayer


@keras.saving.register_keras_serializable(package="keras_flix")
class FlixDense(LowRankLayer, keras.layers.Dense):
    """`keras.layers.Dense` with a low-rank update per feature value.

    See `FlixEinsumDense` for the formula.

    Args:
        units: Size of the output, as for `Dense`.
        features: A `FeatureSchema`, a list of `Feature`, or a dict from name
            to values.
        rank: Rank of the features that state none: a number or a dict by feature.
        alpha: A value's scale is `alpha / rank`; `None` means 1.
        scale: `"sqrt"` makes it `alpha / sqrt(rank)`.
        dropout: Feature dropout of the features that state none.
        **kwargs: Arguments of `Dense`, such as `activation`.

    Call arguments:
        inputs: Activations of shape `(batch, ..., input_dim)`.
        features: As for `FlixEinsumDense`.
        training: Whether feature dropout applies.

    Example:

    >>> layer = FlixDense(8, features={"task": ["qa", "parse"]}, rank=2)
    >>> tuple(layer(keras.ops.ones((2, 16)), features={"task": "qa"}).shape)
    (2, 8)
    """

    plain_class = keras.layers.Dense
    equation = DENSE_EQUATION

    def __init__(
        self,
        units: int,
        *,
        features: Features,
        rank: Ranks = 4,
        alpha: float | None = None,
        scale: str = "rank",
        dropout: Dropouts = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, **kwargs)
        self._configure_features(features, rank, alpha, scale, dropout)

    def _linear(self, inputs: Tensor) -> Tensor:
        return ops.matmul(inputs, self.kernel)
