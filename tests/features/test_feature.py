"""`Feature`: what it accepts, what it refuses, what it tells."""

import json

import numpy as np
import pytest

from keras_flix import Feature

REFUSALS = {
    "empty name": (
        lambda: Feature("", ["a"]),
        "A feature's name must be a non-empty string. Received: name=''. Name the "
        'feature after what it describes, such as "task" or "language".',
    ),
    "name that is no string": (
        lambda: Feature(3, ["a"]),
        "A feature's name must be a non-empty string. Received: name=3. Name the "
        'feature after what it describes, such as "task" or "language".',
    ),
    "name with a slash": (
        lambda: Feature("a/b", ["a"]),
        "A feature's name must consist of ASCII letters, digits, '_' and '-', since "
        "its variables are named after it. Received: name='a/b'. Use '_' for other "
        "characters; values may be any strings.",
    ),
    "a single string": (
        lambda: Feature("task", "qa"),
        "The values of feature 'task' must be a list. Received: values='qa', a "
        "single string. Write ['qa'].",
    ),
    "values of no order": (
        lambda: Feature("task", {"qa"}),
        "The values of feature 'task' must be a list, whose order gives their ids. "
        "Received: values={'qa'} of type set. Pass a list; for a set, "
        "sorted(values).",
    ),
    "values that are no list": (
        lambda: Feature("task", 3),
        "The values of feature 'task' must be a list, whose order gives their ids. "
        "Received: values=3 of type int. Pass a list; for a set, sorted(values).",
    ),
    "no values": (
        lambda: Feature("task", []),
        "Feature 'task' must have at least one value. Received: values=[]. List the "
        "values that occur in the mixture.",
    ),
    "mixed values": (
        lambda: Feature("task", ["qa", 1]),
        "The values of feature 'task' must be all strings or all integers. "
        "Received: values=['qa', 1]. Convert them to strings.",
    ),
    "values of another type": (
        lambda: Feature("task", [True, 2.5]),
        "The values of feature 'task' must be all strings or all integers. "
        "Received: values=[True, 2.5]. Convert them to strings.",
    ),
    "the id of absence as a value": (
        lambda: Feature("level", [-1, 0]),
        "The values of feature 'level' must not contain -1, which means absent. "
        "Received: values=[-1, 0]. Convert them to strings.",
    ),
    "duplicates": (
        lambda: Feature("task", ["qa", "parse", "qa"]),
        "The values of feature 'task' must be unique. Received: values=['qa', "
        "'parse', 'qa'], where ['qa'] occur more than once. Remove the repeated "
        "ones.",
    ),
    "always with two values": (
        lambda: Feature("all", ["a", "b"], always=True),
        "Feature 'all' has always=True and must have exactly one value. Received: "
        "values=['a', 'b']. Leave `values` out, or set always=False.",
    ),
    "always and multiple": (
        lambda: Feature("all", always=True, multiple=True),
        "Feature 'all' cannot have both always=True and multiple=True. Received: "
        "always=True, multiple=True. Choose one of them.",
    ),
    "rank 0": (
        lambda: Feature("task", ["qa"], rank=0),
        "The rank of feature 'task' must be at least 1. Received: rank=0. To leave "
        "a feature out, remove it from the schema.",
    ),
    "rank 0 of one value": (
        lambda: Feature("task", ["qa"], rank={"qa": 0}),
        "The rank of feature 'task' must be at least 1. Received: rank=0. To leave "
        "a feature out, remove it from the schema.",
    ),
    "fractional rank": (
        lambda: Feature("task", ["qa"], rank=2.0),
        "The rank of feature 'task' must be an integer. Received: rank=2.0. Pass a "
        "positive integer such as 4.",
    ),
    "boolean rank": (
        lambda: Feature("task", ["qa"], rank=True),
        "The rank of feature 'task' must be an integer. Received: rank=True. Pass a "
        "positive integer such as 4.",
    ),
    "rank of an unknown value": (
        lambda: Feature("task", ["qa", "parse"], rank={"pars": 2, "*": 1}),
        "A rank by value of feature 'task' must name its values or '*'. Received: "
        "rank={'pars': 2, '*': 1}, where 'pars' is unknown. The nearest known value "
        "is 'parse'. Known values: 'qa', 'parse'.",
    ),
    "rank of some values": (
        lambda: Feature("task", ["qa", "parse"], rank={"qa": 2}),
        "A rank by value of feature 'task' must cover every value. Received: "
        "rank={'qa': 2}, without ['parse']. Add them, or '*' for all others.",
    ),
    "dropout 1": (
        lambda: Feature("task", ["qa"], dropout=1),
        "The dropout of feature 'task' must be a number in [0, 1). Received: "
        "dropout=1. Pass 0.0 for none.",
    ),
    "dropout that is no number": (
        lambda: Feature("task", ["qa"], dropout="0.5"),
        "The dropout of feature 'task' must be a number in [0, 1). Received: "
        "dropout='0.5'. Pass 0.0 for none.",
    ),
    "NaN dropout": (
        lambda: Feature("task", ["qa"], dropout=float("nan")),
        "The dropout of feature 'task' must be a number in [0, 1). Received: "
        "dropout=nan. Pass 0.0 for none.",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case):
    make, text = REFUSALS[case]
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == text


@pytest.mark.parametrize("name", ["a.b", "my task", "Größe", "x:y", "a\n"])
def test_refuses_names_that_a_backend_cannot_give_to_variables(name):
    with pytest.raises(ValueError, match="ASCII letters, digits"):
        Feature(name, ["a"])


def test_values_are_a_tuple_of_python_types():
    assert Feature("task", np.array(["qa", "parse"])).values == ("qa", "parse")
    (value, *_) = Feature("task", np.array(["qa"])).values
    assert type(value) is str
    (value, *_) = Feature("level", np.arange(3)).values
    assert type(value) is int
    assert Feature("task", (v for v in "ab")).values == ("a", "b")


def test_an_always_feature_is_named_after_itself():
    assert Feature("shared", always=True).values == ("shared",)
    assert Feature("shared", ["base"], always=True).values == ("base",)


@pytest.mark.parametrize(
    ("rank", "ranks"),
    [
        (4, (4, 4, 4)),
        ({"*": 3}, (3, 3, 3)),
        ({"sw": 1, "*": 3}, (3, 1, 3)),
        ({"en": 2, "sw": 1, "yo": 5}, (2, 1, 5)),
        (np.int64(2), (2, 2, 2)),
    ],
)
def test_ranks_are_in_the_order_of_the_values(rank, ranks):
    assert Feature("language", ["en", "sw", "yo"], rank=rank).ranks == ranks


def test_ranks_of_integer_values():
    assert Feature("level", [3, 1], rank={1: 2, "*": 4}).ranks == (4, 2)


def test_an_unknown_rank_cannot_be_read():
    with pytest.raises(ValueError) as error:
        _ = Feature("task", ["qa"]).ranks
    assert str(error.value) == (
        "The rank of feature 'task' must be known here. Received: rank=None. Pass "
        "rank= to the Feature or to the layer."
    )


def test_id_of():
    language = Feature("language", ["en", "sw"])
    assert [language.id_of(v) for v in ("en", "sw", None)] == [0, 1, -1]
    with pytest.raises(ValueError) as error:
        language.id_of("swa")
    assert str(error.value) == (
        "A value of feature 'language' must be one of its 2 values. Received: "
        "language='swa'. The nearest known value is 'sw'. Known values: 'en', "
        "'sw'. State absence as None."
    )


def test_whether_it_has_a_value():
    task = Feature("task", ["qa", "Yoru\u00e1"])
    assert "qa" in task
    # However Unicode writes it.
    assert "Yorua\u0301" in task
    assert "parse" not in task
    assert None not in task
    assert ["qa"] not in task
    assert 3 in Feature("user", [3])


def test_errors_name_at_most_eight_values():
    with pytest.raises(ValueError, match=r"Known values: 'v0', .*'v7', \.\.\.\. State"):
        Feature("task", [f"v{i}" for i in range(20)]).id_of("v8x")


@pytest.mark.parametrize(
    "feature",
    [
        Feature("task", ["qa", "parse"]),
        Feature("task", ["qa", "parse"], rank={"qa": 2, "*": 3}, dropout=0.25),
        Feature("level", [3, 1], rank={3: 1, 1: 2}, multiple=True),
        Feature("shared", always=True, rank=8),
        Feature("task", ["qa", "parse"], alpha=4, scale="sqrt"),
        Feature("task", ["qa", "parse"], scale="rank"),
    ],
)
def test_config_survives_json(feature):
    config = json.loads(json.dumps(feature.get_config()))
    assert Feature.from_config(config) == feature


def test_features_do_not_change():
    with pytest.raises(AttributeError):
        Feature("task", ["qa"]).name = "other"
