"""Keras layers whose kernels depend on features."""

from keras_flix.layers.dense import FlixDense
from keras_flix.layers.einsum_dense import FlixEinsumDense

__all__ = ["FlixDense", "FlixEinsumDense"]
