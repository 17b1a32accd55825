"""How a training adapts its base: every argument of `enable_flix` from its settings.

An option of the name of each argument is all that this place needs, so an argument that
is new needs an entry of `OPTIONS` and nothing here.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from keras_flix._utils.imported_late import imported_late
from keras_flix._utils.near_names import hint
from keras_flix.command_line.combinations import typed_value
from keras_flix.command_line.options import OF_FEATURES
from keras_flix.features.dropout import FeatureDropout
from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.models.recommended import RECOMMENDED

NOT_SETTINGS = ("model", "features")
"""The arguments of `enable_flix` that are no settings: what is adapted, and what the
data and `with_settings` say."""


def adapt(model: Any, schema: FeatureSchema, settings: Mapping[str, Any]) -> None:
    """Adapts a base as the settings say."""
    enable_flix = imported_late("keras_flix.models.enable:enable_flix")
    names = [n for n in inspect.signature(enable_flix).parameters if n in settings]
    arguments = {name: settings[name] for name in names if name not in NOT_SETTINGS}
    # Those by feature are in the schema.
    if isinstance(arguments["rank"], dict):
        arguments["rank"] = RECOMMENDED.rank
    if arguments["targets"] == "attention":
        arguments["targets"] = None
    enable_flix(model, schema, **arguments)
    if settings["learning_rates"] is not None:
        rates = dict(settings["learning_rates"])
        if isinstance(rates.get("factors"), dict):
            rates["factors"] = {
                name: _by_value(schema[name] if name in schema else None, own)
                for name, own in rates["factors"].items()
            }
        place = "keras_flix.models.growing.set_learning_rates:set_learning_rates"
        imported_late(place)(model, **rates)


def with_settings(
    schema: FeatureSchema, settings: Mapping[str, Mapping[str, Any]] | None
) -> FeatureSchema:
    """Features with what `feature_settings` says of them.

    Args:
        schema: Those that the data have.
        settings: By feature, arguments of `Feature`.
    """
    for name, own in (settings or {}).items():
        if name not in schema.names:
            near = hint(name, schema.names) or f" Those are {', '.join(schema.names)}."
            raise ValueError(
                "`feature_settings` must name features of the data. Received: "
                f"{name!r}.{near}"
            )
        if not isinstance(own, Mapping) or not own.keys() <= {*OF_FEATURES}:
            raise ValueError(
                f"`feature_settings` of a feature must be a mapping from some of "
                f"{', '.join(OF_FEATURES)}. Received: {name}: {own!r}. Correct it."
            )
    return FeatureSchema(
        _with_settings(feature, (settings or {}).get(feature.name, {}))
        for feature in schema
    )


def _with_settings(feature: Feature, own: Mapping[str, Any]) -> Feature:
    own = dict(own)
    dropout = own.get("dropout")
    if isinstance(dropout, dict):
        known = [field.name for field in dataclasses.fields(FeatureDropout)]
        if not {"rate"} <= dropout.keys() <= {*known}:
            raise ValueError(
                "A dropout must be a number, or a mapping from `rate` and some of "
                f"{', '.join(known[1:])}. Received: {dropout!r} for feature "
                f"{feature.name!r}. Correct it."
            )
        own["dropout"] = FeatureDropout(**dropout)
    if "rank" in own:
        own["rank"] = _by_value(feature, own["rank"])
    return dataclasses.replace(feature, **own)


def _by_value(feature: Feature | None, setting: Any) -> Any:
    """A setting by value, whose keys are texts in JSON, integers too."""
    if not isinstance(setting, dict):
        return setting
    return {typed_value(feature, text): one for text, one in setting.items()}
