"""Changes of a schema that do not fit it are refused, and change nothing."""

import time

import pytest
from helpers.growing import DATA
from helpers.models import make_mlp, state

import keras_flix
from keras_flix import Feature
from keras_flix.models.growing import schema_changes

pytestmark = pytest.mark.eager


def add(*args, **kwargs):
    return lambda model: keras_flix.add_values(model, *args, **kwargs)


def remove(*args):
    return lambda model: keras_flix.remove_values(model, *args)


def rename(*args):
    return lambda model: keras_flix.rename_value(model, *args)


def new_feature(*args, **kwargs):
    return lambda model: keras_flix.add_feature(model, Feature(*args, **kwargs))


@pytest.mark.short("torch")
@pytest.mark.parametrize(
    "change, message",
    [
        (add("langage", ["rw"]), "Received: 'langage'. The nearest is 'language'"),
        (add("language", ["sw"]), "must be new. Received: 'sw', which it has"),
        (add("language", "rw"), "Write ['rw']"),
        (add("language", [3]), "must be all strings or all integers"),
        (add("language", ["rw"], init="swa"), "The nearest known value is 'sw'"),
        (add("language", ["rw"], init={"swa": 1}), "The nearest known value is 'sw'"),
        (add("language", ["rw"], init={"sw": None}), "`init` must be finite numbers"),
        (add("language", ["rw"], init={}), "`init` must name at least one value"),
        (add("language", ["rw"], rank=7), "must be at most 6"),
        (add("language", ["rw"], rank=0), "must be at least 1"),
        (add("language", ["rw"], seed=-1), "`seed` must be a non-negative integer"),
        (add("shared", ["two"]), "Use `add_feature` for one more feature"),
        (add("task", ["list"]), "Pass rank="),
        (remove("language", ["en", "sw"]), "At least one value of feature 'language'"),
        (remove("language", ["swa"]), "The nearest known value is 'sw'"),
        (rename("language", "swa", "rw"), "The nearest known value is 'sw'"),
        (rename("language", "sw", "en"), "must be unique"),
        (new_feature("language", ["x"]), "must have unique names"),
        (new_feature("x", ["y"]), "must not be called like one of the model's own"),
        (new_feature("domain", ["y"], rank=7), "must be at most 6"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(change, message):
    features = [
        Feature("task", ["qa", "parse"], rank={"qa": 1, "parse": 2}),
        Feature("language", ["en", "sw"]),
        Feature("shared", always=True),
    ]
    model = keras_flix.enable_flix(make_mlp(), features, rank=2, targets="all-linear")
    schema, before = model._adaptation.schema, state(model, DATA)
    with pytest.raises(ValueError) as error:
        change(model)
    assert message in str(error.value)
    assert model._adaptation.schema is schema
    assert state(model, DATA) == before


def test_time_of_joining_grows_with_the_number_of_values_alone():
    users = [f"user-{i}" for i in range(20_000)]
    model = keras_flix.enable_flix(
        make_mlp(),
        {"user": users},
        rank=2,
        alpha=4,
        targets=["head"],
        layer_ranks={"head": 1},
    )
    new = [f"new-{i}" for i in range(1_000)]
    start = time.process_time()
    keras_flix.add_values(model, "user", new, init={"user-1": 1.0, "user-2": 0.5})
    # Ranks and scales of all values were made anew for each: 9 seconds.
    assert time.process_time() - start < 3


def test_time_grows_with_the_number_of_values_alone():
    users = [f"user-{i}" for i in range(20_000)]
    ranks = {user: 1 + i % 2 for i, user in enumerate(users)}
    known = Feature("user", users, rank=ranks)
    new = [f"new-{i}" for i in range(20_000)]
    start = time.process_time()
    grown = schema_changes.with_values(known, new, 1, None)
    schema_changes.narrowed({"user": users[::2]}, known)
    fewer = schema_changes.without_values(grown, new)
    # Each of them compared values hundreds of millions of times: minutes in all.
    assert time.process_time() - start < 3
    assert fewer.values == known.values
    assert fewer.ranks == known.ranks
