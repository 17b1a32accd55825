"""A training step goes through few doors of the package."""

import keras
import pytest

import keras_flix
from benchmarks.cost import calls

BEFORE = {
    "jax": ((527, 261), (1261, 634)),
    "tensorflow": ((577, 287), (1321, 665)),
    "torch": ((609, 297), (1353, 675)),
}
"""Calls and moves in version 0.1.0, of the two models."""


@pytest.mark.parametrize("place", [0, 1])
def test_a_first_step_has_half_the_calls_and_moves_it_had(place):
    make = (calls.two_layers, calls.small_gemma)[place]
    most_calls, most_moves = BEFORE[keras.config.backend()][place]
    found = calls.first_step(make)
    assert found.calls <= 0.5 * most_calls
    assert found.moves <= 0.5 * most_moves


def test_moves_are_counted():
    schema = keras_flix.FeatureSchema({"a": ["x"]})
    found = calls.count(lambda: schema.encode({"a": "x"}))
    assert found.calls >= 5 and 2 <= found.moves < found.calls and found.files == 5
