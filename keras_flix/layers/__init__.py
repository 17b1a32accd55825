"""Keras layers whose kernels depend on features."""

from keras_flix.layers.flix_dense import FlixDense
from keras_flix.layers.flix_einsum_dense import FlixEinsumDense

__all__ = ["FlixDense", "FlixEinsumDense"]
