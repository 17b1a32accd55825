"""`FeatureSchema`: the features as a collection, ranks, config, and one-example ids."""

import json

import numpy as np
import pytest

from keras_flix import Feature, FeatureSchema
from keras_flix.features.schema import check_feature

AXES = {"task": ["qa", "parse"], "language": ["en", "sw", "yo"]}


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


def test_takes_a_dict_a_list_or_a_schema():
    schema = FeatureSchema(AXES)
    assert schema == FeatureSchema([Feature(n, v) for n, v in AXES.items()])
    assert schema == FeatureSchema(schema)
    assert hash(schema) == hash(FeatureSchema(schema))
    assert schema != FeatureSchema({"task": ["qa", "parse"]})
    assert schema != AXES


def test_order_matters():
    assert FeatureSchema(AXES) != FeatureSchema(dict(reversed(AXES.items())))


def test_is_a_collection_of_features():
    schema = FeatureSchema([*FeatureSchema(AXES), Feature("shared", always=True)])
    assert schema.names == ["task", "language", "shared"]
    assert [feature.name for feature in schema] == schema.names
    assert len(schema) == 3
    assert "task" in schema and "style" not in schema
    assert schema["language"].values == ("en", "sw", "yo")
    assert [feature.name for feature in schema.routed] == ["task", "language"]
    with pytest.raises(KeyError) as error:
        schema["style"]
    assert error.value.args == (
        "No feature is called 'style'. Features: ['task', 'language', 'shared'].",
    )


def test_refuses_an_empty_schema():
    text = (
        "A feature schema must have at least one feature. Received: features=[]. "
        'Name the features of the mixture, such as {"task": ["qa", "parse"]}.'
    )
    assert refusal(lambda: FeatureSchema([])) == text
    assert refusal(lambda: FeatureSchema({})) == text


@pytest.mark.parametrize("features", ["task", 3, None, Feature("task", ["qa"])])
def test_refuses_what_is_no_collection(features):
    assert refusal(lambda: FeatureSchema(features)) == (
        "`features` must be a FeatureSchema, a list of Feature or a dict from name "
        f"to values. Received: features={features!r}. Wrap it in a list."
    )


def test_refuses_members_that_are_no_features():
    assert refusal(lambda: FeatureSchema(["task"])) == (
        "The members of a feature schema must be Feature. Received: 'task' of type "
        "str. Write Feature(name, values)."
    )


def test_refuses_two_axes_of_one_name():
    axes = [Feature("task", ["qa"]), Feature("task", ["parse"])]
    assert refusal(lambda: FeatureSchema(axes)) == (
        "The features of a schema must have unique names. Received: names=['task', "
        "'task']. Rename or join 'task'."
    )


def ranks_of(schema):
    return {feature.name: feature.ranks for feature in schema}


def dropouts_of(schema):
    return {feature.name: feature.dropout for feature in schema}


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (8, {"task": (8, 8), "language": (8, 8, 8)}),
        ({"task": 8}, {"task": (8, 8), "language": (4, 4, 4)}),
        (
            {"language": {"en": 2, "*": 4}, "task": 1},
            {"task": (1, 1), "language": (2, 4, 4)},
        ),
    ],
)
def test_resolve_fills_ranks_in(rank, expected):
    schema = FeatureSchema(AXES)
    assert ranks_of(schema.resolve(rank)) == expected
    assert schema["task"].rank is None


def test_resolve_fills_dropouts_in():
    schema = FeatureSchema(AXES)
    assert dropouts_of(schema.resolve()) == {"task": 0.0, "language": 0.0}
    assert dropouts_of(schema.resolve(dropout=0.5)) == {"task": 0.5, "language": 0.5}
    resolved = schema.resolve(dropout={"language": 0.5})
    assert dropouts_of(resolved) == {"task": 0.0, "language": 0.5}


def test_a_features_own_rank_and_dropout_win():
    schema = FeatureSchema([Feature("task", ["qa"], rank=2, dropout=0.0)])
    resolved = schema.resolve(rank=8, dropout=0.5)
    assert ranks_of(resolved) == {"task": (2,)}
    assert dropouts_of(resolved) == {"task": 0.0}


def test_a_features_own_scale_wins():
    own = [Feature("task", ["qa"], scale="rank"), Feature("language", ["en"], rank=4)]
    resolved = FeatureSchema(own).resolve(9, alpha=12, scale="sqrt")
    assert [f.scales for f in resolved] == [(12 / 9,), (6.0,)]
    alphas = [Feature("task", ["qa"], alpha=3), Feature("language", ["en"])]
    resolved = FeatureSchema(alphas).resolve(2, alpha=12)
    assert [f.scales for f in resolved] == [(1.5,), (6.0,)]
    # What takes the default says nothing of it: 0.1 reads such files.
    assert FeatureSchema(own).resolve(alpha=12)["language"].scale is None
    assert "scale" not in FeatureSchema(own)["language"].get_config()


