"""`FeatureSchema.encode`: values in all their guises, as int32 ids."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from keras_flix import Feature, FeatureSchema
from keras_flix.features.encoding import WEIGHT_UNIT, EncodedIds

AXES = {"task": ["qa", "parse"], "language": ["en", "sw", "yo"]}
STYLE = Feature("style", ["news", "chat", "code"], multiple=True)
LEVEL = Feature("level", [30, 10, 20])


def encode_task(entry, **kwargs):
    ids = FeatureSchema({"task": ["qa", "parse"]}).encode({"task": entry}, **kwargs)
    return ids["task"]


def encode(feature, entry, **kwargs):
    return FeatureSchema([feature]).encode({feature.name: entry}, **kwargs)[
        feature.name
    ]


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        ["parse", "qa", None],
        ("parse", "qa", None),
        ["parse", 0, -1],
        [1, 0, -1],
        [b"parse", b"qa", None],
        np.array(["parse", "qa", None], object),
        np.array([b"parse", b"qa", None], object),
        np.array([1, 0, -1], "int64"),
        np.array([1, 0, -1], "int8"),
        np.array([1, 0, -1], object),
        [np.int32(1), np.str_("qa"), np.int64(-1)],
    ],
    ids=repr,
)
def test_one_value_per_example(entry):
    ids = encode_task(entry)
    assert ids.tolist() == [1, 0, -1]
    assert ids.dtype == np.int32


@pytest.mark.parametrize(
    "entry",
    [
        np.array(["parse", "qa"]),
        np.array([b"parse", b"qa"]),
        np.array([1, 0], "uint8"),
        np.array([1, 0], "uint64"),
    ],
    ids=repr,
)
def test_arrays_without_absent_values(entry):
    assert encode_task(entry).tolist() == [1, 0]


@pytest.mark.parametrize(
    "entry",
    [
        "parse",
        b"parse",
        1,
        np.int8(1),
        np.str_("parse"),
        np.array(1),
        np.array("parse"),
    ],
    ids=repr,
)
def test_one_value_for_the_whole_batch(entry):
    assert encode_task(entry).tolist() == [1]
    assert encode_task(entry, batch_size=3).tolist() == [1, 1, 1]
    ids = FeatureSchema(AXES).encode({"task": entry, "language": ["sw", "en"]})
    assert {name: value.tolist() for name, value in ids.items()} == {
        "task": [1, 1],
        "language": [1, 0],
    }
    assert ids["task"].dtype == np.int32


@pytest.mark.parametrize("absent", [None, -1, np.int64(-1), np.array(-1)], ids=repr)
def test_absent_for_the_whole_batch(absent):
    assert encode_task(absent, batch_size=2).tolist() == [-1, -1]


def test_axes_come_in_the_schemas_order():
    ids = FeatureSchema(AXES).encode({"language": "sw", "task": "qa"})
    assert list(ids) == ["task", "language"]


def test_always_axes_have_no_ids():
    schema = FeatureSchema([*FeatureSchema(AXES), Feature("shared", always=True)])
    assert list(schema.encode({"task": 0, "language": 0})) == ["task", "language"]


def test_an_empty_batch():
    schema = FeatureSchema([*FeatureSchema(AXES), STYLE])
    ids = schema.encode({"task": [], "language": "sw", "style": []})
    assert {name: value.shape for name, value in ids.items()} == {
        "task": (0,),
        "language": (0,),
        "style": (0, 1),
    }


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ([["news", "code"], [], ["chat"]], [[0, 2], [-1, -1], [1, -1]]),
        ([["news", None], None, "chat"], [[0, -1], [-1, -1], [1, -1]]),
        (["news", "chat"], [[0], [1]]),
        ([[0, 2], (1,)], [[0, 2], [1, -1]]),
        ("chat", [[1]]),
        (None, [[-1]]),
        (np.array([[0, 2], [1, -1]]), [[0, 2], [1, -1]]),
        (np.array([[-1, -1], [-1, 1]]), [[-1, -1], [-1, 1]]),
        (np.array([2, -1]), [[2], [-1]]),
        (np.array([["news", "code"]]), [[0, 2]]),
        ([np.array([0, 2]), np.array(["chat"])], [[0, 2], [1, -1]]),
    ],
    ids=repr,
)
def test_several_values_per_example(entry, expected):
    ids = encode(STYLE, entry)
    assert ids.tolist() == expected
    assert ids.dtype == np.int32


def test_integer_values_are_looked_up():
    assert encode(LEVEL, [10, None, 30, -1]).tolist() == [1, -1, 0, -1]
    assert encode(LEVEL, np.array([20, -1])).tolist() == [2, -1]
    assert encode(LEVEL, 20).tolist() == [2]
    assert LEVEL.encoder()([10, 30]).tolist() == [1, 0]
    ids = LEVEL.encoder(ints_are_ids=True)
    assert ids([1, 0]).tolist() == [1, 0]
    assert ids(np.array([2, -1])).tolist() == [2, -1]
    assert refusal(lambda: encode(LEVEL, [15])) == (
        "A value of feature 'level' must be one of its 3 values. Received: level=15. "
        "Known values: 30, 10, 20. State absence as None, and ids as 'level:ids'."
    )


def test_ids_of_integer_values_are_known_to_be_ids():
    schema = FeatureSchema([LEVEL, Feature("task", ["qa", "parse"])])
    ids = schema.encode({"level": [20, None], "task": ["parse", None]})
    assert (type(ids["level"]), type(ids["task"])) == (EncodedIds, np.ndarray)
    # What it returned is what it takes, and the same ids come back.
    again = schema.encode({**ids, "level": ids["level"][:2].copy()})
    assert again["level"].tolist() == ids["level"].tolist() == [2, -1]
    by_key = schema.encode({"level:ids": [2, -1], "task:ids": [1, -1]})
    assert {name: one.tolist() for name, one in by_key.items()} == {
        "level": [2, -1],
        "task": [1, -1],
    }
    assert schema.decode(by_key) == {"level": [20, None], "task": ["parse", None]}
    assert schema.encode_one({"level:ids": 1, "task": "qa"})["level"].tolist() == [1]
    assert refusal(lambda: schema.encode({"level": 10, "level:ids": 1, "task": 0})) == (
        "A feature must have one entry, of values or of ids. Received: 'level' and "
        "'level:ids'. Remove one."
    )


def test_unknown_values_raise_and_name_the_nearest():
    text = (
        "A value of feature 'task' must be one of its 2 values. Received: "
        "task='prase'. The nearest known value is 'parse'. Known values: 'qa', "
        "'parse'. State absence as None."
    )
    assert refusal(lambda: encode_task(["qa", "prase"])) == text
    assert refusal(lambda: encode_task("prase")) == text
    assert refusal(lambda: encode_task([b"prase"])) == text
    assert "Received: task=''" in refusal(lambda: encode_task([""]))


def test_unknown_values_become_absent_on_demand():
    assert encode_task(["qa", "zz", None], unknown="absent").tolist() == [0, -1, -1]
    assert encode(LEVEL, [15, 10], unknown="absent").tolist() == [-1, 1]
    assert encode(STYLE, [["news", "zz"]], unknown="absent").tolist() == [[0, -1]]
    assert refusal(lambda: encode_task("qa", unknown="ignore")) == (
        "`unknown` must be 'error' or 'absent'. Received: unknown='ignore'. Use "
        "'absent' to map unknown values to -1."
    )


@pytest.mark.parametrize(
    ("entry", "received"),
    [
        ([0, 1, 2], "task=2 (at example 2)"),
        ([0, -2], "task=-2 (at example 1)"),
        (np.array([0, 1, 7, 9]), "task=7 (at example 2)"),
        (np.array([1, 255], "uint8"), "task=255 (at example 1)"),
        (np.array([2**64 - 1], "uint64"), f"task={2**63 - 1} (at example 0)"),
        (np.array([2**32], "int64"), f"task={2**32} (at example 0)"),
        ([0, 2**70], f"task={2**70} (at example 1)"),
        (5, "task=5"),
        (np.array(5), "task=5"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("unknown", ["error", "absent"])
def test_ids_out_of_range_raise(entry, received, unknown):
    assert refusal(lambda: encode_task(entry, unknown=unknown)) == (
        f"The ids of feature 'task' must be in [0, 2), or -1 for absent. Received: "
        f"{received}. Encode values with `schema.encode(...)`."
    )


@pytest.mark.parametrize(
    ("entry", "dtype"),
    [
        ([0.0, 1.0], "float"),
        (1.0, "float"),
        ([None, 0.5, float("nan")], "float"),
        ([1.0, None], "float"),
        (np.array([0.0]), "float64"),
        (np.float32(0), "float32"),
        ([True], "bool"),
        (np.array([True]), "bool"),
        (np.bool_(True), "bool"),
        (np.array([1j]), "complex128"),
        ([np.datetime64("2020-01-01")], "datetime64"),
        ({"qa"}, "set"),
    ],
    ids=repr,
)
def test_other_dtypes_raise(entry, dtype):
    assert refusal(lambda: encode_task(entry)) == (
        "The entry of feature 'task' must hold strings, integer ids or None. "
        f"Received: task of dtype {dtype}. Encode values with `schema.encode(...)`, "
        "or cast ids to int32."
    )


def test_lengths_must_agree():
    schema = FeatureSchema(AXES)
    text = (
        "Every feature must have one entry per example. Received: 3 entries of "
        "'language' for a batch of 2. Pass one value for the whole batch, or one per "
        "example."
    )
    entries = {"task": ["qa", "qa"], "language": ["en", "sw", "yo"]}
    assert refusal(lambda: schema.encode(entries)) == text
    entries = {"task": "qa", "language": np.array([0, 1, 2])}
    assert refusal(lambda: schema.encode(entries, batch_size=2)) == text
    # One entry in a list is one example, not all of them.
    text = refusal(lambda: encode_task(["qa"], batch_size=2))
    assert "Received: 1 entries of 'task' for a batch of 2." in text


def test_shapes_must_fit():
    assert refusal(lambda: encode_task(np.zeros((2, 2), int))) == (
        "The ids of feature 'task' must have the shape (batch,). Received: task of "
        "shape (2, 2). Pass one entry per example."
    )
    assert refusal(lambda: encode(STYLE, np.zeros((2, 2, 3), int))) == (
        "The ids of feature 'style' must have the shape (batch, k). Received: style "
        "of shape (2, 2, 3). Pass one entry per example."
    )
    assert refusal(lambda: encode_task([["qa", "parse"], "qa"])) == (
        "Feature 'task' takes one value per example. Received: task=['qa', 'parse'] "
        "for one example. Pass a single value, or declare the feature with "
        "multiple=True."
    )


@pytest.mark.parametrize(
    "entry", [["code", ["news", "chat", "news"]], np.array([[2, -1, -1], [0, 1, 0]])]
)
def test_an_example_has_a_value_once(entry):
    assert refusal(lambda: encode(STYLE, entry)) == (
        "An example must have each value of feature 'style' at most once. Received: "
        "style=[0, 1, 0] (as ids, at example 1). Remove the repeated one."
    )


def test_the_only_example_has_a_value_once():
    assert "style=[1, 1] (as ids, at example 0)" in refusal(
        lambda: encode(STYLE, [["chat", "chat"]])
    )


def test_packed_weights_may_repeat_but_not_their_ids():
    packed = np.array([[[0, 5], [1, 5]]])
    np.testing.assert_array_equal(encode(STYLE, packed), packed)
    assert "style=[0, 0] (as ids, at example 0)" in refusal(
        lambda: encode(STYLE, np.array([[[0, 5], [0, 7]]]))
    )


def test_the_greatest_weights():
    found = encode(STYLE, [{"news": 1000.0, "chat": -1000.0}])
    np.testing.assert_allclose(found[0, :, 1] * WEIGHT_UNIT, [1000.0, -1000.0])
    assert "must be a number between -1000 and 1000. Received: 'news': 1000.5" in (
        refusal(lambda: encode(STYLE, [{"news": 1000.5}]))
    )


VOCABULARIES = st.one_of(
    st.lists(st.text(min_size=1), min_size=1, max_size=8, unique=True),
    st.lists(st.integers(min_value=0), min_size=1, max_size=8, unique=True),
)


@given(st.data())
def test_encoding_undoes_decoding(data):
    values = data.draw(VOCABULARIES)
    ids = data.draw(st.lists(st.integers(-1, len(values) - 1), max_size=8))
    decoded = [None if i == -1 else values[i] for i in ids]
    assert encode(Feature("f", values), decoded).tolist() == ids


@given(st.data())
def test_encoding_undoes_decoding_of_several_values(data):
    values = data.draw(VOCABULARIES)
    sets = st.lists(st.integers(0, len(values) - 1), unique=True)
    rows = data.draw(st.lists(sets, max_size=5))
    decoded = [[values[i] for i in row] for row in rows]
    ids = encode(Feature("f", values, multiple=True), decoded)
    assert [[i for i in row if i != -1] for row in ids.tolist()] == rows
