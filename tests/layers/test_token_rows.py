"""Embeddings whose rows train: looked up, in tied heads, and for who reads them all."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import to_numpy

from keras_flix.layers.active_scope import switched_off
from keras_flix.layers.token_rows import EMBEDDINGS, TokenRows

pytestmark = pytest.mark.eager

IDS = [8, 1, 5]
TOKENS = np.array([[0, 1, 5], [8, 9, 1]], "int32")


def make(cls, **options):
    keras.utils.set_random_seed(0)
    layer = cls(10, 4, name="tokens", **options)
    layer.build()
    return layer


def changed(layer):
    """With rows of other numbers; returns them as a whole matrix."""
    base = to_numpy(layer.embeddings).copy()
    TokenRows.from_layer(layer, IDS)
    np.testing.assert_array_equal(to_numpy(layer(TOKENS)), base[TOKENS])
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    layer.adapter_variables()["flix_token_rows"].assign(rows)
    whole = base.copy()
    whole[sorted(IDS)] = rows
    return base, whole


@pytest.mark.parametrize("cls", EMBEDDINGS)
def test_rows_take_the_place_of_the_bases(cls):
    layer = make(cls)
    base, whole = changed(layer)
    np.testing.assert_array_equal(to_numpy(layer(TOKENS)), whole[TOKENS])
    np.testing.assert_array_equal(to_numpy(layer(TOKENS[0])), whole[TOKENS[0]])
    np.testing.assert_array_equal(to_numpy(layer.embeddings), whole)
    with switched_off([layer]):
        np.testing.assert_array_equal(to_numpy(layer(TOKENS)), base[TOKENS])
        np.testing.assert_array_equal(to_numpy(layer.embeddings), base)
    layer.adapter_variables()["flix_token_rows"].trainable = True
    assert isinstance(layer, cls) and layer.plain_class is cls


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cap", [None, 0.5])
def test_output_heads(tied, cap):
    layer = make(
        keras_hub.layers.ReversibleEmbedding, tie_weights=tied, logit_soft_cap=cap
    )
    _, whole = changed(layer)
    kernel = whole.T
    if not tied:
        kernel = to_numpy(layer.reverse_embeddings).copy()
        columns = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
        layer.adapter_variables()["flix_token_columns"].assign(columns)
        kernel[:, sorted(IDS)] = columns.T
    x = np.random.default_rng(2).normal(size=(2, 3, 4)).astype("float32")
    expected = x @ kernel
    if cap:
        expected = cap * np.tanh(expected / cap)
    found = to_numpy(layer(x, reverse=True))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_rows_are_float32_beside_any_base(dtype):
    layer = make(keras_hub.layers.ReversibleEmbedding, dtype=dtype)
    TokenRows.from_layer(layer, IDS)
    rows = layer.adapter_variables()["flix_token_rows"]
    assert keras.backend.standardize_dtype(rows.dtype) == "float32"
    outputs = layer(TOKENS)
    logits = layer(outputs, reverse=True)
    plain = make(keras_hub.layers.ReversibleEmbedding, dtype=dtype)
    theirs = plain(TOKENS), plain(outputs, reverse=True)
    for found, expected in zip((outputs, logits), theirs):
        assert found.dtype == expected.dtype
        found, expected = (
            to_numpy(keras.ops.cast(x, "float32")) for x in (found, expected)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_masks_go_on():
    layer = make(keras_hub.layers.ReversibleEmbedding, mask_zero=True)
    TokenRows.from_layer(layer, IDS)
    outputs = layer(keras.ops.convert_to_tensor(TOKENS))
    np.testing.assert_array_equal(to_numpy(outputs._keras_mask), TOKENS != 0)
