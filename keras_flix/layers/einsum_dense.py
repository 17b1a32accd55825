"""`FlixEinsumDense`: an `EinsumDense` whose kernel depends on features."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_flix.features.schema import Dropouts, Features, Ranks
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.low_rank_layer import LowRankLayer


@keras.saving.register_keras_serializable(package="keras_flix")
class FlixEinsumDense(LowRankLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` with a low-rank update per feature value.

    The kernel of an example is `W_0 + sum over f of s_f * A_f @ B_f`, where
    `f` runs over the example's feature values and the kernel is flattened to
    a matrix, contracted axes against produced ones (Lin et al., arXiv
    2402.17934). `W_0` is frozen, and `B_f` starts at zero.

    Args:
        equation: As for `EinsumDense`. The batch is the activation's first axis.
        output_shape: As for `EinsumDense`.
        features: A `FeatureSchema`, a list of `Feature`, or a dict from name
            to values.
        rank: Rank of the features that state none: a number or a dict by feature.
        alpha: A value's scale is `alpha / rank`; `None` means 1.
        scale: `"sqrt"` makes it `alpha / sqrt(rank)`.
        dropout: Feature dropout of the features that state none.
        **kwargs: Arguments of `EinsumDense`, such as `bias_axes`.

    Call arguments:
        inputs: The activations, as `equation` has them.
        features: Dict with values or ids per feature: one for the whole batch, or
            one per example (`int32`, shape `(batch,)`; `(batch, k)` for
            `multiple` features). Not needed inside a model that `enable_flix`
            adapted.
        training: Whether feature dropout applies.

    Example:

    >>> layer = FlixEinsumDense(
    ...     "btd,ndh->btnh",
    ...     output_shape=(None, 2, 8),
    ...     features={"language": ["en", "sw"]},
    ...     rank=2,
    ... )
    >>> x = keras.ops.ones((3, 5, 16))
    >>> tuple(layer(x, features={"language": ["en", None, "sw"]}).shape)
    (3, 5, 2, 8)
    >>> tuple(layer.kernel_delta({"language": "sw"}).shape)
    (2, 16, 8)
    """

    plain_class = keras.layers.EinsumDense

    def __init__(
        self,
        equation: str,
        output_shape: Any,
        *,
        features: Features,
        rank: Ranks = 4,
        alpha: float | None = None,
        scale: str = "rank",
        dropout: Dropouts = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(equation, output_shape, **kwargs)
        self._configure_features(features, rank, alpha, scale, dropout)

    def _linear(self, inputs: Tensor) -> Tensor:
        return ops.einsum(self.equation, inputs, self.kernel)
