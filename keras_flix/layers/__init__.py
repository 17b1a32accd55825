"""Keras layers whose kernels depend on features."""

from typing import TYPE_CHECKING

from keras_flix._utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from keras_flix.layers.dense import FlixDense as FlixDense
    from keras_flix.layers.einsum_dense import FlixEinsumDense as FlixEinsumDense

ORIGINS = {
    "FlixDense": "keras_flix.layers.dense",
    "FlixEinsumDense": "keras_flix.layers.einsum_dense",
}
__all__ = sorted(ORIGINS)
if not TYPE_CHECKING:
    # Type checkers would take any name for one of the package.
    __getattr__, __dir__ = lazy_names(__name__, ORIGINS)
