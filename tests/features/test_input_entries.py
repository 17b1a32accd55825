"""Ids that a model has checked are not checked again, and no others pass for them."""

import numpy as np
import pytest
from keras import ops

from keras_flix import Feature, FeatureSchema
from keras_flix.features.input_entries import (
    batch_length,
    encode_in_tf,
    encoded,
    layer_ids,
)

SCHEMA = FeatureSchema({"task": ["qa", "parse"]})


def make_ids(values):
    return {"task": ops.convert_to_tensor(np.array(values), "int32")}


def test_the_very_ids_come_back():
    ids = make_ids([0, 1])
    with encoded(SCHEMA, ids):
        assert layer_ids(SCHEMA, dict(ids), 2) is ids
        assert layer_ids(SCHEMA, make_ids([0, 1]), 2) is not ids
    assert layer_ids(SCHEMA, ids, 2) is not ids


def test_without_entries_nothing_is_known():
    with encoded(SCHEMA, {}), pytest.raises(ValueError, match="no entry 'task'"):
        layer_ids(SCHEMA, {}, 2)


def test_other_ids_are_checked():
    with encoded(SCHEMA, make_ids([0, 1])):
        with pytest.raises(ValueError, match=r"must be in \[0, 2\).*task=2"):
            layer_ids(SCHEMA, make_ids([0, 2]), 2)


def test_the_same_ids_are_checked_for_other_features():
    ids = make_ids([0, 1])
    with encoded(SCHEMA, ids):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\).*task=1"):
            layer_ids(FeatureSchema({"task": ["qa"]}), ids, 2)


def test_autograph_converts_it_without_a_warning():
    tf = pytest.importorskip("tensorflow")
    assert tf.autograph.to_graph(layer_ids)


def test_a_pipeline_knows_the_axes_of_the_ids():
    tf = pytest.importorskip("tensorflow")
    schema = FeatureSchema(
        [Feature("task", ["qa"]), Feature("language", ["en", "sw"], multiple=True)]
    )
    rows = {"task": ["qa", "qa"], "language": [["en"], ["sw"]]}
    for languages, shape in (
        ([["en"], ["sw"]], [None, None]),
        ([[0.5, 1.0], [1.0, 0.0]], [None, None, 2]),
    ):
        data = tf.data.Dataset.from_tensor_slices({**rows, "language": languages})
        found = data.batch(2).map(lambda batch: encode_in_tf(schema, batch, None))
        assert found.element_spec["task"].shape.as_list() == [None]
        assert found.element_spec["language"].shape.as_list() == shape


def test_it_ends_with_the_block():
    ids = make_ids([0, 1])
    with pytest.raises(RuntimeError, match="inside"):
        with encoded(SCHEMA, ids):
            raise RuntimeError("inside")
    assert layer_ids(SCHEMA, ids, 2) is not ids


@pytest.mark.parametrize(
    "own, length",
    [
        ({"prompts": ["a", "b", "c"]}, 3),
        ("a", 1),
        ([[1.0], [2.0]], 2),
        ({"x": np.zeros((4, 3)), "y": np.zeros((4, 2))}, 4),
        ({"x": np.zeros(3)}, 3),
    ],
    ids=["prompts", "prompt", "numbers", "arrays", "one axis"],
)
def test_the_length_of_a_batch(own, length):
    assert batch_length(own, {"task": "qa"}) == length


def test_inputs_of_several_lengths_take_one_value_for_all():
    own = {"texts": np.zeros((2, 3)), "images": np.zeros((3, 4))}
    assert batch_length(own, {"task": "qa"}) == 1
    with pytest.raises(ValueError, match=r"lengths \[2, 3\], and 2 entries of 'task'"):
        batch_length(own, {"task": ["qa", "parse"]})
