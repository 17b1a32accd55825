"""How `train` adapts its base: with every argument of `enable_flix`."""

import dataclasses
import inspect

import keras
import pytest
from helpers.gemma import make_backbone

import keras_flix
from keras_flix.command_line.adapting import NOT_SETTINGS, adapt, with_settings
from keras_flix.command_line.options import OF_FEATURES, OF_RATES, OPTIONS

if keras.config.backend() != "torch":
    reason = "arguments do not depend on the backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)

SCHEMA = keras_flix.FeatureSchema({"task": ["qa", "ner"], "language": ["en", "sw"]})
DEFAULTS = {name: option.default for name, option in OPTIONS.items()}


def test_every_argument_is_an_option():
    """A new one is an entry of `OPTIONS`."""
    arguments = inspect.signature(keras_flix.enable_flix).parameters
    assert arguments.keys() - {*NOT_SETTINGS} <= OPTIONS.keys()
    rates = inspect.signature(keras_flix.set_learning_rates).parameters
    assert rates.keys() - {"model"} == {*OF_RATES}
    of_data = {"name", "values", "multiple", "always"}
    fields = {field.name for field in dataclasses.fields(keras_flix.Feature)}
    assert fields - of_data == {*OF_FEATURES}


def test_arguments_arrive():
    settings = {
        **DEFAULTS,
        "rank": 3,
        "alpha": 6.0,
        "targets": ["query", "value", "token_embedding"],
        "layer_ranks": {"token_embedding": 1, ".*value": {"task": 2}},
        "train": ["ffw_linear"],
        "trainable_tokens": None,
        "feature_settings": {
            "language": {
                "scale": "sqrt",
                "rank": {"sw": 1, "*": 4},
                "targets": ["query"],
                "dropout": {"rate": 0.5, "per_batch": True},
            }
        },
        "learning_rates": {"factors": {"language": {"sw": 2.0}}, "b": 16.0},
    }
    schema = with_settings(SCHEMA, settings["feature_settings"])
    adapt(model := make_backbone(num_layers=1), schema, settings)
    expected = keras_flix.enable_flix(
        make_backbone(num_layers=1),
        [
            keras_flix.Feature("task", ["qa", "ner"]),
            keras_flix.Feature(
                "language",
                ["en", "sw"],
                rank={"sw": 1, "*": 4},
                scale="sqrt",
                targets=["query"],
                dropout=keras_flix.FeatureDropout(0.5, per_batch=True),
            ),
        ],
        rank=3,
        alpha=6.0,
        targets=["query", "value", "token_embedding"],
        layer_ranks={"token_embedding": 1, ".*value": {"task": 2}},
        train=["ffw_linear"],
        seed=0,
    )
    configs = [keras_flix.schema_of(m).get_config() for m in (model, expected)]
    assert configs[0] == configs[1]
    shapes = [
        {v.path: tuple(v.shape) for v in one.trainable_variables}
        for one in (model, expected)
    ]
    assert shapes[0] == shapes[1] and any("ffw_linear" in path for path in shapes[0])
    rates = keras_flix.set_learning_rates(expected, {"language": {"sw": 2.0}}, b=16.0)
    assert model._adaptation.rates == rates._adaptation.rates is not None


def test_defaults_and_the_words_of_options():
    adapt(model := make_backbone(num_layers=1), SCHEMA, {**DEFAULTS, "rank": {}})
    assert {max(f.ranks) for f in keras_flix.schema_of(model)} == {4}
    adapt(
        model := make_backbone(num_layers=1),
        SCHEMA,
        {**DEFAULTS, "targets": "attention", "trainable_tokens": [7]},
    )
    assert not any("ffw" in v.path for v in model.trainable_variables)
    assert any("token_embedding" in v.path for v in model.trainable_variables)


def test_values_that_are_integers():
    """The keys of a mapping are texts, in JSON as in YAML."""
    schema = with_settings(
        keras_flix.FeatureSchema({"user": [7, -12]}),
        {"user": {"rank": {"7": 3, "*": 1}}},
    )
    rates = {"factors": {"user": {"-12": 0.5}}}
    model = make_backbone(num_layers=1)
    adapt(model, schema, {**DEFAULTS, "learning_rates": rates})
    assert keras_flix.schema_of(model)["user"].ranks == (3, 1)
    assert model._adaptation.rates.factors == {"user": {-12: 0.5}}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"langage": {}}, "must name features of the data. Received: 'langage'. The n"),
        ({"task": {"values": []}}, "some of rank, dropout, alpha, scale, targets. Rec"),
        ({"task": 8}, "must be a mapping from some of rank.*Received: task: 8. Corr"),
        ({"task": {"dropout": {"rescale": 1}}}, "a mapping from `rate` and some of"),
        ({"task": {"scale": "cube"}}, "cube"),
        (
            {"task": {"dropout": {"rate": 0.5, "per_batch": "no"}}},
            "`per_batch` must be true or false. Received: per_batch='no'.",
        ),
    ],
)
def test_what_is_wrong_of_a_feature_is_told(settings, message):
    with pytest.raises(ValueError, match=message):
        with_settings(SCHEMA, settings)
