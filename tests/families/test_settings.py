"""What the fingerprint of a base leaves out of its config changes no output."""

import numpy as np
import pytest
from families import decoders, encoders, seq_2_seq, vision
from helpers.gemma import to_numpy
from keras import ops, tree

from keras_flix import base_fingerprint
from keras_flix.files.base_configuration import LENGTH, WITHOUT_EFFECT

FAMILIES = [
    *decoders.FAMILIES,
    *encoders.FAMILIES,
    *seq_2_seq.FAMILIES,
    *vision.FAMILIES,
]
SMALL = 1e-5
"""Without dropout, attention may be computed by other operations."""


def outputs(model, inputs):
    found = tree.flatten(model(inputs, training=False))
    return [to_numpy(ops.cast(one, "float32")) for one in found]


def left_out(config, place=()):
    """The places of numbers that the fingerprint leaves out, and the numbers."""
    for name, entry in config.items():
        if isinstance(entry, dict):
            yield from left_out(entry, (*place, name))
        elif WITHOUT_EFFECT.fullmatch(name) or LENGTH.fullmatch(name):
            numbers = entry if isinstance(entry, (list, tuple)) else [entry]
            if all(type(one) in (int, float) for one in numbers):
                yield (*place, name), entry


def changed(config, place, entry):
    """The config with another number."""
    name, *inner = place
    if inner:
        return {**config, name: changed(config[name], inner, entry)}
    other = [0.3 if isinstance(x, float) else 2 * x for x in np.ravel(entry).tolist()]
    return {**config, name: type(entry)(other) if np.ndim(entry) else other[0]}


@pytest.mark.slow
@pytest.mark.short()
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_numbers_that_are_left_out(family):
    base, inputs = family.build(), family.inputs(2)
    expected, weights = outputs(base, inputs), base.get_weights()
    config, own = base.get_config(), base_fingerprint(base)
    tried = list(left_out(config))
    for place, entry in tried:
        try:
            other = type(base).from_config(changed(config, place, entry))
            other.set_weights(weights)
            found = outputs(other, inputs)
        except (ValueError, RuntimeError):
            continue  # the weights, or the inputs, have other shapes
        same = all(np.allclose(*pair, atol=SMALL) for pair in zip(expected, found))
        theirs = base_fingerprint(other)
        assert same or own.other_settings(theirs) or own.differences(theirs), place