def test_resolve_refuses_names_of_no_feature():
    schema = FeatureSchema(AXES)
    assert refusal(lambda: schema.resolve(rank={"tsk": 2})) == (
        "`rank` by feature must name features of the schema. Received: "
        "rank={'tsk': 2}, where 'tsk' is none of ['task', 'language']. Correct the "
        "name."
    )
    assert refusal(lambda: schema.resolve(dropout={"tsk": 0.1})) == (
        "`dropout` by feature must name features of the schema. Received: "
        "dropout={'tsk': 0.1}, where 'tsk' is none of ['task', 'language']. Correct "
        "the name."
    )
    assert "must be at least 1" in refusal(lambda: schema.resolve(rank=0))
    assert "must be a number in [0, 1)" in refusal(lambda: schema.resolve(dropout=1.0))


def test_config_survives_json():
    schema = FeatureSchema(
        [
            Feature("task", ["qa", "parse"], rank={"qa": 2, "*": 8}, dropout=0.5),
            Feature("level", [3, 1, 2], rank={3: 1, "*": 2}),
            Feature("style", ["news", "chat"], multiple=True),
            Feature("shared", always=True, rank=1),
        ]
    )
    config = json.loads(json.dumps(schema.get_config()))
    assert FeatureSchema.from_config(config) == schema
    assert FeatureSchema.from_config(config).get_config() == config


def test_entries_are_one_per_feature():
    schema = FeatureSchema([*FeatureSchema(AXES), Feature("shared", always=True)])
    schema.check_entries({"language": "sw", "task": None})
    assert refusal(lambda: schema.check_entries({"task": "qa"})) == (
        "Every feature must have an entry in the input dict, next to the model's "
        "own inputs. Received: no entry 'language' (entries: ['task']). State its "
        "values or ids; where an example has none, None or -1."
    )
    assert refusal(lambda: schema.check_entries("qa")) == (
        "Feature values must be a dict from the name of a feature to its entry. "
        "Received: 'qa'. Write such as {'task': ...}."
    )
    assert refusal(lambda: schema.check_entries({"style": 1})) == (
        "Feature values must belong to the schema's features ['task', 'language']. "
        "Received: 'style'. Remove it."
    )
    assert refusal(lambda: schema.check_entries({"shared": 1})) == (
        "Feature values must belong to the schema's features ['task', 'language']. "
        "Received: 'shared', which is always active and takes no entry. Remove it."
    )


def test_encode_one_is_a_batch_of_one():
    schema = FeatureSchema(
        [
            *FeatureSchema(AXES),
            Feature("style", ["news", "chat"], multiple=True),
            Feature("shared", always=True),
        ]
    )
    ids = schema.encode_one({"task": None, "language": 2, "style": ["chat", "news"]})
    assert {name: (value.tolist(), value.dtype) for name, value in ids.items()} == {
        "task": ([-1], np.int32),
        "language": ([2], np.int32),
        "style": ([[1, 0]], np.int32),
    }
    ids = schema.encode_one({"task": "qa", "language": "en", "style": None})
    assert ids["style"].tolist() == [[-1]]


def test_encode_one_takes_one_example_only():
    text = refusal(
        lambda: FeatureSchema(AXES).encode_one({"task": ["qa", "qa"], "language": 0})
    )
    assert text == (
        "Every feature must have one entry per example. Received: 2 entries of "
        "'task' for a batch of 1. Pass one value for the whole batch, or one per "
        "example."
    )


@pytest.mark.parametrize(
    "entries",
    [
        {"task": ["qa", None, "parse"], "language": [["en"], [], ["yo", "en"]]},
        {"task": [None] * 3, "language": [["sw"], ["en", "sw", "yo"], []]},
        {"task": ["qa"] * 3, "language": [{"en": 0.5, "yo": 0.25}, {}, {"sw": 1.0}]},
        {"task": [{"qa": 0.5}, {"parse": 2.0}, {}], "language": [["sw"], ["yo"], []]},
    ],
)
def test_decode_is_the_inverse_of_encode(entries):
    schema = FeatureSchema(
        [
            Feature("task", ["qa", "parse"]),
            Feature("language", ["en", "sw", "yo"], multiple=True),
        ]
    )
    assert schema.decode(schema.encode(entries)) == entries


def test_decode_refuses_ids_of_another_schema():
    schema = FeatureSchema({"year": [2019, 2020]})
    assert schema.decode({"year": np.array([1, 0, -1])}) == {"year": [2020, 2019, None]}
    with pytest.raises(ValueError, match=r"must be in \[0, 2\), or -1 .*year=\[0, 2\]"):
        schema.decode({"year": np.array([0, 2])})
    with pytest.raises(KeyError, match="No feature is called 'month'"):
        schema.decode({"month": np.array([0])})


def test_check_feature_names_the_nearest():
    check_feature("task", ["task", "language"], "A figure")
    assert refusal(
        lambda: check_feature("langage", {"task": 1, "language": 2}, "A figure")
    ) == (
        "A figure must name one of the features ['task', 'language']. Received: "
        "'langage'. The nearest is 'language'."
    )
